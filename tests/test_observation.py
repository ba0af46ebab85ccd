"""Observing: no change is missed, every end is told, and a stream keeps its store open."""

from __future__ import annotations

import asyncio
import gc
import random
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from leadership import Follower, Retry, aio, new_store
from leadership.backend import Entry
from leadership.clock import ManualClock
from leadership.core import Core
from leadership.errors import AccessDenied, LeaderUnknown, StoreUnavailable
from leadership.following import Following, Leader, LeaderState
from leadership.observation import Cursor
from leadership.retry import DEFAULT_RETRY

from .loops import on_a_loop, settle
from .waiting import wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"
NEVER = 1e9
"""Seconds of patience that no test comes to the end of."""

Step = Entry | None | Exception | asyncio.CancelledError


class Told:
    """A backend's `observe` that tells what the test says, one step after the other."""

    def __init__(self) -> None:
        self.state: Entry | None = None
        self.steps: asyncio.Queue[Step] = asyncio.Queue()
        self.open = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        self.open += 1
        try:
            yield self.state
            while True:
                step = await self.steps.get()
                if isinstance(step, BaseException):
                    raise step
                self.state = step
                yield step
        finally:
            await self.may_end.wait()
            self.open -= 1


class Scene:
    """One follower, on the test's own event loop and clock."""

    def __init__(self, retry: Retry | None = DEFAULT_RETRY, patience: float = NEVER) -> None:
        self.clock = ManualClock()
        self.store = new_store(f"memory://{uuid.uuid4().hex}", clock=self.clock)
        self.told = Told()
        backend: Any = self.store.core.backend
        backend.observe = self.told.observe
        self.following: Following = Follower(
            self.store, KEY, retry=retry, patience=patience
        )._following

    def tell(self, step: Step) -> None:
        self.told.steps.put_nowait(step)

    async def pass_time(self) -> None:
        """Longer than it takes to ride out a cut."""
        for _ in range(4):
            self.clock.advance(5)
            await settle()


async def consume(cursor: Cursor[Any, Any], told: list[Any]) -> None:
    while (seen := await cursor.next(cursor.told)) is not None:
        cursor.told, value = seen
        told.append(value)


async def ended(*tasks: Awaitable[object]) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)


class TestChanges:
    @pytest.mark.parametrize("seed", range(40))
    @on_a_loop
    async def test_none_of_several_consumers_misses_the_last_one(self, seed: int) -> None:
        """Whichever of them looks, waits, is told or is new at the moment of a change."""
        chance = random.Random(seed)
        here = Scene()
        cursors: list[Cursor[Any, Any]] = []
        told: list[list[Any]] = []
        tasks: list[asyncio.Future[None]] = []

        def join() -> None:
            following = here.following
            make: list[Callable[[], Cursor[Any, Any]]] = [
                following.cursor_of_leaders,
                following.cursor_of_values,
            ]
            cursors.append(chance.choice(make)())
            told.append([])
            tasks.append(asyncio.ensure_future(consume(cursors[-1], told[-1])))

        def ask_again(which: int) -> None:
            """As who puts a time-out around each `next`."""
            tasks[which].cancel()
            tasks[which] = asyncio.ensure_future(consume(cursors[which], told[which]))

        join()
        for token in range(1, 25):
            entry = Entry(b"%d" % token, token)
            if len(cursors) < 4 and chance.random() < 0.3:
                join()
            if chance.random() < 0.3:
                here.tell(entry)
            else:
                # Missed in a cut, and told at its end.
                here.tell(StoreUnavailable("a cut"))
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                here.told.state = entry
                here.clock.advance(5)
            for _ in range(chance.randrange(14)):
                await asyncio.sleep(0)
            ask_again(chance.randrange(len(cursors)))
            await here.pass_time()
            for values in told:
                last = values[-1]
                assert (last.value if isinstance(last, Leader) else last) == str(token)
        for cursor in cursors:
            await cursor.close()
        await ended(*tasks)

    @on_a_loop
    async def test_one_between_the_look_and_the_wait_is_told(self) -> None:
        here = Scene()
        cursor = here.following.cursor_of_leaders()
        told: list[Leader] = []
        task = asyncio.ensure_future(consume(cursor, told))
        await settle()
        observation = here.following._current()
        observation.cut_since = here.clock.now()
        observation.wake()
        for ticks in range(1, 8):
            # Woken, it looks, and finds nothing new but the cut; a few steps of the loop later:
            for _ in range(ticks):
                await asyncio.sleep(0)
            entry = Entry(b"%d" % ticks, ticks)
            observation.state, observation.version = entry, observation.version + 1
            observation.wake()
            await settle()
            assert told[-1].token == ticks
            observation.wake()
        await cursor.close()
        await ended(task)


class TestTheEnd:
    @on_a_loop
    async def test_each_who_stops_it_returns_when_the_watch_has_ended(self) -> None:
        here = Scene()
        cursor, another = here.following.cursor_of_values(), here.following.cursor_of_values()
        tasks = [asyncio.ensure_future(consume(each, [])) for each in (cursor, another)]
        await settle()
        here.told.may_end.clear()
        stops = []
        for stop in (here.following.stop, here.following.stop, cursor.close, cursor.close):
            stops.append(asyncio.ensure_future(stop()))
            await settle()
        stops.append(asyncio.ensure_future(another.close()))
        await settle()
        assert here.told.open == 1
        done = [each for each in stops if each.done()]
        # Only who was not the last of the consumers had nothing to wait for.
        assert all(each in stops[2:4] for each in done)
        assert len(done) < len(stops)
        here.told.may_end.set()
        await ended(*stops, *tasks)
        assert here.told.open == 0
        assert here.store.core.observations == set()

    @on_a_loop
    async def test_each_who_closes_the_last_stream_returns_when_the_watch_has_ended(self) -> None:
        here = Scene()
        cursor = here.following.cursor_of_values()
        task = asyncio.ensure_future(consume(cursor, []))
        await settle()
        here.told.may_end.clear()
        closes = [asyncio.ensure_future(cursor.close()) for _ in range(3)]
        await settle()
        assert not any(each.done() for each in closes)
        here.told.may_end.set()
        await ended(*closes, task)
        assert here.told.open == 0

    @on_a_loop
    async def test_one_that_the_backend_cancels_is_taken_for_a_cut(self) -> None:
        here = Scene()
        cursor = here.following.cursor_of_values()
        told: list[str | None] = []
        task = asyncio.ensure_future(consume(cursor, told))
        await settle()
        here.tell(asyncio.CancelledError())
        here.tell(Entry(b"a", 1))
        await here.pass_time()
        assert told == [None, "a"]
        await cursor.close()
        await ended(task)

    @on_a_loop
    async def test_one_that_the_backend_cancels_is_an_error_without_a_retry(self) -> None:
        here = Scene(retry=None)
        cursor = here.following.cursor_of_values()
        task = asyncio.ensure_future(consume(cursor, []))
        await settle()
        here.tell(asyncio.CancelledError())
        with pytest.raises(StoreUnavailable, match="cancelled the watch"):
            await ended(task)
        await cursor.close()


class TestAfterAnError:
    """An observation that died of whatever it was knows nothing any more."""

    @pytest.mark.parametrize(
        ("error", "retry"),
        [
            (AccessDenied("the rights were taken away"), DEFAULT_RETRY),
            (StoreUnavailable("an outage"), None),
            (ZeroDivisionError("a defect"), DEFAULT_RETRY),
        ],
        ids=["refused", "not retried", "broken"],
    )
    @on_a_loop
    async def test_the_leader_is_asked_for_and_new_consumers_observe_anew(
        self, error: Exception, retry: Retry | None
    ) -> None:
        here = Scene(retry=retry)
        here.told.state = Entry(b"old", 1)
        cursor = here.following.cursor_of_values()
        told: list[str | None] = []
        task = asyncio.ensure_future(consume(cursor, told))
        await settle()
        assert told == ["old"]
        here.tell(error)
        with pytest.raises(type(error)):
            await ended(task)
        here.told.state = Entry(b"new", 2)
        assert await here.following.leader(None) == "new"
        another = here.following.cursor_of_values()
        seen = await another.next(None)
        assert seen is not None
        assert seen[1] == "new"
        await another.close()
        await cursor.close()

    @on_a_loop
    async def test_a_store_that_does_not_answer_either_is_said_to_be_unknown(self) -> None:
        here = Scene()
        here.told.state = Entry(b"old", 1)
        cursor = here.following.cursor_of_values()
        task = asyncio.ensure_future(consume(cursor, []))
        await settle()
        here.tell(AccessDenied("the rights were taken away"))
        with pytest.raises(AccessDenied):
            await ended(task)

        async def away(key: str) -> AsyncGenerator[Entry | None, None]:
            raise StoreUnavailable("away")
            yield None

        backend: Any = here.store.core.backend
        backend.observe = away
        with pytest.raises(LeaderUnknown):
            await here.following.leader(None)
        await cursor.close()

    @on_a_loop
    async def test_the_leader_is_unknown_once_the_patience_is_over(self) -> None:
        here = Scene(patience=1.0)
        here.told.state = Entry(b"old", 1)
        cursor = here.following.cursor_of_leaders()
        told: list[Leader] = []
        task = asyncio.ensure_future(consume(cursor, told))
        await settle()
        observation = here.following._current()
        here.tell(AccessDenied("the rights were taken away"))
        with pytest.raises(AccessDenied):
            await ended(task)
        assert observation.cut_since is not None
        here.clock.advance(2)
        seen = here.following._view_leader(observation)
        assert seen is not None
        assert seen[1].state is LeaderState.UNKNOWN
        await cursor.close()


class TestWhoKeepsWhat:
    """A stream keeps its store open, and nothing keeps a stream that was dropped."""

    @pytest.fixture
    def name(self) -> str:
        return f"memory://{uuid.uuid4().hex}"

    def test_a_stream_goes_on_when_its_store_and_follower_are_dropped(self, name: str) -> None:
        with new_store(name) as other:
            streams = [make(name) for make in (of_leaders, of_values, of_key, of_tree)]
            for stream in streams:
                next(stream)
            gc.collect()
            with other.lock(KEY, "holder", ttl=30):
                for stream in streams:
                    assert next(stream)
            cores = [stream._core for stream in streams]
            stream = None
            streams.clear()
            gc.collect()
            for core in cores:
                closed_with_nothing_left(core)

    def test_in_asyncio_too(self, name: str) -> None:
        async def scenario() -> Core:
            stream = aio.Follower(aio.new_store(name), KEY).follow_election()
            assert await anext(stream) is None
            gc.collect()
            async with aio.new_store(name) as other, other.lock(KEY, "holder", ttl=30):
                assert await anext(stream) == "holder"
            return stream._core

        core = asyncio.run(scenario())
        gc.collect()
        closed_with_nothing_left(core)

    def test_a_traceback_that_somebody_keeps_keeps_no_stream_and_no_store(self, name: str) -> None:
        stream = of_values(name)
        next(stream)
        core = stream._core
        stream.close()
        kept = None
        with pytest.raises(StopIteration) as raised:
            next(stream)
        kept = raised
        del stream
        gc.collect()
        closed_with_nothing_left(core)
        assert kept.tb is not None


def of_leaders(name: str) -> Any:
    return Follower(new_store(name), KEY).observe()


def of_values(name: str) -> Any:
    return Follower(new_store(name), KEY).follow_election()


def of_key(name: str) -> Any:
    return new_store(name).watch(KEY)


def of_tree(name: str) -> Any:
    return new_store(name).watch_tree("service")


def closed_with_nothing_left(core: Core) -> None:
    wait_until(lambda: core.closed, what="the store's end")
    wait_until(lambda: not core.observations, what="the end of its watches")
