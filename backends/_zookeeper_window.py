"""How many requests may be under way at once; the others queue, first come first."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from ..clock import Clock, Timer

# Times in the limit that the timer looks whether the server is silent.
_LOOKS = 4


class Window:
    """As `asyncio.Semaphore`, for thousands who come at once.

    That looks through all whom it has woken to wake one more, and each who waits would
    need a timer. Here each answer gives its place straight to who waits for it, and one
    timer serves all.

    Args:
        places: for so many.
        limit: seconds of silence after which who waits gives up.
        heard_at: when the server was last heard of.
        silent: makes the error that is then raised.
    """

    def __init__(
        self,
        places: int,
        clock: Clock,
        limit: float,
        heard_at: Callable[[], float],
        silent: Callable[[], Exception],
    ) -> None:
        self._free = places
        self._clock = clock
        self._limit = limit
        self._heard_at = heard_at
        self._silent = silent
        self._waiting: collections.deque[tuple[asyncio.Future[None], float]] = collections.deque()
        self._timer: Timer | None = None

    async def acquire(self) -> None:
        """Take a place, when it is our turn."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, self._clock.now()))
        if self._timer is None:
            self._look_later()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It came in the same moment.
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _look_later(self) -> None:
        self._timer = self._clock.call_at(self._clock.now() + self._limit / _LOOKS, self._look)

    def _look(self) -> None:
        """To queue behind our own requests is no silence of the server, while it answers."""
        self._timer = None
        silent_since = self._clock.now() - self._limit
        if self._heard_at() <= silent_since:
            for turn, since in self._waiting:
                if since <= silent_since and not turn.done():
                    turn.set_exception(self._silent())
        if any(not turn.done() for turn, _ in self._waiting):
            self._look_later()
