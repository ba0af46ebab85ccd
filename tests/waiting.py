"""Waiting for something to become true: the one place in the tests that sleeps."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.005

# Ten times what is usual: the tests run on two busy cores.
DEADLINE = 10.0


class NotInTimeError(AssertionError):
    """What a test waited for did not happen before the deadline."""


def _not_in_time(what: str, timeout: float, last: object) -> NotInTimeError:
    return NotInTimeError(f"not within {timeout:g} s: {what} (last seen: {last!r})")


def wait_until(
    predicate: Callable[[], T | None], timeout: float = DEADLINE, what: str = "the condition"
) -> T:
    """Poll ``predicate`` until it returns something true, and return that.

    ``what`` completes the sentence "not within 10 s: ...". The predicate is asked once
    more after the deadline, so that a test process that was held up is not blamed on it.
    """
    deadline = time.monotonic() + timeout
    while True:
        expired = time.monotonic() >= deadline
        result = predicate()
        if result:
            return result
        if expired:
            raise _not_in_time(what, timeout, result)
        time.sleep(_INTERVAL)


async def async_wait_until(
    predicate: Callable[[], T | None], timeout: float = DEADLINE, what: str = "the condition"
) -> T:
    """:func:`wait_until` that lets the event loop run in between."""
    deadline = time.monotonic() + timeout
    while True:
        expired = time.monotonic() >= deadline
        result = predicate()
        if result:
            return result
        if expired:
            raise _not_in_time(what, timeout, result)
        await asyncio.sleep(_INTERVAL)
