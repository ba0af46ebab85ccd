"""The clock that every deadline is measured on, and the one place that reads time.

Linux: CLOCK_BOOTTIME, which goes on in suspend: a laptop that slept through
its lease is not leader when it wakes. macOS: CLOCK_MONOTONIC by
`clock_gettime`, which counts sleep there (`time.monotonic` need not).
Elsewhere: `time.monotonic`, whose behaviour in suspend is the platform's.

What the clock does not count is a pause of a virtual machine by its host, where
the host's clock for guests stands still (QEMU's kvm-clock does): no guest can
see that by itself, and only the token protects from it.

No clock needs to be set right; only the *rate* matters (`max_clock_drift`).
chrony may slew the rate by up to 8 % after its first updates: bound it with
its `maxslewrate` setting, or raise `max_clock_drift`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import math
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol


class Timer(Protocol):
    """A pending call that can be taken back."""

    def cancel(self) -> None: ...


class Clock(ABC):
    """What the library knows of time: seconds that only grow, and timers on them."""

    @abstractmethod
    def now(self) -> float:
        """Seconds since an arbitrary start, suspend included. Any thread may ask."""

    def wall(self) -> float:
        """Seconds since 1970. It may step: only for what is shown, and for what it floors."""
        return time.time()

    @abstractmethod
    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the running event loop once `now()` has reached `when`."""

    async def sleep_until(self, when: float) -> None:
        """Return once `now()` has reached `when` (seconds on this clock)."""
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not reached.done():
                reached.set_result(None)

        timer = self.call_at(when, wake)
        try:
            await reached
        finally:
            timer.cancel()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await self.sleep_until(self.now() + seconds)

    async def wait_for(self, event: Awaitable[object], until: float) -> bool:
        """Wait for `event`, but not beyond `until` on this clock; whether it came.

        What `event` raises is raised. One that did not come is cancelled, and
        has ended when this returns.
        """
        if until == math.inf:
            await event
            return True
        waiting = asyncio.ensure_future(event)
        pause = asyncio.ensure_future(self.sleep_until(until))
        try:
            await asyncio.wait({waiting, pause}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                await waiting
                return True
            return False
        finally:
            waiting.cancel()
            pause.cancel()
            await asyncio.gather(waiting, pause, return_exceptions=True)


if hasattr(time, "CLOCK_BOOTTIME"):
    _CLOCK_NAME = "CLOCK_BOOTTIME"
    _CLOCK_ID: int | None = time.CLOCK_BOOTTIME
elif sys.platform == "darwin":
    _CLOCK_NAME = "CLOCK_MONOTONIC"
    _CLOCK_ID = time.CLOCK_MONOTONIC
else:
    _CLOCK_NAME = "time.monotonic"
    _CLOCK_ID = None

_read_clock: Callable[[], float] = (
    time.monotonic if _CLOCK_ID is None else functools.partial(time.clock_gettime, _CLOCK_ID)
)

# An event loop's own timers stand still in suspend, so after a wake-up they
# would fire late by as long as the machine slept. Looking at the clock at
# least this often bounds that; it costs a local wake-up, never a request.
_LONGEST_NAP = 1.0


class _SystemTimer:
    __slots__ = ("_callback", "_clock", "_handle", "_when")

    def __init__(self, clock: SystemClock, when: float, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._when = when
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._arm()

    def _arm(self) -> None:
        remaining = self._when - self._clock.now()
        loop = asyncio.get_running_loop()
        if remaining <= 0:
            self._handle = loop.call_soon(self._callback)
        else:
            self._handle = loop.call_later(min(remaining, _LONGEST_NAP), self._arm)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class SystemClock(Clock):
    """The machine's clock that counts suspend; `name` says which one it is."""

    name = _CLOCK_NAME

    # No function of ours around it: this is on the path of every `is_leader()`.
    now = staticmethod(_read_clock)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return _SystemTimer(self, when, callback)


class _ManualTimer:
    __slots__ = ("callback", "cancelled", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self.loop = loop
        self.callback = callback
        self.cancelled = False

    def run(self) -> None:
        if not self.cancelled:
            self.callback()

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock(Clock):
    """A clock that stands still until `advance` is called: for tests of your own code.

    Args:
        start: what `now()` says at first, in seconds.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = _ManualTimer(asyncio.get_running_loop(), callback)
        with self._lock:
            if when > self._now:
                heapq.heappush(self._timers, (when, next(self._order), timer))
                return timer
        timer.loop.call_soon(timer.run)
        return timer

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds` and wake whoever waits for a moment passed."""
        with self._lock:
            self._now += seconds
            due = []
            while self._timers and self._timers[0][0] <= self._now:
                due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            # A loop that was closed meanwhile has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                timer.loop.call_soon_threadsafe(timer.run)
