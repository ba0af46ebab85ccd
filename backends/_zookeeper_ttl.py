"""Keys with a ttl: ephemeral nodes, of one session per ttl, removed when their time is over.

While we live we remove such a key ourselves, unless it was written again;
when we die or are cut off the server ends the session, and all its keys go.
"""

from __future__ import annotations

import asyncio

from kazoo.exceptions import BadVersionError, NoNodeError

from ..backend import Context
from ..clock import Timer
from ..errors import HandleClosed, SessionLost, StoreError
from ..events import TtlGranted
from ._zookeeper_connection import Ask, Connection, Settings, SharedConnection
from ._zookeeper_tree import stat_of

_PACE = 0.5


class TtlKeys:
    """All of one store."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._sessions: dict[float, SharedConnection] = {}
        self._timers: dict[str, tuple[float, Timer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[float] = set()

    async def connection(self, ttl: float) -> Connection:
        """The session on which the keys with this ttl are."""
        shared = self._sessions.get(ttl)
        if shared is None:
            shared = self._sessions[ttl] = SharedConnection(self._settings, self._context, ttl)
        connection = await shared.connection()
        if connection.timeout > ttl + 0.001 and ttl not in self._told:
            self._told.add(ttl)
            self._context.emit(TtlGranted("", self._context.clock.now(), ttl, connection.timeout))
        return connection

    def written(self, path: str, ttl: float, sent_at: float, index: int) -> None:
        """A key with a ttl was written; its time counts from before the send."""
        self.forget(path)

        def due() -> None:
            self._timers.pop(path, None)
            task = asyncio.ensure_future(self._lapse(path, ttl, index))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._timers[path] = (ttl, self._context.clock.call_at(sent_at + ttl, due))

    def forget(self, path: str) -> None:
        """The key is no longer one that lapses."""
        former = self._timers.pop(path, None)
        if former is not None:
            former[1].cancel()

    async def _lapse(self, path: str, ttl: float, index: int) -> None:
        """Remove the key if it is still as it was written."""
        while True:
            try:
                connection = await self._sessions[ttl].connection()
                stat = await connection.request(stat_of(path), repeatable=True)
                if stat is None or stat.mzxid != index:
                    return
                await connection.request(
                    _deleting(path, stat.version), NoNodeError, BadVersionError
                )
            except (HandleClosed, SessionLost, NoNodeError):
                # With the session the key goes.
                return
            except BadVersionError:
                continue
            except StoreError:
                await self._context.clock.sleep(_PACE)
            else:
                return

    async def close(self) -> None:
        """Leave the keys that still have time to their sessions' expiry."""
        living = {ttl for ttl, _ in self._timers.values()}
        for path in list(self._timers):
            self.forget(path)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await asyncio.gather(
            *(shared.close(end_session=ttl not in living) for ttl, shared in self._sessions.items())
        )


def _deleting(path: str, version: int) -> Ask:
    return lambda client: client.delete_async(path, version)
