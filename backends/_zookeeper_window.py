"""How many requests may be under way at once; the others queue, first come first."""

from __future__ import annotations

import asyncio
import collections


class Window:
    """As `asyncio.Semaphore`, which looks through all whom it has woken to wake one more.

    Many answers come together here: each gives its place straight to who waits for it.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    async def acquire(self) -> None:
        """Take a place, when it is our turn."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It came in the same moment.
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
