"""Until when an answer is waited for: one timer for all requests with the same limit."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

from ..clock import Clock, Timer


class Deadlines:
    """As `asyncio.timeout` around each, for thousands who come at once.

    Since all have the same limit, they are due in the order in which they came.

    Args:
        limit: seconds.
    """

    def __init__(self, clock: Clock, limit: float) -> None:
        self._clock = clock
        self._limit = limit
        self._waiting: collections.deque[tuple[asyncio.Future[Any], float]] = collections.deque()
        self._timer: Timer | None = None

    def add(self, answer: asyncio.Future[Any]) -> None:
        """Have it end with `TimeoutError`, unless it is done before."""
        # What is done goes at once, and what it holds with it.
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        self._waiting.append((answer, self._clock.now() + self._limit))
        if self._timer is None:
            self._look_later()

    def _look_later(self) -> None:
        _, due = self._waiting[0]
        self._timer = self._clock.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._waiting:
            answer, due = self._waiting[0]
            if not answer.done() and due > now:
                break
            fail(answer, TimeoutError())
            self._waiting.popleft()
        if self._waiting:
            self._look_later()


def fail(answer: asyncio.Future[Any], error: Exception) -> None:
    """Have it end with the error, unless it is done."""
    if not answer.done():
        answer.set_exception(error)
        # Who asked may have given up in this moment: then nobody else takes the exception.
        answer.exception()
