"""The queue before ZooKeeper: no place is lost, and none is taken twice."""

from __future__ import annotations

import asyncio

import pytest

from leadership.backends._zookeeper_window import Window
from leadership.clock import ManualClock
from leadership.errors import StoreUnavailable

from .loops import on_a_loop, settle

LIMIT = 4.0


def window_of(places: int, clock: ManualClock, heard: list[float]) -> Window:
    return Window(places, clock, LIMIT, lambda: heard[-1], lambda: StoreUnavailable("silence"))


@on_a_loop
async def test_first_come_first_served() -> None:
    window = window_of(1, ManualClock(), [0.0])
    await window.acquire()
    order: list[int] = []

    async def enter(number: int) -> None:
        await window.acquire()
        order.append(number)

    waiting = [asyncio.ensure_future(enter(each)) for each in range(3)]
    await settle()
    assert order == []
    for served in range(3):
        window.release()
        await settle()
        assert order == list(range(served + 1))
    await asyncio.gather(*waiting)


@on_a_loop
async def test_who_gives_up_at_any_moment_leaves_its_place_to_the_next() -> None:
    window = window_of(1, ManualClock(), [0.0])
    await window.acquire()
    early, late, last = (asyncio.ensure_future(window.acquire()) for _ in range(3))
    await settle()
    early.cancel()
    await settle()
    window.release()
    # The place is given to it, and it is cancelled before it runs.
    late.cancel()
    for gone in (early, late):
        with pytest.raises(asyncio.CancelledError):
            await gone
    async with asyncio.timeout(10):
        await last
        window.release()
        await window.acquire()
    more = asyncio.ensure_future(window.acquire())
    await settle()
    assert not more.done(), "there is a place too many"
    more.cancel()


@on_a_loop
async def test_who_waits_gives_up_after_a_silence_and_not_while_the_server_answers() -> None:
    clock = ManualClock()
    heard = [clock.now()]
    window = window_of(1, clock, heard)
    await window.acquire()
    first = asyncio.ensure_future(window.acquire())
    await settle()
    for _ in range(10):
        clock.advance(1)
        heard.append(clock.now())
        await settle()
    late = asyncio.ensure_future(window.acquire())
    await settle()
    assert not first.done()
    for _ in range(int(LIMIT)):
        assert not first.done()
        clock.advance(1)
        await settle()
    for silent in (first, late):
        with pytest.raises(StoreUnavailable, match="silence"):
            await silent
    window.release()
    async with asyncio.timeout(10):
        await window.acquire()


@on_a_loop
async def test_who_came_during_the_silence_has_all_of_its_time() -> None:
    clock = ManualClock()
    window = window_of(1, clock, [clock.now()])
    await window.acquire()
    first = asyncio.ensure_future(window.acquire())
    await settle()
    clock.advance(LIMIT - 1)
    await settle()
    late = asyncio.ensure_future(window.acquire())
    await settle()
    clock.advance(1)
    await settle()
    assert first.done()
    assert not late.done()
    for _ in range(int(LIMIT)):
        clock.advance(1)
        await settle()
    assert late.done()
    for silent in (first, late):
        with pytest.raises(StoreUnavailable):
            await silent
