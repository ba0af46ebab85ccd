"""The lease clock: until when may we believe what the store last confirmed?

The one rule that everything rests on: a lease is counted from the moment
*before* the confirmed request was sent, never from the reply, on a clock that
counts suspend. The store cannot have started to count earlier, so we stop
believing before it starts to forget. (Gray and Cheriton, "Leases", 1989.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .clock import Clock, Timer

LAPSED = "the lease was not renewed in time"


@dataclass(eq=False, slots=True)
class _Watcher:
    generation: int
    grace: float
    callback: Callable[[str], None]


class Lease:
    """The deadline of one session (etcd lease, Consul or ZooKeeper session, key with TTL).

    `state` is one tuple, replaced as a whole, so that any thread reads a
    generation and a deadline that belong together. The generation grows
    whenever the lease lapsed or ended: a claim made before that is void for
    ever, also when the store turns out to have kept the session alive.

    Args:
        clock: where the deadline is read.
        max_clock_drift: how far two clocks' rates may differ (0.01 is 1 %).
        guard: seconds taken off for the time between a check and the act; by
            default a twentieth of the ttl, at most 0.1.

    Attributes:
        span: seconds that were left at the answer of the last confirmation.
    """

    __slots__ = (
        "_clock",
        "_drift",
        "_guard",
        "_timer",
        "_timer_at",
        "_watchers",
        "ended",
        "span",
        "state",
    )

    def __init__(self, clock: Clock, max_clock_drift: float, guard: float | None = None) -> None:
        self._clock = clock
        self._drift = max_clock_drift
        self._guard = guard
        self.state: tuple[int, float] = (0, -math.inf)
        self.span = 0.0
        self.ended: str | None = None
        self._watchers: set[_Watcher] = set()
        self._timer: Timer | None = None
        self._timer_at = math.inf

    @property
    def generation(self) -> int:
        return self.state[0]

    @property
    def valid_until(self) -> float:
        """Seconds on the clock; minus infinity before the first confirmation."""
        return self.state[1]

    def is_valid(self) -> bool:
        return self._clock.now() < self.state[1]

    def confirm(self, sent_at: float, seconds: float) -> None:
        """The store confirmed a request sent at `sent_at`: it will wait `seconds` from then.

        The store's clock may run fast by the drift, so that much is taken off.
        """
        if self.ended is not None:
            return
        guard = min(0.1, seconds / 20) if self._guard is None else self._guard
        self.extend(sent_at + seconds * (1 - self._drift) - guard)

    def extend(self, until: float) -> None:
        """Whoever grants it has counted the deadline itself: it is `until`, or later already."""
        if self.ended is not None:
            return
        generation, before = self.state
        now = self._clock.now()
        if now >= before:
            # It lapsed. Whoever led on it has been, or is being, told that it is
            # over; a late renewal must not bring that term back to life.
            generation += 1
        self.span = max(before, until) - now
        self.state = (generation, max(before, until))
        self._look()

    def end(self, reason: str) -> None:
        """The store says that the session is gone: nothing on this lease is valid any more."""
        if self.ended is not None:
            return
        self.ended = reason
        self.state = (self.state[0] + 1, -math.inf)
        self._look()

    def watch(
        self, generation: int, grace: float, callback: Callable[[str], None]
    ) -> Callable[[], None]:
        """Call `callback(reason)` once, `grace` seconds before `generation` runs out.

        At once, when it has. Returns a function that takes the watch back.
        """
        watcher = _Watcher(generation, grace, callback)
        self._watchers.add(watcher)
        if generation != self.generation or self.valid_until - grace < self._timer_at:
            self._look()
        return partial(self._unwatch, watcher)

    def _unwatch(self, watcher: _Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers:
            self._stop_timer()

    def _look(self) -> None:
        """Tell those whose time has come, and set the timer for the next."""
        now = self._clock.now()
        generation, until = self.state
        for watcher in list(self._watchers):
            # A callback may take other watches back, or end the lease and so tell them.
            due = watcher.generation != generation or now >= until - watcher.grace
            if due and watcher in self._watchers:
                self._watchers.discard(watcher)
                watcher.callback(self.ended or LAPSED)
        if not self._watchers:
            self._stop_timer()
            return
        next_at = until - max(watcher.grace for watcher in self._watchers)
        # A timer that is already set for an earlier moment may stand: a renewal
        # need not touch it, it looks again and moves on.
        if self._timer is None or next_at < self._timer_at:
            self._stop_timer()
            self._timer_at = next_at
            self._timer = self._clock.call_at(next_at, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._timer_at = math.inf

    def _on_timer(self) -> None:
        self._stop_timer()
        self._look()


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof that one entry led its election: a token, and the lease it rests on."""

    token: int
    lease: Lease
    generation: int

    @property
    def valid_until(self) -> float:
        generation, until = self.lease.state
        return until if generation == self.generation else -math.inf


def claim(token: int, lease: Lease) -> Claim:
    """A claim on the lease as it is now."""
    return Claim(token, lease, lease.generation)
