"""Outages are ridden out with growing, random waits; nothing else is."""

from __future__ import annotations

import asyncio
import random

import pytest

from leadership.clock import Clock, ManualClock, Timer
from leadership.errors import AccessDenied, ConfigurationError, StoreUnavailable
from leadership.retry import DEFAULT_RETRY, Retry, riding_out


class Fast(ManualClock):
    """Time passes as soon as somebody sleeps."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def outage(
    failures: int, retry: Retry | None, clock: Clock, held: float = 0.0
) -> tuple[str, list[tuple[int, float]]]:
    """What comes of a store that fails so often, and the troubles told."""
    told: list[tuple[int, float]] = []
    left = failures

    async def attempt() -> str:
        nonlocal left
        if held:
            await clock.sleep(held)
        if left:
            left -= 1
            raise StoreUnavailable("down")
        return "up"

    result = asyncio.run(
        riding_out(
            attempt,
            retry=retry,
            clock=clock,
            chance=random.Random(7),
            trouble=lambda error, count, pause: told.append((count, pause)),
        )
    )
    return result, told


def test_waits_grow_to_the_maximum_with_jitter() -> None:
    result, told = outage(12, Retry(initial=0.1, maximum=5.0), Fast())
    assert result == "up"
    assert [count for count, _ in told] == list(range(1, 13))
    pauses = [pause for _, pause in told]
    for number, pause in enumerate(pauses):
        ceiling = min(5.0, 0.1 * 2**number)
        assert ceiling / 2 <= pause <= ceiling
    assert len(set(pauses)) == len(pauses)


def test_an_attempt_that_held_for_long_begins_with_a_short_wait() -> None:
    _, told = outage(5, Retry(initial=0.1, maximum=5.0), Fast(), held=60.0)
    assert [count for count, _ in told] == [1] * 5


def test_a_thousand_failures_do_not_overflow() -> None:
    assert DEFAULT_RETRY.wait(10_000, random.Random(1)) <= DEFAULT_RETRY.maximum


def test_without_retry_the_first_failure_is_raised() -> None:
    with pytest.raises(StoreUnavailable):
        outage(1, None, Fast())


def test_a_refusal_is_not_ridden_out() -> None:
    async def refused() -> None:
        raise AccessDenied("no")

    with pytest.raises(AccessDenied):
        asyncio.run(
            riding_out(
                refused,
                retry=DEFAULT_RETRY,
                clock=Fast(),
                chance=random.Random(1),
                trouble=lambda *_: None,
            )
        )


@pytest.mark.parametrize(
    "wrong", [{"initial": 0}, {"initial": 6}, {"multiplier": 0.5}, {"maximum": 0.01}]
)
def test_durations_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="initial <= maximum"):
        Retry(**wrong)


def test_a_timer_is_a_clocks_business() -> None:
    async def scenario() -> Timer:
        return ManualClock().call_at(2000.0, lambda: None)

    asyncio.run(scenario()).cancel()
