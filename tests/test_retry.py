"""Riding out an outage: waits that grow, with jitter, and an end that is the store's answer."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest

from leadership.clock import ManualClock, SystemClock
from leadership.errors import AccessDenied, ConfigurationError, StoreUnavailable
from leadership.retry import Retry, riding_out

from .loops import on_a_loop, settle
from .waiting import async_wait_until


class Outage:
    """Fails so many times, and then answers; each attempt may take its time."""

    def __init__(self, failures: int, clock: ManualClock, takes: float = 0) -> None:
        self.failures = failures
        self.attempts: list[float] = []
        self.told: list[tuple[str, int, float]] = []
        self.recovered = 0
        self._clock = clock
        self._takes = takes

    async def attempt(self) -> str:
        self.attempts.append(self._clock.now())
        self._clock.advance(self._takes)
        if len(self.attempts) <= self.failures:
            raise StoreUnavailable(f"failure {len(self.attempts)}")
        return "answer"

    def trouble(self, error: StoreUnavailable, attempt: int, retry_in: float) -> None:
        assert not self.recovered
        self.told.append((str(error), attempt, retry_in))

    def over(self) -> None:
        self.recovered += 1

    async def ride(self, retry: Retry | None) -> str:
        return await riding_out(
            self.attempt,
            retry=retry,
            clock=self._clock,
            chance=random.Random(1),
            trouble=self.trouble,
            recovered=self.over,
        )

    async def ride_with_time(self, retry: Retry) -> str:
        """As `ride`, while the clock goes on as far as each wait asks for."""
        riding = asyncio.ensure_future(self.ride(retry))
        waits = 0
        while True:
            await settle()
            if riding.done():
                return await riding
            assert len(self.told) == waits + 1, "it waits without having told so"
            waits += 1
            self._clock.advance(self.told[-1][2])


class TestRetry:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"initial": 0},
            {"initial": -1},
            {"initial": 2, "maximum": 1},
            {"multiplier": 0.5},
            {"initial": float("nan")},
            {"maximum": float("nan")},
        ],
    )
    def test_what_contradicts_itself_is_refused_with_advice(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError, match="give 0 < initial <= maximum"):
            Retry(**wrong)

    def test_the_waits_grow_with_jitter_up_to_the_maximum(self) -> None:
        retry = Retry(initial=0.1, maximum=3.0, multiplier=2.0)
        chance = random.Random(7)
        for failures, ceiling in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.0), (10_000, 3.0)):
            waits = [retry.wait(failures, chance) for _ in range(200)]
            assert ceiling / 2 <= min(waits) < 0.6 * ceiling
            assert 0.9 * ceiling < max(waits) <= ceiling


class TestRidingOut:
    @on_a_loop
    async def test_a_first_answer_is_given_at_once_and_no_trouble_told(self) -> None:
        outage = Outage(0, ManualClock())
        assert await outage.ride(Retry()) == "answer"
        assert outage.told == []

    @on_a_loop
    async def test_it_tries_until_there_is_an_answer_and_tells_each_failure(self) -> None:
        outage = Outage(4, ManualClock())
        assert await outage.ride_with_time(Retry(initial=1, maximum=100)) == "answer"
        assert [(error, attempt) for error, attempt, _ in outage.told] == [
            (f"failure {number}", number) for number in range(1, 5)
        ]
        for number, (_, _, retry_in) in enumerate(outage.told):
            assert 2**number / 2 <= retry_in <= 2**number
        waited = [
            later - earlier
            for earlier, later in zip(outage.attempts, outage.attempts[1:], strict=False)
        ]
        assert waited == pytest.approx([retry_in for _, _, retry_in in outage.told])

    @on_a_loop
    async def test_who_waits_for_long_holds_on_to_nothing_of_what_failed_before(self) -> None:
        held: list[weakref.ref[Outage]] = []
        answer = asyncio.Event()

        async def attempt() -> None:
            local = Outage(0, ManualClock())
            held.append(weakref.ref(local))
            if len(held) <= 2:
                raise StoreUnavailable("a failure")
            await answer.wait()

        riding = asyncio.ensure_future(
            riding_out(
                attempt,
                retry=Retry(initial=0.001, maximum=0.001),
                clock=SystemClock(),
                chance=random.Random(1),
                trouble=lambda error, attempt, retry_in: None,
            )
        )
        await async_wait_until(lambda: len(held) == 3, 10, "the third attempt")
        gc.collect()
        assert [each() is None for each in held] == [True, True, False]
        answer.set()
        await riding

    @pytest.mark.parametrize(("failures", "told"), [(0, 0), (1, 1), (4, 1)])
    @on_a_loop
    async def test_the_end_of_an_outage_is_told_once_and_only_of_an_outage(
        self, failures: int, told: int
    ) -> None:
        outage = Outage(failures, ManualClock())
        await outage.ride_with_time(Retry())
        assert outage.recovered == told

    @on_a_loop
    async def test_it_does_not_try_before_the_wait_is_over(self) -> None:
        clock = ManualClock()
        outage = Outage(1, clock)
        riding = asyncio.ensure_future(outage.ride(Retry(initial=1)))
        await settle()
        clock.advance(outage.told[0][2] * 0.99)
        await settle()
        assert len(outage.attempts) == 1
        clock.advance(1)
        assert await riding == "answer"

    @on_a_loop
    async def test_without_a_retry_the_first_failure_is_raised(self) -> None:
        outage = Outage(1, ManualClock())
        with pytest.raises(StoreUnavailable, match="failure 1"):
            await outage.ride(None)
        assert outage.told == []

    @on_a_loop
    async def test_another_error_is_raised_as_it_is(self) -> None:
        async def denied() -> None:
            raise AccessDenied("no")

        told: list[object] = []
        with pytest.raises(AccessDenied, match="no"):
            await riding_out(
                denied,
                retry=Retry(),
                clock=ManualClock(),
                chance=random.Random(),
                trouble=lambda *what: told.append(what),
            )
        assert told == []

    @on_a_loop
    async def test_after_an_attempt_that_held_for_long_the_waits_begin_short_again(self) -> None:
        # A campaign that waited for hours in the queue was no failure to connect.
        outage = Outage(3, ManualClock(), takes=3600)
        assert await outage.ride_with_time(Retry(initial=1, maximum=100)) == "answer"
        assert [attempt for _, attempt, _ in outage.told] == [1, 1, 1]
        assert all(retry_in <= 1 for _, _, retry_in in outage.told)

    @on_a_loop
    async def test_a_cancelled_wait_tries_no_more(self) -> None:
        clock = ManualClock()
        outage = Outage(5, clock)
        riding = asyncio.ensure_future(outage.ride(Retry()))
        await settle()
        riding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await riding
        clock.advance(100)
        await settle()
        assert len(outage.attempts) == 1
