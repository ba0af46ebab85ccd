"""The leader's code is joined before anybody else may lead, whoever asks and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import linecache
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import CodeType, FrameType
from typing import Any

import pytest

from leadership import Candidate, Store, Term, aio, new_store
from leadership.candidate import Campaigner
from leadership.election import Candidacy
from leadership.errors import AlreadyRunning, LeadershipError, StoreUnavailable
from leadership.events import Event, LeaseRenewed, WorkOverran
from leadership.faults import FaultyBackend
from leadership.testing import ManualClock

from .waiting import async_wait_until, wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def store(events: list[Event]) -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}", hooks=[events.append]) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def free(store: Store) -> bool:
    return store.get(KEY) is None


class Body:
    """A loop in a thread of its own, whose body works as leader until it may go on."""

    def __init__(self, candidate: Candidate, pool: ThreadPoolExecutor) -> None:
        self.candidate = candidate
        self.elections = candidate.run_for_election()
        self.working = threading.Event()
        self.may_end = threading.Event()
        self.believed: list[bool] = []
        self.loop = pool.submit(self._run)

    def _run(self) -> None:
        for elected in self.elections:
            if elected:
                self.working.set()
                self.may_end.wait(30)
                self.believed.append(self.candidate.is_leader())


WAYS_TO_END: dict[str, Callable[[Body, Store], object]] = {
    "resign": lambda body, store: body.candidate.resign(),
    "stop": lambda body, store: body.candidate.stop(),
    "close": lambda body, store: body.elections.close(),
    "exit": lambda body, store: body.elections.__exit__(None, None, None),
    "store": lambda body, store: store.close(),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_another_thread_waits_for_the_body(pool: ThreadPoolExecutor, way: str) -> None:
    name = f"memory://{uuid.uuid4()}"
    with new_store(name) as own, new_store(name) as other:
        body = Body(Candidate(own, KEY, "a", ttl=60), pool)
        assert body.working.wait(10)
        ending = pool.submit(WAYS_TO_END[way], body, own)
        wait_until(lambda: not body.candidate.is_leader(), 10, "the end of the term")
        with pytest.raises(TimeoutError):
            Candidate(other, KEY, "b", ttl=60).campaign(timeout=0.1)
        assert not ending.done()
        body.may_end.set()
        ending.result(10)
        wait_until(lambda: other.get(KEY) is None, 10, "the release")
        body.elections.close()
        body.loop.result(10)


def test_after_a_stop_that_the_body_outlasted_it_may_not_run_again(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    candidate = Candidate(store, KEY, "a", ttl=0.5)
    body = Body(candidate, pool)
    assert body.working.wait(10)
    candidate.stop()
    with pytest.raises(AlreadyRunning, match="code that led still runs"):
        candidate.campaign()
    body.may_end.set()
    body.loop.result(10)
    assert body.believed == [False]
    with candidate.campaign(timeout=10) as term:
        assert term.is_valid()


def test_work_that_is_told_to_end_gets_no_more_time_by_a_renewal(
    pool: ThreadPoolExecutor, events: list[Event]
) -> None:
    clock = ManualClock()
    name = f"memory://{uuid.uuid4()}"
    with new_store(name, clock=clock, hooks=[events.append]) as store:
        body = Body(Candidate(store, KEY, "a", ttl=60), pool)
        assert body.working.wait(10)
        term = body.candidate.term
        assert term is not None
        resigning = pool.submit(body.candidate.resign)
        assert term.wait_lost(10)
        until = term.valid_until
        clock.advance(30)
        # The entry is kept alive for as long as the work may go on.
        renewed = wait_until(
            lambda: [each.valid_until for each in events if isinstance(each, LeaseRenewed)],
            10,
            "a renewal",
        )
        assert renewed[0] > until
        assert term.valid_until == until
        clock.advance(until - clock.now())
        assert resigning.result(10) is True
        wait_until(lambda: free(store), 10, "the end of the entry at the deadline")
        body.may_end.set()
        body.elections.close()
        body.loop.result(10)


def test_a_block_ends_only_its_own_work(store: Store, pool: ThreadPoolExecutor) -> None:
    candidate = Candidate(store, KEY, "a", ttl=60)
    term = candidate.campaign()
    entered, may_end = threading.Event(), threading.Event()

    def block() -> None:
        with term:
            entered.set()
            may_end.wait(30)

    with term:
        other = pool.submit(block)
        assert entered.wait(10)
        threading.Timer(0.2, may_end.set).start()
    assert may_end.is_set(), "released under the other thread's block"
    other.result(10)
    assert free(store)


def test_a_block_whose_thread_has_ended_is_still_a_block(pool: ThreadPoolExecutor) -> None:
    """As where a web framework enters and leaves it by jobs of a pool."""
    name = f"memory://{uuid.uuid4()}"
    with new_store(name) as own, new_store(name) as other:
        candidate = Candidate(own, KEY, "a", ttl=60)
        term = candidate.campaign()
        with ThreadPoolExecutor(1) as short_lived:
            short_lived.submit(term.__enter__).result()
        resigning = pool.submit(candidate.resign)
        wait_until(lambda: not candidate.is_leader(), 10, "the end of the term")
        with pytest.raises(TimeoutError):
            Candidate(other, KEY, "b", ttl=60).campaign(timeout=0.1)
        term.__exit__(None, None, None)
        assert resigning.result(10) is True
        assert free(other)


def test_a_block_that_outlasts_its_loop_keeps_the_candidate_from_running_again(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    candidate = Candidate(store, KEY, "a", ttl=0.5)
    entered, may_end = threading.Event(), threading.Event()
    elections = candidate.run_for_election()
    assert [next(elections), next(elections)] == [False, True]
    term = candidate.term
    assert term is not None

    def block() -> None:
        with term:
            entered.set()
            may_end.wait(30)

    blocked = pool.submit(block)
    assert entered.wait(10)
    del elections
    wait_until(lambda: not candidate.is_leader(), 10, "the end of the loop")
    with pytest.raises(AlreadyRunning, match="code that led still runs"):
        candidate.campaign()
    may_end.set()
    blocked.result(10)
    with candidate.campaign(timeout=10) as newer:
        assert newer.token > term.token


def test_a_signal_handler_that_stops_does_not_release_under_the_body() -> None:
    name = f"memory://{uuid.uuid4()}"
    with new_store(name) as own, new_store(name) as other:
        candidate = Candidate(own, KEY, "a", ttl=60)

        class Handler:
            def __call__(self, number: int, frame: FrameType | None, act: Any = None) -> None:
                candidate.stop()

        handlers: list[Any] = [Handler(), functools.partial(Handler(), act=1)]
        handlers.append(lambda *_: candidate.stop())
        for handler in handlers:
            before = signal.signal(signal.SIGTERM, handler)
            try:
                for elected in candidate.run_for_election():
                    if elected:
                        signal.raise_signal(signal.SIGTERM)
                        # As after any signal the body goes on here.
                        assert not candidate.is_leader()
                        with pytest.raises(TimeoutError):
                            Candidate(other, KEY, "b", ttl=60).campaign(timeout=0.1)
            finally:
                signal.signal(signal.SIGTERM, before)
            assert free(other)


def test_a_loop_that_was_stopped_in_its_body_ends_when_the_key_is_free(store: Store) -> None:
    candidate = Candidate(store, KEY, "a", ttl=60)
    faults = FaultyBackend.under(store)
    for elected in candidate.run_for_election():
        if elected:
            # The release needs a second request, a while after the first.
            faults.refuse("atomic_delete", StoreUnavailable("for the test"))
            threading.Thread(target=candidate.stop).start()
            wait_until(lambda: not candidate.is_leader(), 10, "the stop")
    assert free(store)


def test_a_block_inside_a_function_does_not_end_the_function(store: Store) -> None:
    candidate = Candidate(store, KEY, "a", ttl=60)
    free_while_working = []

    def work(term: Term) -> None:
        with term:
            pass
        free_while_working.append(free(store))
        candidate.stop()

    candidate.run(work)
    assert free_while_working == [False]
    assert free(store)


def test_a_function_that_closes_the_store_is_not_waited_for(pool: ThreadPoolExecutor) -> None:
    store = new_store(f"memory://{uuid.uuid4()}")
    candidate = Candidate(store, KEY, "a", ttl=60)
    candidate_ended = pool.submit(candidate.run, lambda term: store.close())
    with contextlib.suppress(LeadershipError):
        candidate_ended.result(10)
    store.close()


def test_close_before_the_first_next_has_begun_is_not_lost(store: Store) -> None:
    candidate = Candidate(store, KEY, "a", ttl=60)
    elections = candidate.run_for_election()
    begin = candidate._new_candidacy

    def closed_meanwhile(made: list[Candidacy], *, single: bool) -> Candidacy:
        elections.close()
        return begin(made, single=single)

    candidate._new_candidacy = closed_meanwhile  # type: ignore[method-assign]
    assert list(elections) == []
    assert free(store)
    candidate.run_for_election().close()


def test_work_that_ends_when_the_store_says_so_has_not_overrun(
    store: Store, events: list[Event], pool: ThreadPoolExecutor
) -> None:
    for _ in range(20):
        candidate = Candidate(store, KEY, "a", ttl=5)
        working, ended = threading.Event(), threading.Event()

        def work(
            term: Term,
            working: threading.Event = working,
            ended: threading.Event = ended,
        ) -> None:
            working.set()
            term.wait_lost()
            ended.set()

        running = pool.submit(candidate.run, work)
        assert working.wait(10)
        store.delete(KEY)
        assert ended.wait(10)
        candidate.stop()
        running.result(10)
    assert not [event for event in events if isinstance(event, WorkOverran)]


def test_the_watchdog_sees_a_campaign_without_a_block(store: Store) -> None:
    term = Candidate(store, KEY, "a", ttl=60, watchdog=0.2).campaign()
    assert term.wait_lost(10)
    assert "watchdog" in (term.reason or "")


# --- exceptions that come from outside, at any line ---


class Interrupt(BaseException):
    """What a signal handler may raise between any two lines."""


class Interrupter:
    """Raises `Interrupt` at the n-th line of a function's next call.

    Not at a bare `try:`, where no call ends and so no signal's handler ever runs.
    """

    def __init__(self, code: CodeType, line: int) -> None:
        self._code = code
        self._left = line
        self.raised = False

    def __enter__(self) -> Interrupter:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._on_line if frame.f_code is self._code else None

    def _on_line(self, frame: FrameType, event: str, argument: object) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not self.raised and line.strip() != "try:":
            self._left -= 1
            if self._left == 0:
                self.raised = True
                raise Interrupt
        return self._on_line


def at_every_line(code: CodeType, scenario: Callable[[], object]) -> None:
    """Run `scenario` once for each line of `code`, with an interrupt there; it asserts itself."""
    lines = 0
    while True:
        with Interrupter(code, lines + 1) as interrupter, contextlib.suppress(Interrupt):
            scenario()
        if not interrupter.raised:
            break
        lines += 1
    assert lines >= 2, "the function was not reached"


def until_nothing_is_left(store: Store, candidate: Candidate) -> None:
    wait_until(lambda: free(store), 10, "the release")
    assert not candidate.is_leader()


@pytest.mark.parametrize("function", ["__enter__", "__exit__"])
def test_a_block_that_is_interrupted_at_any_line_releases(store: Store, function: str) -> None:
    def scenario() -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        try:
            with candidate.campaign():
                pass
        finally:
            sys.settrace(None)
            until_nothing_is_left(store, candidate)

    at_every_line(getattr(Term, function).__code__, scenario)


def test_a_campaign_that_is_interrupted_at_any_line_releases(store: Store) -> None:
    def scenario() -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        try:
            candidate.campaign()
        except Interrupt:
            sys.settrace(None)
            until_nothing_is_left(store, candidate)
            raise
        candidate.stop()

    at_every_line(Campaigner._campaign.__code__, scenario)


def test_a_time_out_that_is_interrupted_at_any_line_withdraws(store: Store) -> None:
    def scenario() -> None:
        with Candidate(store, KEY, "rival", ttl=60).campaign():
            candidate = Candidate(store, KEY, "a", ttl=60)
            try:
                with contextlib.suppress(TimeoutError):
                    candidate.campaign(timeout=0.02)
            finally:
                sys.settrace(None)
                left = candidate._candidacy
        if left is not None and left._drive_task is not None:
            wait_until(lambda: left.withdrawn, 10, "the withdrawal")
        until_nothing_is_left(store, candidate)

    at_every_line(Campaigner._campaign.__code__, scenario)


@pytest.mark.parametrize("function", ["_leave", "_stop"])
def test_a_way_out_that_is_interrupted_at_any_line_withdraws(store: Store, function: str) -> None:
    def scenario() -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        try:
            if function == "_leave":
                candidate.run(lambda term: candidate.stop())
            else:
                candidate.campaign()
                candidate.stop()
        finally:
            sys.settrace(None)
            until_nothing_is_left(store, candidate)

    at_every_line(getattr(Campaigner, function).__code__, scenario)


# --- asyncio ---


@contextlib.asynccontextmanager
async def two_stores() -> AsyncIterator[tuple[aio.Store, aio.Store]]:
    name = f"memory://{uuid.uuid4()}"
    async with aio.new_store(name) as own, aio.new_store(name) as other:
        yield own, other


async def is_free(store: aio.Store) -> bool:
    return await store.get(KEY) is None


async def until_free(store: aio.Store) -> None:
    async with asyncio.timeout(10), store.watch(KEY) as states:
        async for pair in states:
            if pair is None:
                return


class AsyncBody:
    """`Body`, as a task."""

    def __init__(
        self,
        candidate: aio.Candidate,
        started: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.candidate = candidate
        self.elections = candidate.run_for_election()
        self.working = asyncio.Event()
        self.may_end = asyncio.Event()
        self.started: asyncio.Future[object] | None = None
        self._start = started
        self.loop = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for elected in self.elections:
            if elected:
                if self._start is not None:
                    self.started = asyncio.ensure_future(self._start())
                self.working.set()
                await self.may_end.wait()


ASYNC_WAYS_TO_END: dict[str, Callable[[AsyncBody, aio.Store], Awaitable[object]]] = {
    "resign": lambda body, store: body.candidate.resign(),
    "stop": lambda body, store: body.candidate.stop(),
    "close": lambda body, store: body.elections.close(),
    "exit": lambda body, store: body.elections.__aexit__(None, None, None),
    "store": lambda body, store: store.close(),
}


@pytest.mark.parametrize("way", ASYNC_WAYS_TO_END)
@pytest.mark.parametrize("child", [False, True], ids=["stranger", "child of the body"])
def test_another_task_does_not_release_under_the_body(way: str, child: bool) -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            candidate = aio.Candidate(own, KEY, "a", ttl=60)

            async def end() -> object:
                return await ASYNC_WAYS_TO_END[way](body, own)

            body = AsyncBody(candidate, end if child else None)
            await asyncio.wait_for(body.working.wait(), 10)
            ending = body.started or asyncio.ensure_future(end())
            await async_wait_until(lambda: not candidate.is_leader(), 10, "the end of the term")
            with pytest.raises(TimeoutError):
                await aio.Candidate(other, KEY, "b", ttl=60).campaign(timeout=0.1)
            assert ending.done() == child, "what the body has started only requests"
            body.may_end.set()
            await asyncio.wait_for(ending, 10)
            await until_free(other)
            await asyncio.wait_for(body.elections.close(), 10)
            await asyncio.wait([body.loop], timeout=10)

    asyncio.run(scenario())


def test_a_thread_that_the_body_has_started_only_requests() -> None:
    async def scenario() -> None:
        with new_store(f"memory://{uuid.uuid4()}") as store:
            candidate = Candidate(store, KEY, "a", ttl=60)
            for elected in candidate.run_for_election():
                if elected:
                    assert await asyncio.to_thread(candidate.resign) is True
                    assert not candidate.is_leader()
                    assert not free(store), "released under the body"
                    break
            await async_wait_until(lambda: free(store), 10, "the release")

    asyncio.run(scenario())


def test_the_body_itself_may_close_in_a_task_of_its_own() -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            elections = aio.Candidate(own, KEY, "a", ttl=60).run_for_election()
            async for elected in elections:
                if elected:
                    break
            await asyncio.wait_for(elections.close(), 10)
            assert await is_free(other)

    asyncio.run(scenario())


def test_a_block_that_another_task_leaves_is_over() -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            stack = contextlib.AsyncExitStack()
            campaign = aio.Candidate(own, KEY, "a", ttl=60).campaign()
            await asyncio.create_task(stack.enter_async_context(campaign))
            async with asyncio.timeout(10):
                await asyncio.create_task(stack.aclose())
            assert await is_free(other)

    asyncio.run(scenario())


def test_a_block_that_has_resigned_does_not_end_anothers_block() -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            candidate = aio.Candidate(own, KEY, "a", ttl=60)
            entered, may_end = asyncio.Event(), asyncio.Event()

            async def helper(term: aio.Term) -> None:
                async with term:
                    entered.set()
                    await may_end.wait()

            async def leader() -> asyncio.Task[None]:
                async with candidate.campaign() as term:
                    helping = asyncio.create_task(helper(term))
                    await entered.wait()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await candidate.resign()
                    loop.call_later(0.2, may_end.set)
                return helping

            loop = asyncio.get_running_loop()
            leading = asyncio.ensure_future(leader())
            await asyncio.wait_for(entered.wait(), 10)
            async with aio.Candidate(other, KEY, "b", ttl=60).campaign(timeout=10):
                assert may_end.is_set(), "released under the helper's block"
            await (await leading)

    asyncio.run(scenario())


def test_a_block_that_is_cancelled_on_its_way_in_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            term = await aio.Candidate(own, KEY, "a", ttl=60).campaign()
            let_go = threading.Event()
            own.core.post(lambda: let_go.wait(10))

            async def block() -> None:
                async with term:
                    pass

            entering = asyncio.ensure_future(block())
            await asyncio.sleep(0)
            entering.cancel()
            await asyncio.wait([entering])
            let_go.set()
            await until_free(other)

    asyncio.run(scenario())


def test_the_watchdog_sees_a_term_that_nobody_took() -> None:
    async def scenario() -> None:
        async with two_stores() as (own, other):
            rival = aio.Candidate(other, KEY, "b", ttl=60)
            await rival.campaign()
            candidate = aio.Candidate(own, KEY, "a", ttl=60, watchdog=0.2)
            elections = candidate.run_for_election()
            assert await anext(elections) is False
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(elections), 0.05)
            await rival.stop()
            await async_wait_until(lambda: candidate.term is not None, 10, "the win")
            await until_free(other)
            await elections.close()

    asyncio.run(scenario())


def test_a_run_whose_event_loop_is_closed_under_it_is_given_up() -> None:
    name = f"memory://{uuid.uuid4()}"
    with new_store(name) as other:
        loop = asyncio.new_event_loop()
        store = aio.new_store(name)
        candidate = aio.Candidate(store, KEY, "a", ttl=60)
        leading = asyncio.Event()

        async def work(term: aio.Term) -> None:
            leading.set()
            await asyncio.Event().wait()

        running: list[asyncio.Task[None]] = [loop.create_task(candidate.run(work))]
        loop.run_until_complete(asyncio.wait_for(leading.wait(), 10))
        loop.close()
        coroutine = running.pop().get_coro()
        assert coroutine is not None
        coroutine.close()
        wait_until(lambda: free(other), 10, "the release")
        del store


@pytest.mark.parametrize("function", ["__aenter__", "__aexit__"])
def test_an_async_block_that_is_interrupted_at_any_line_releases(function: str) -> None:
    async def campaign() -> None:
        async with two_stores() as (own, other):
            candidate = aio.Candidate(own, KEY, "a", ttl=60)
            try:
                async with candidate.campaign():
                    pass
            finally:
                sys.settrace(None)
                await until_free(other)
                assert not candidate.is_leader()

    at_every_line(getattr(aio.Term, function).__code__, lambda: asyncio.run(campaign()))
