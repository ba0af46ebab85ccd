"""Elections on ZooKeeper, in which kazoo's `Election` or Curator's `LeaderLatch` take part too.

What all contenders of one store share. The transaction that made an entry
(czxid) is the fencing token: ZooKeeper counts them for the whole ensemble,
and over its restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

from ..backend import Context
from ..errors import HandleClosed
from ..renewal import GrantedTtls
from ..session import SessionPool
from ._zookeeper_connection import Settings
from ._zookeeper_contender import ZooKeeperContender
from ._zookeeper_names import NodeNames
from ._zookeeper_session import ZooKeeperSession


class Election:
    """What all contenders of one store share."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        names: NodeNames,
        sessions_directory: str,
        *,
        standalone: bool,
    ) -> None:
        self.settings = settings
        self.context = context
        self.names = names
        self.numbers = itertools.count()
        # Whether the last election that was entered had no directory: who enters many new
        # ones makes the directories first, and is not told each time that they are missing.
        self.directories_are_missing = False
        # Set once whoever found one missing has made it, or failed to.
        self.finding_out: asyncio.Event | None = None
        ttls = GrantedTtls("ZooKeeper", context)
        self.sessions: SessionPool[ZooKeeperSession] = SessionPool(
            lambda ttl: asyncio.ensure_future(
                ZooKeeperSession.open(
                    settings, context, sessions_directory, ttl, ttls, standalone=standalone
                )
            )
        )
        self._tasks: set[asyncio.Future[Any]] = set()

    def contender(
        self, key: str, value: bytes, ttl: float, own_session: bool, guarded: bool = False
    ) -> ZooKeeperContender:
        return ZooKeeperContender(self, key, value, ttl, own_session, guarded)

    def spawn(self, work: Any) -> asyncio.Future[None]:
        async def until_closed() -> None:
            with contextlib.suppress(HandleClosed):
                await work

        task = asyncio.ensure_future(until_closed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        await self.sessions.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
