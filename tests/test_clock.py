"""Clocks and their timers: the machine's, and the one that tests move."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from leadership.clock import ManualClock, SystemClock

from .loops import on_a_loop, settle
from .waiting import async_wait_until

ONE_CLOCK_WENT_ON = """
import time
time.clock_gettime = lambda which: 1000.0 if which == time.CLOCK_BOOTTIME else 1.0
from leadership.clock import SystemClock
assert SystemClock().now() == 1000
"""


class TestSystemClock:
    def test_it_counts_suspend_where_the_platform_can(self) -> None:
        clock = SystemClock()
        if hasattr(time, "CLOCK_BOOTTIME"):
            assert clock.name == "CLOCK_BOOTTIME"
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            assert before <= clock.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)
            # On a machine that never slept all its clocks say the same.
            subprocess.run([sys.executable, "-c", ONE_CLOCK_WENT_ON], check=True, timeout=30)
        else:
            assert clock.name in ("CLOCK_MONOTONIC", "time.monotonic")

    @on_a_loop
    async def test_a_timer_fires_not_before_its_time(self) -> None:
        clock = SystemClock()
        fired: list[float] = []
        when = clock.now() + 0.05
        clock.call_at(when, lambda: fired.append(clock.now()))
        await async_wait_until(lambda: fired)
        assert fired[0] >= when

    @on_a_loop
    async def test_timers_fire_in_the_order_of_their_moments(self) -> None:
        clock = SystemClock()
        fired: list[str] = []
        now = clock.now()
        clock.call_at(now + 0.04, lambda: fired.append("second"))
        clock.call_at(now + 0.02, lambda: fired.append("first"))
        clock.call_at(now - 1, lambda: fired.append("at once"))
        await async_wait_until(lambda: len(fired) == 3)
        assert fired == ["at once", "first", "second"]

    @on_a_loop
    async def test_a_timer_of_a_moment_passed_fires_at_once_but_not_inside_the_call(self) -> None:
        clock = SystemClock()
        fired = asyncio.Event()
        clock.call_at(clock.now() - 1, fired.set)
        assert not fired.is_set()
        await fired.wait()

    @on_a_loop
    async def test_a_cancelled_timer_does_not_fire(self) -> None:
        clock = SystemClock()
        fired: list[str] = []
        early = clock.call_at(clock.now() + 0.01, lambda: fired.append("early"))
        now = clock.call_at(clock.now(), lambda: fired.append("now"))
        early.cancel()
        now.cancel()
        clock.call_at(clock.now() + 0.05, lambda: fired.append("late"))
        await async_wait_until(lambda: fired)
        assert fired == ["late"]

    @on_a_loop
    async def test_a_timer_looks_at_the_clock_and_not_at_the_loops_own_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A machine that slept: the clock has gone on, the loop's time has not.
        clock = SystemClock()
        slept = [0.0]
        read = clock.now
        monkeypatch.setattr(clock, "now", lambda: read() + slept[0])
        fired = asyncio.Event()
        clock.call_at(clock.now() + 3600, fired.set)
        slept[0] = 3600
        await fired.wait()


class TestManualClock:
    def test_it_stands_still_until_it_is_moved(self) -> None:
        clock = ManualClock(start=50)
        assert clock.now() == clock.now() == 50
        clock.advance(1.5)
        assert clock.now() == 51.5

    @on_a_loop
    async def test_advance_fires_in_the_order_of_time_what_is_due_and_nothing_else(self) -> None:
        clock = ManualClock()
        fired: list[str] = []
        for seconds, name in ((3, "c"), (1, "a"), (2, "b"), (2, "b2")):
            clock.call_at(clock.now() + seconds, lambda name=name: fired.append(name))  # type: ignore[misc]
        clock.advance(0.99)
        await settle()
        assert fired == []
        clock.advance(1.01)
        await settle()
        assert fired == ["a", "b", "b2"]
        clock.advance(1)
        await settle()
        assert fired == ["a", "b", "b2", "c"]

    @on_a_loop
    async def test_a_timer_of_a_moment_passed_fires_at_once(self) -> None:
        clock = ManualClock()
        fired: list[str] = []
        clock.call_at(clock.now(), lambda: fired.append("now"))
        clock.call_at(clock.now() - 1, lambda: fired.append("before"))
        assert fired == []
        await settle()
        assert fired == ["now", "before"]

    @on_a_loop
    async def test_a_cancelled_timer_does_not_fire_also_when_it_was_due(self) -> None:
        clock = ManualClock()
        fired: list[str] = []
        late = clock.call_at(clock.now() + 1, lambda: fired.append("late"))
        due = clock.call_at(clock.now(), lambda: fired.append("due"))
        due.cancel()
        clock.advance(2)
        late.cancel()
        await settle()
        assert fired == []

    @on_a_loop
    async def test_another_thread_may_move_it(self) -> None:
        clock = ManualClock()
        sleeping = asyncio.ensure_future(clock.sleep(5))
        await settle()
        mover = threading.Thread(target=clock.advance, args=[5])
        mover.start()
        await sleeping
        mover.join()

    def test_a_loop_that_is_gone_does_not_hinder_it(self) -> None:
        clock = ManualClock()

        async def leave_a_timer() -> None:
            clock.call_at(clock.now() + 1, lambda: None)

        asyncio.run(leave_a_timer())
        clock.advance(2)


class TestWaiting:
    @on_a_loop
    async def test_sleep_lasts_until_the_clock_has_gone_on_by_so_much(self) -> None:
        clock = ManualClock()
        sleeping = asyncio.ensure_future(clock.sleep(2))
        await settle()
        clock.advance(1.9)
        await settle()
        assert not sleeping.done()
        clock.advance(0.2)
        await sleeping

    @on_a_loop
    async def test_wait_for_says_whether_the_event_came(self) -> None:
        clock = ManualClock()
        event = asyncio.Event()
        waiting = asyncio.ensure_future(clock.wait_for(event.wait(), clock.now() + 1))
        await settle()
        event.set()
        assert await waiting is True

        late = asyncio.ensure_future(clock.wait_for(asyncio.Event().wait(), clock.now() + 1))
        await settle()
        assert not late.done()
        clock.advance(1)
        assert await late is False

    @on_a_loop
    async def test_wait_for_without_an_end_waits_for_the_event_alone(self) -> None:
        event = asyncio.Event()
        waiting = asyncio.ensure_future(ManualClock().wait_for(event.wait(), float("inf")))
        await settle()
        event.set()
        assert await waiting is True

    @on_a_loop
    async def test_wait_for_raises_what_the_event_raised(self) -> None:
        async def broken() -> None:
            raise ZeroDivisionError

        clock = ManualClock()
        with pytest.raises(ZeroDivisionError):
            await clock.wait_for(broken(), clock.now() + 1)

    @on_a_loop
    async def test_what_did_not_come_in_time_has_ended_when_wait_for_returns(self) -> None:
        clock = ManualClock()
        ended: list[bool] = []

        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await settle()
                ended.append(True)

        waiting = asyncio.ensure_future(clock.wait_for(slow(), clock.now() + 1))
        await settle()
        clock.advance(1)
        assert await waiting is False
        assert ended == [True]

    @on_a_loop
    async def test_a_cancelled_wait_leaves_no_timer_and_no_task(self) -> None:
        clock = ManualClock()
        waiting = asyncio.ensure_future(clock.wait_for(asyncio.Event().wait(), clock.now() + 1))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 1
