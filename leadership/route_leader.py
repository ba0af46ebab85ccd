"""Who leads, as a router sees it: known to every thread and event loop, at no cost per request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

from .core import Core
from .errors import LeadershipError
from .follower import FollowerBase
from .following import Leader, LeaderState

_PAUSE = 1.0
"""Seconds between two attempts to follow, where the store refuses."""


class LeaderView:
    """What the store says of the leader, as long as it says so.

    The leader counts as unknown, and nothing is sent to it, once the follower
    has been cut off from the store for longer than its `patience`.
    """

    def __init__(self, follower: FollowerBase) -> None:
        self._core: Core = follower.core
        self._following = follower._following
        self._clock = follower.core.context.clock
        self._lock = threading.Lock()
        self._leader: Leader | None = None
        self._waiting: set[concurrent.futures.Future[None]] = set()
        self._follows: concurrent.futures.Future[None] | None = None
        self._not_before = 0.0

    def look(self) -> Leader | None:
        """The leader, if one is known; begins to follow at the first call.

        Raises:
            HandleClosed, ForkedHandle: the store cannot be asked any more.
        """
        self._core.check_open()
        with self._lock:
            idle = self._follows is None or self._follows.done()
            if idle and self._clock.now() >= self._not_before:
                self._not_before = self._clock.now() + _PAUSE
                self._follows = self._core.start(self._follow)
            return self._leader

    async def change(self, seen: Leader | None) -> None:
        """Return once another leader than `seen` is known, or none."""
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            if self._leader is not seen:
                return
            self._waiting.add(waiter)
        try:
            await asyncio.wrap_future(waiter)
        finally:
            with self._lock:
                self._waiting.discard(waiter)

    async def superseded(self, leader: Leader) -> None:
        """Return once a later leader is known."""
        while True:
            seen = self.look()
            if seen is not None and seen.token != leader.token:
                return
            await self.change(seen)

    def close(self) -> None:
        """Stop following; the next `look` begins anew."""
        with self._lock:
            if self._follows is not None:
                self._follows.cancel()
                self._follows = None
            self._not_before = 0.0
        self._tell(None)

    async def _follow(self) -> None:
        cursor = self._following.cursor_of_leaders()
        told: object = None
        try:
            while (seen := await cursor.next(told)) is not None:
                told, leader = seen
                self._tell(leader if leader.state is LeaderState.KNOWN else None)
        except LeadershipError:
            # Told as an event where it is an outage; a refusal shows in the requests' answers.
            pass
        finally:
            self._tell(None)
            await cursor.close()

    def _tell(self, leader: Leader | None) -> None:
        with self._lock:
            self._leader = leader
            waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)
