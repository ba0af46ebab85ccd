"""The same for asyncio: loops, cancelled tasks, blocks, on the memory backend."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from leadership.aio import Candidate, Follower, Store, Term, new_store
from leadership.clock import SystemClock
from leadership.errors import AlreadyRunning, HandleClosed, LeadershipLost, NotLeader

from .waiting import async_wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"

Scenario = Callable[[Store], Awaitable[Any]]


@asynccontextmanager
async def opened() -> AsyncIterator[Store]:
    async with new_store(f"memory://{uuid.uuid4()}") as store:
        yield store


def run(scenario: Scenario, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> Any:
    async def with_store() -> Any:
        async with opened() as store:
            return await scenario(store)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(with_store())


async def is_free(store: Store) -> bool:
    return await store.get(KEY) is None


async def until_free(store: Store) -> None:
    async with asyncio.timeout(10), store.watch(KEY) as states:
        async for pair in states:
            if pair is None:
                return


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_loop_alternates_and_a_break_releases(
    loop: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    async def scenario(store: Store) -> list[bool]:
        candidate = Candidate(store, KEY, "a", ttl=60)
        seen = []
        async for elected in candidate.run_for_election():
            seen.append(elected)
            if elected:
                if len(seen) > 3:
                    break
                assert await candidate.resign()
        await until_free(store)
        return seen

    assert run(scenario, loop) == [False, True, False, True]


def test_a_cancelled_task_withdraws_wherever_it_was() -> None:
    async def scenario(store: Store) -> None:
        for moment in ("waiting", "leading", "resigning"):
            leading = asyncio.Event()
            rival = Candidate(store, KEY, "rival", ttl=60)
            if moment == "waiting":
                await rival.campaign()
            candidate = Candidate(store, KEY, "a", ttl=60)

            async def loop(
                candidate: Candidate = candidate,
                leading: asyncio.Event = leading,
                moment: str = moment,
            ) -> None:
                async for elected in candidate.run_for_election():
                    if elected:
                        leading.set()
                        if moment == "resigning":
                            await candidate.resign()
                        await asyncio.Event().wait()

            task = asyncio.ensure_future(loop())
            if moment == "waiting":
                await async_wait_until(functools.partial(getattr, candidate, "_candidacy"))
            else:
                await leading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await rival.stop()
            await until_free(store)
            assert not candidate.is_leader()

    run(scenario)


def test_a_standing_that_a_time_out_swallowed_is_told_again() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        rival = Candidate(store, KEY, "b", ttl=60)
        term = await rival.campaign()
        standings = candidate.run_for_election()
        assert await anext(standings) is False
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(standings), 0.02)
        await term.resign()
        assert await asyncio.wait_for(anext(standings), 10) is True
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(standings), 0.02)
        assert candidate.is_leader()
        await candidate.stop()
        assert await anext(standings) is False
        with pytest.raises(StopAsyncIteration):
            await anext(standings)

    run(scenario)


def test_a_body_that_polls_for_more_is_still_waited_for() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        standings = candidate.run_for_election()
        assert [await anext(standings), await anext(standings)] == [False, True]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(standings), 0.02)
        # From outside: in a context that has nothing of the body's.
        resigning = asyncio.get_running_loop().create_task(
            candidate.resign(), context=contextvars.Context()
        )
        await async_wait_until(lambda: not candidate.is_leader())
        assert not await is_free(store), "released while the body was still at work"
        assert await anext(standings) is False
        assert await resigning is True
        await standings.close()

    run(scenario)


def test_a_first_call_that_was_cancelled_at_once_is_made_up_for() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        standings = candidate.run_for_election()
        for _ in range(2):
            first = asyncio.ensure_future(anext(standings))
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        async with asyncio.timeout(10):
            assert [await anext(standings), await anext(standings)] == [False, True]
        await standings.close()
        never = candidate.run_for_election()
        first = asyncio.ensure_future(anext(never))
        first.cancel()
        await asyncio.wait([first])
        del never, first
        async with candidate.campaign(timeout=10) as term:
            assert term.is_valid()

    run(scenario)


def test_a_block_as_leader_releases_and_a_cancelled_one_too() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        async with candidate.campaign(timeout=5) as term:
            assert isinstance(term, Term)
            assert candidate.is_leader()
        assert await is_free(store)

        async def block() -> None:
            async with candidate.campaign():
                leading.set()
                await asyncio.Event().wait()

        leading = asyncio.Event()
        task = asyncio.ensure_future(block())
        await leading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_free(store)

    run(scenario)


def test_a_campaign_that_is_cancelled_while_waiting_leaves_nothing() -> None:
    async def scenario(store: Store) -> None:
        term = await Candidate(store, KEY, "a", ttl=60).campaign()
        waiting = Candidate(store, KEY, "b", ttl=60)

        async def campaign() -> Term:
            return await waiting.campaign()

        task = asyncio.ensure_future(campaign())
        await async_wait_until(lambda: waiting._candidacy is not None)
        with pytest.raises(AlreadyRunning):
            await waiting.campaign()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await term.resign()
        assert await is_free(store)
        with pytest.raises(TimeoutError):
            async with Candidate(store, KEY, "c", ttl=60).campaign():
                await waiting.campaign(timeout=0.02)

    run(scenario)


def test_run_cancels_and_joins_the_work_before_the_release() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        free_at_the_end: list[bool] = []
        leading = asyncio.Event()

        async def work(term: Term) -> None:
            leading.set()
            try:
                await asyncio.Event().wait()
            finally:
                free_at_the_end.append(await is_free(store))

        running = asyncio.ensure_future(candidate.run(work))
        await leading.wait()
        await candidate.stop()
        await running
        assert free_at_the_end == [False]
        assert await is_free(store)

    run(scenario)


def test_stop_from_a_child_task_of_the_work_only_requests() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)

        async def work(term: Term) -> None:
            await asyncio.gather(candidate.resign(), candidate.stop())

        await asyncio.wait_for(candidate.run(work), 10)
        assert await is_free(store)

    run(scenario)


def test_an_error_of_the_work_is_raised_and_a_lost_term_is_not() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        terms: list[Term] = []

        async def work(term: Term) -> None:
            terms.append(term)
            if len(terms) == 2:
                raise ZeroDivisionError
            await store.delete(KEY)
            await term.wait_lost(10)
            term.check()

        with pytest.raises(ZeroDivisionError):
            await candidate.run(work)
        assert terms[1].token > terms[0].token
        with pytest.raises(LeadershipLost):
            terms[1].check()
        assert await is_free(store)

    run(scenario)


def test_a_blocked_event_loop_keeps_the_lease() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=0.5)
        async with candidate.campaign() as term:
            threading.Event().wait(1.5)
            assert term.is_valid()
            assert candidate.is_leader()

    run(scenario)


def test_followers_are_told_and_stop_ends_them() -> None:
    async def scenario(store: Store) -> None:
        follower = Follower(store, KEY)
        assert await follower.leader() is None
        with pytest.raises(TimeoutError, match="nobody led"):
            await follower.wait_for_leader(timeout=0.02)
        leaders = follower.follow_election()
        assert await anext(leaders) is None
        candidate = Candidate(store, KEY, "a", ttl=60)
        await candidate.campaign()
        assert await anext(leaders) == "a"
        assert await follower.leader(max_age=0) == "a"
        assert await follower.wait_for_leader() == "a"
        last = asyncio.ensure_future(anext(leaders))
        await follower.stop()
        with pytest.raises(StopAsyncIteration):
            await last
        await candidate.stop()

    run(scenario)


def test_the_store_awaited() -> None:
    async def scenario(store: Store) -> None:
        pair = await store.put("dir/a", "1")
        assert await store.get("dir/a") == pair
        assert await store.exists("dir/a")
        newer = await store.atomic_put("dir/a", b"2", pair)
        assert [each.key for each in await store.list("dir")] == ["dir/a"]
        await store.atomic_delete("dir/a", newer)
        assert not await store.delete("dir/a")
        async with store.watch_tree("dir") as trees:
            assert await anext(trees) == []
            await store.put("dir/b", "3")
            assert [each.value for each in await anext(trees)] == [b"3"]
        await store.delete_tree("dir")
        async with store.lock("lock", ttl=60) as lock:
            assert lock.is_held()
            assert lock.token is not None
            other = store.lock("lock", ttl=60)
            with pytest.raises(TimeoutError):
                await other.acquire(timeout=0.02)
            assert await other.release() is False
        assert not lock.is_held()
        await store.close()
        with pytest.raises(HandleClosed):
            await store.get("dir/a")

    run(scenario)


def test_proclaim_needs_leadership() -> None:
    async def scenario(store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        with pytest.raises(NotLeader):
            await candidate.proclaim("b")

    run(scenario)


def test_is_leader_takes_under_a_microsecond() -> None:
    async def scenario(store: Store) -> float:
        candidate = Candidate(store, KEY, "a", ttl=60)
        async with candidate.campaign():
            clock = SystemClock()
            best = 1.0
            for _ in range(20):
                began = clock.now()
                for _ in range(10_000):
                    candidate.is_leader()
                best = min(best, (clock.now() - began) / 10_000)
            return best

    assert run(scenario) < 3e-6, "ten times the bar would be a different design"
