"""The queue before ZooKeeper: no place is lost, and none is taken twice."""

from __future__ import annotations

import asyncio

import pytest

from leadership.backends._zookeeper_window import Window

from .loops import on_a_loop, settle


@on_a_loop
async def test_first_come_first_served() -> None:
    window = Window(1)
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
    window = Window(1)
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
