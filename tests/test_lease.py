"""The lease clock: from the send, less drift and guard; a lapse is for ever."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from leadership.clock import ManualClock, SystemClock
from leadership.lease import LAPSED, Lease, claim


def run(scenario: Callable[[ManualClock], Awaitable[None]]) -> None:
    async def with_clock() -> None:
        await scenario(ManualClock(start=100.0))

    asyncio.run(with_clock())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_deadline_counts_from_the_send_less_drift_and_guard() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, max_clock_drift=0.01)
        assert not lease.is_valid()
        sent_at = clock.now()
        clock.advance(3)
        lease.confirm(sent_at, 10)
        assert lease.valid_until == pytest.approx(100 + 10 * 0.99 - 0.1)
        clock.advance(lease.valid_until - clock.now() - 0.001)
        assert lease.is_valid()
        clock.advance(0.001)
        assert not lease.is_valid()

    run(scenario)


def test_an_older_confirmation_does_not_shorten_the_lease() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, 0.0, guard=0.0)
        lease.confirm(clock.now(), 10)
        lease.confirm(clock.now() - 5, 10)
        assert lease.valid_until == 110

    run(scenario)


def test_a_claim_from_before_a_lapse_is_void_when_the_lease_comes_back() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, 0.0, guard=0.0)
        lease.confirm(clock.now(), 10)
        old = claim(1, lease)
        clock.advance(10)
        lease.confirm(clock.now(), 10)
        assert lease.is_valid()
        assert old.valid_until == -math.inf
        assert claim(2, lease).valid_until == 120

    run(scenario)


def test_watchers_are_told_once_at_their_grace_before_the_deadline() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, 0.0, guard=0.0)
        lease.confirm(clock.now(), 10)
        told: list[tuple[str, float]] = []

        def note(name: str) -> Callable[[str], None]:
            return lambda reason: told.append((name, clock.now()))

        for name, grace in (("late", 0.0), ("early", 3.0)):
            lease.watch(lease.generation, grace, note(name))
        clock.advance(6.9)
        await settle()
        assert told == []
        lease.confirm(clock.now(), 10)
        clock.advance(0.2)
        await settle()
        assert told == [], "the renewal moved the deadline on"
        for _ in range(100):
            clock.advance(0.1)
            await settle()
        assert [name for name, _ in told] == ["early", "late"]
        assert told[0][1] == pytest.approx(113.9, abs=0.11)
        assert told[1][1] == pytest.approx(116.9, abs=0.11)

    run(scenario)


def test_a_watch_that_was_taken_back_is_silent() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, 0.0, guard=0.0)
        lease.confirm(clock.now(), 10)
        told: list[str] = []
        lease.watch(lease.generation, 0, told.append)()
        lease.watch(lease.generation, 0, told.append)
        clock.advance(10)
        await settle()
        assert told == [LAPSED]

    run(scenario)


def test_an_end_is_told_at_once_and_nothing_confirms_it_away() -> None:
    async def scenario(clock: ManualClock) -> None:
        lease = Lease(clock, 0.0, guard=0.0)
        lease.confirm(clock.now(), 10)
        held = claim(1, lease)
        told: list[str] = []
        lease.watch(lease.generation, 0, told.append)
        lease.end("gone")
        lease.end("again")
        lease.confirm(clock.now(), 10)
        assert told == ["gone"]
        assert not lease.is_valid()
        assert held.valid_until == -math.inf
        lease.watch(lease.generation, 0, told.append)
        lease.watch(held.generation, 0, told.append)
        assert told == ["gone", "gone", "gone"], "whoever comes late is told at once"

    run(scenario)


def test_the_clock_counts_suspend() -> None:
    import time

    clock = SystemClock()
    assert clock.name == "CLOCK_BOOTTIME"
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_timers_of_the_system_clock_fire_in_order_and_can_be_cancelled() -> None:
    async def scenario() -> list[str]:
        clock = SystemClock()
        fired: list[str] = []
        now = clock.now()
        clock.call_at(now + 0.02, lambda: fired.append("second"))
        clock.call_at(now + 0.01, lambda: fired.append("first"))
        clock.call_at(now + 0.015, lambda: fired.append("never")).cancel()
        clock.call_at(now - 1, lambda: fired.append("at once"))
        await clock.sleep(0.03)
        return fired

    assert asyncio.run(scenario()) == ["at once", "first", "second"]


def test_waiting_for_an_event_ends_at_the_moment_given() -> None:
    async def scenario(clock: ManualClock) -> None:
        event = asyncio.Event()
        waiting = asyncio.ensure_future(clock.wait_for(event.wait(), clock.now() + 5))
        await settle()
        clock.advance(5)
        assert await waiting is False
        event.set()
        assert await clock.wait_for(event.wait(), clock.now() + 5) is True
        assert await clock.wait_for(event.wait(), math.inf) is True

    run(scenario)
