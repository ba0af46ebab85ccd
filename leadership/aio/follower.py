"""`leadership.follower` for asyncio: who leads, and who leads next."""

from __future__ import annotations

import asyncio
from typing import Self

from ..checks import checked_timeout
from ..errors import LeaderUnknown
from ..follower import FollowerBase
from ..following import Leader
from .calls import on_engine
from .store import Store
from .streams import Stream


class Follower(FollowerBase):
    """`leadership.Follower` for asyncio: the same arguments, the same guarantees."""

    def follow_election(self) -> Stream[str | None]:
        """An async iterator of who leads; see `leadership.Follower.follow_election`."""
        self.core.check_open()
        return Stream(self.core, self._following.cursor_of_values())

    def observe(self) -> Stream[Leader]:
        """As `follow_election`, with all that is known, and what is not."""
        self.core.check_open()
        return Stream(self.core, self._following.cursor_of_leaders())

    async def leader(self, max_age: float | None = None) -> str | None:
        """Who leads, or None; see `leadership.Follower.leader`."""
        self.core.check_open()
        return await on_engine(self.core, self._following.leader, checked_timeout(max_age))

    async def wait_for_leader(self, timeout: float | None = None) -> str:
        """Wait until somebody leads; `TimeoutError` after `timeout` seconds."""
        limit = checked_timeout(timeout)
        self.core.check_open()
        try:
            async with asyncio.timeout(limit):
                value = await on_engine(self.core, self._following.wait_for_leader)
        except TimeoutError:
            raise TimeoutError(f"nobody led {self.key!r} within {timeout} s") from None
        if value is None:
            raise LeaderUnknown("the follower was stopped before a leader was seen")
        return value

    async def stop(self) -> None:
        """End all observations; their iterators end. Idempotent."""
        if not self.core.nothing_to_end():
            await on_engine(self.core, self._following.stop)

    close = stop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()


def NewFollower(store: Store, key: str) -> Follower:  # noqa: N802
    """`Follower`, under the name that people who come from Go look for."""
    return Follower(store, key)
