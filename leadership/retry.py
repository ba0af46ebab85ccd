"""Riding out a store's outages: when to try again. tenacity drives, `Retry` decides."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from .clock import Clock
from .errors import ConfigurationError, StoreUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with jitter, without end.

    Args:
        initial: seconds before the second try, at most.
        maximum: seconds between two tries, at most.
        multiplier: how the wait grows.
    """

    initial: float = 0.1
    maximum: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum and self.multiplier >= 1):
            raise ConfigurationError(
                f"{self}: give 0 < initial <= maximum (seconds) and multiplier >= 1"
            )

    def wait(self, failures: int, chance: random.Random) -> float:
        """Seconds to wait after so many failures in a row."""
        # A large exponent overflows a float long after the maximum is reached.
        ceiling = min(self.maximum, self.initial * self.multiplier ** min(failures - 1, 64))
        return chance.uniform(ceiling / 2, ceiling)


DEFAULT_RETRY = Retry()

Trouble = Callable[[StoreUnavailable, int, float], None]
"""Is told of each failure: the error, how many in a row, seconds until the next try."""


async def riding_out(
    attempt: Callable[[], Awaitable[T]],
    *,
    retry: Retry | None,
    clock: Clock,
    chance: random.Random,
    trouble: Trouble,
    recovered: Callable[[], None] = lambda: None,
) -> T:
    """Call `attempt` until it does not raise `StoreUnavailable`; with `retry=None` once.

    Args:
        trouble: is told of each failure, before the wait that follows it.
        recovered: is told when an attempt succeeded after others had failed.
    """
    if retry is None:
        return await attempt()
    begun = clock.now()
    try:
        # Nearly always the only one, and each hand-over waits for it: without the driver's cost.
        return await attempt()
    except StoreUnavailable as error:
        # In a list that is emptied: who waits for days is not to hold on to what failed before.
        failed = [error]
    result = await _attempts(attempt, failed, begun, retry, clock, chance, trouble)
    recovered()
    return result


async def _attempts(
    attempt: Callable[[], Awaitable[T]],
    failed: list[StoreUnavailable],
    begun: float,
    retry: Retry,
    clock: Clock,
    chance: random.Random,
    trouble: Trouble,
) -> T:
    """All but the first, which was begun at `begun` and has failed."""
    failures = 0

    async def again() -> T:
        nonlocal begun
        if failed:
            raise failed.pop()
        begun = clock.now()
        return await attempt()

    def wait(state: tenacity.RetryCallState) -> float:
        nonlocal failures
        # An attempt that held for long (a campaign waits for hours) was no
        # failure to connect: begin again with a short wait.
        failures = 1 if clock.now() - begun > 2 * retry.maximum else failures + 1
        return retry.wait(failures, chance)

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        assert isinstance(error, StoreUnavailable)
        trouble(error, failures, pause)

    driver = tenacity.AsyncRetrying(
        sleep=clock.sleep,
        wait=wait,
        retry=tenacity.retry_if_exception_type(StoreUnavailable),
        before_sleep=tell,
    )
    result: T = await driver(again)
    return result
