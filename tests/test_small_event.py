"""The small event does what `asyncio.Event` does."""

from __future__ import annotations

import asyncio
import sys

import pytest

from leadership.small_event import SmallEvent

from .loops import on_a_loop, settle


@on_a_loop
async def test_set_wakes_all_who_wait_and_lets_pass_who_comes() -> None:
    event = SmallEvent()
    waiting = [asyncio.ensure_future(event.wait()) for _ in range(3)]
    await settle()
    assert not event.is_set()
    assert not any(each.done() for each in waiting)
    event.set()
    assert event.is_set()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
        await event.wait()


@on_a_loop
async def test_who_comes_after_it_was_cleared_waits_and_who_was_woken_stays_so() -> None:
    event = SmallEvent()
    before = event.wait()
    event.set()
    event.clear()
    after = event.wait()
    async with asyncio.timeout(10):
        await before
    assert not after.done()
    event.set()
    assert after.done()


@on_a_loop
async def test_who_gave_up_wakes_nobody_and_is_forgotten() -> None:
    event = SmallEvent()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await event.wait()
    staying = event.wait()
    assert event._waiting == (staying,)
    event.wait().cancel()
    event.set()
    async with asyncio.timeout(10):
        await staying


def test_while_nobody_waits_it_is_small() -> None:
    assert sys.getsizeof(SmallEvent()) < 100
