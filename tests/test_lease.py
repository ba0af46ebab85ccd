"""The deadline: counted from the send, never moved back, void for ever once it was passed."""

from __future__ import annotations

import math

import pytest

from leadership.clock import ManualClock
from leadership.lease import LAPSED, Claim, Lease, claim

from .loops import on_a_loop, settle

TTL = 10.0
DRIFT = 0.01
GUARD = 0.1
UNTIL = TTL * (1 - DRIFT) - GUARD
"""Seconds from the send until the deadline."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lease(clock: ManualClock) -> Lease:
    return Lease(clock, DRIFT)


def renew(lease: Lease, clock: ManualClock) -> None:
    lease.confirm(clock.now(), TTL)


class TestDeadline:
    def test_before_the_first_confirmation_nothing_is_valid(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        assert not lease.is_valid()
        assert lease.valid_until == -math.inf
        assert Claim(1, lease, lease.generation).valid_until == -math.inf

    def test_it_is_counted_from_the_send_and_not_from_the_answer(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        sent_at = clock.now()
        clock.advance(4)
        lease.confirm(sent_at, TTL)
        assert lease.valid_until == pytest.approx(sent_at + UNTIL)

    def test_drift_and_guard_are_taken_off(self, clock: ManualClock) -> None:
        lease = Lease(clock, max_clock_drift=0.05, guard=0.5)
        renew(lease, clock)
        assert lease.valid_until == pytest.approx(clock.now() + 9.5 - 0.5)
        short = Lease(clock, max_clock_drift=0)
        short.confirm(clock.now(), 1.0)
        assert short.valid_until == pytest.approx(clock.now() + 1 - 1 / 20)

    def test_at_the_deadline_itself_it_is_over(self, clock: ManualClock) -> None:
        lease = Lease(clock, max_clock_drift=0, guard=0)
        renew(lease, clock)
        clock.advance(TTL - 0.001)
        assert lease.is_valid()
        clock.advance(0.001)
        assert not lease.is_valid()

    def test_a_renewal_moves_it_on_and_an_older_answer_does_not_move_it_back(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        first = clock.now()
        renew(lease, clock)
        clock.advance(3)
        renew(lease, clock)
        assert lease.valid_until == pytest.approx(first + 3 + UNTIL)
        lease.confirm(first, TTL)
        assert lease.valid_until == pytest.approx(first + 3 + UNTIL)

    def test_an_answer_that_came_too_late_confirms_nothing(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        sent_at = clock.now()
        clock.advance(TTL)
        lease.confirm(sent_at, TTL)
        assert not lease.is_valid()


class TestClaims:
    def test_a_claim_follows_the_renewals_of_its_lease(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        mine = claim(7, lease)
        assert (mine.token, mine.valid_until) == (7, lease.valid_until)
        clock.advance(5)
        renew(lease, clock)
        assert mine.valid_until == lease.valid_until > clock.now() + 5

    def test_a_lapse_voids_older_claims_for_ever_also_when_the_store_renews_after_it(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        old = claim(7, lease)
        clock.advance(UNTIL)
        assert old.valid_until <= clock.now()
        renew(lease, clock)
        assert lease.is_valid()
        assert old.valid_until == -math.inf
        assert claim(8, lease).valid_until == lease.valid_until

    def test_an_end_voids_all_and_nothing_revives_the_lease(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        mine = claim(7, lease)
        lease.end("the session expired")
        lease.end("another reason")
        assert lease.ended == "the session expired"
        assert mine.valid_until == -math.inf
        renew(lease, clock)
        assert not lease.is_valid()
        assert claim(8, lease).valid_until == -math.inf


class TestWatchers:
    @on_a_loop
    async def test_it_is_told_once_at_the_deadline_less_its_grace(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []
        lease.watch(lease.generation, 0, lambda _: told.append("deadline"))
        lease.watch(lease.generation, 3, lambda _: told.append("grace"))
        await settle()
        clock.advance(UNTIL - 3.01)
        await settle()
        assert told == []
        clock.advance(0.02)
        await settle()
        assert told == ["grace"]
        clock.advance(3)
        await settle()
        clock.advance(100)
        await settle()
        assert told == ["grace", "deadline"]

    @on_a_loop
    async def test_a_renewal_puts_it_off(self, lease: Lease, clock: ManualClock) -> None:
        renew(lease, clock)
        told: list[str] = []
        lease.watch(lease.generation, 3, told.append)
        for _ in range(5):
            clock.advance(5)
            renew(lease, clock)
            await settle()
        assert told == []
        clock.advance(UNTIL)
        await settle()
        assert told == [LAPSED]

    @on_a_loop
    async def test_an_end_is_told_at_once_with_its_reason(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []
        lease.watch(lease.generation, 0, told.append)
        lease.end("the session expired")
        assert told == ["the session expired"]
        clock.advance(TTL)
        await settle()
        assert told == ["the session expired"]
        lease.watch(lease.generation, 0, told.append)
        assert told == ["the session expired"] * 2, "whoever comes late is told at once"

    @on_a_loop
    async def test_a_generation_that_is_over_is_told_at_once(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        old = lease.generation
        clock.advance(TTL)
        renew(lease, clock)
        told: list[str] = []
        lease.watch(old, 0, told.append)
        assert told == [LAPSED]

    @on_a_loop
    async def test_a_renewal_after_the_lapse_tells_the_old_claims_watchers(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []
        lease.watch(lease.generation, 0, told.append)
        clock.advance(TTL)
        # The timer has had no turn yet: a process that slept.
        renew(lease, clock)
        assert told == [LAPSED]

    @on_a_loop
    async def test_who_took_the_watch_back_is_not_told_and_no_timer_is_left(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []
        unwatch = lease.watch(lease.generation, 0, told.append)
        unwatch()
        unwatch()
        assert lease._timer is None
        clock.advance(TTL)
        await settle()
        assert told == []
        renew(lease, clock)
        lease.watch(lease.generation, 0, told.append)
        lease.end("over")
        assert lease._timer is None

    @on_a_loop
    async def test_of_two_watchers_the_one_whose_callback_takes_the_other_back_is_the_only_one_told(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []

        def only() -> None:
            told.append("told")
            for unwatch in unwatches:
                unwatch()

        unwatches = [lease.watch(lease.generation, 0, lambda _: only()) for _ in range(5)]
        lease.end("over")
        assert told == ["told"]

    @on_a_loop
    async def test_a_callback_that_ends_the_lease_does_not_tell_anybody_twice(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []

        def end(reason: str) -> None:
            told.append(reason)
            lease.end("ended by the first that was told")

        for _ in range(5):
            lease.watch(lease.generation, 0, end)
        clock.advance(TTL)
        await settle()
        assert len(told) == 5

    @on_a_loop
    async def test_a_later_watcher_with_more_grace_is_not_told_late(
        self, lease: Lease, clock: ManualClock
    ) -> None:
        renew(lease, clock)
        told: list[str] = []
        lease.watch(lease.generation, 0, lambda _: told.append("late"))
        await settle()
        lease.watch(lease.generation, 4, lambda _: told.append("early"))
        clock.advance(UNTIL - 3)
        await settle()
        assert told == ["early"]
