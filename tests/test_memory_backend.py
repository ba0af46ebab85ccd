"""The memory backend by itself: expiry on a clock that the test moves, sharing, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from leadership import new_store
from leadership.backend import Address, Capability, Context, KVPair
from leadership.backends.memory import MemoryBackend, _Place
from leadership.clock import Clock, ManualClock, SystemClock
from leadership.errors import ConfigurationError, HandleClosed, KeyExists, KeyModified

from .loops import on_a_loop, settle

pytestmark = pytest.mark.backend("memory")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def open_memory(name: str, clock: Clock | None = None) -> MemoryBackend:
    return MemoryBackend(Address("memory", (name,)), Context(clock=clock or SystemClock()))


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def memory(name: str, clock: ManualClock) -> Iterator[MemoryBackend]:
    opened = open_memory(name, clock)
    yield opened
    asyncio.run(opened.close())


class Watching:
    """A watch under way: all the states that it told."""

    def __init__(self, states: AsyncIterator[object]) -> None:
        self.told: list[object] = []
        self._task = asyncio.ensure_future(self._read(states))

    async def _read(self, states: AsyncIterator[object]) -> None:
        async for state in states:
            self.told.append(state)

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def error(self) -> BaseException | None:
        return (await asyncio.gather(self._task, return_exceptions=True))[0]


class TestExpiry:
    @on_a_loop
    async def test_a_key_is_gone_at_its_time_also_where_no_timer_has_run(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        pair = await memory.put("key", b"x", ttl=10)
        clock.advance(9.99)
        assert await memory.get("key") == pair
        assert await memory.list("") == [pair]
        clock.advance(0.01)
        assert await memory.get("key") is None
        await memory.put("key", b"x", ttl=10)
        clock.advance(10)
        assert await memory.list("") == []
        assert await memory.delete("key") is False

    @on_a_loop
    async def test_put_again_counts_from_the_last_put_and_without_a_ttl_it_stays(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        for key in ("renewed", "kept"):
            await memory.put(key, b"x", ttl=10)
        clock.advance(6)
        again = await memory.put("renewed", b"x", ttl=10)
        await memory.put("kept", b"x")
        clock.advance(9)
        assert await memory.get("renewed") == again
        clock.advance(1)
        assert await memory.get("renewed") is None
        clock.advance(1e6)
        assert await memory.get("kept") is not None

    @on_a_loop
    async def test_compare_and_swap_takes_an_expired_key_for_absent(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        first = await memory.atomic_put("key", b"1", None, ttl=10)
        with pytest.raises(KeyExists):
            await memory.atomic_put("key", b"2", None)
        clock.advance(10)
        with pytest.raises(KeyModified):
            await memory.atomic_put("key", b"2", first)
        with pytest.raises(KeyModified):
            await memory.atomic_delete("key", first)
        second = await memory.atomic_put("key", b"2", None)
        assert second.index > first.index

    @on_a_loop
    async def test_a_watch_tells_the_expiry_with_nobody_calling(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        on_key, on_tree = Watching(memory.watch("dir/key")), Watching(memory.watch_tree("dir"))
        await settle()
        pair = await memory.put("dir/key", b"x", ttl=10)
        await settle()
        clock.advance(10)
        await settle()
        assert on_key.told == [None, pair, None]
        assert on_tree.told == [[], [pair], []]
        await on_key.end()
        await on_tree.end()

    @on_a_loop
    async def test_a_watch_of_a_key_that_is_renewed_does_not_tell_an_expiry(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        watching = Watching(memory.watch("key"))
        for _ in range(5):
            await memory.put("key", b"x", ttl=10)
            await settle()
            clock.advance(6)
            await settle()
        assert None not in watching.told
        clock.advance(4)
        await settle()
        assert watching.told[-1] is None
        await watching.end()

    @on_a_loop
    async def test_a_tree_of_many_ttls_is_told_at_each_expiry(
        self, memory: MemoryBackend, clock: ManualClock
    ) -> None:
        for seconds in (3, 1, 2):
            await memory.put(f"dir/{seconds}", b"x", ttl=seconds)
        watching = Watching(memory.watch_tree("dir"))
        await settle()
        for _ in range(3):
            clock.advance(1)
            await settle()
        names = [[pair.key[-1] for pair in state] for state in watching.told]  # type: ignore[attr-defined]
        assert names == [["1", "2", "3"], ["2", "3"], ["3"], []]
        await watching.end()


class TestWatches:
    @on_a_loop
    async def test_states_are_coalesced_and_none_is_told_twice(self, memory: MemoryBackend) -> None:
        watching = Watching(memory.watch("key"))
        await settle()
        for number in range(10):
            last = await memory.put("key", str(number).encode())
        await settle()
        assert watching.told == [None, last]
        # There and gone again, between two looks.
        await memory.put("other", b"x")
        await memory.delete("key")
        await memory.put("key", b"y")
        await settle()
        assert len(watching.told) == 3
        await watching.end()

    @on_a_loop
    async def test_a_change_while_the_consumer_is_busy_is_told_afterwards(
        self, memory: MemoryBackend
    ) -> None:
        async with contextlib.aclosing(memory.watch("key")) as states:
            assert await anext(states) is None
            last = await memory.put("key", b"x")
            await settle()
            assert await anext(states) == last
            await memory.delete("key")
            assert await anext(states) is None

    @on_a_loop
    async def test_the_root_a_directory_and_nothing_beside_it(self, memory: MemoryBackend) -> None:
        watches = {path: Watching(memory.watch_tree(path)) for path in ("", "a", "a/b", "ab", "c")}
        key = Watching(memory.watch("a/b"))
        await settle()
        await memory.put("a/b/c", b"x")
        await settle()
        told = {path: len(watch.told) for path, watch in watches.items()}
        assert told == {"": 2, "a": 2, "a/b": 2, "ab": 1, "c": 1}
        assert len(key.told) == 1
        await memory.put("a/b", b"x")
        await settle()
        told = {path: len(watch.told) for path, watch in watches.items()}
        assert told == {"": 3, "a": 3, "a/b": 2, "ab": 1, "c": 1}
        assert len(key.told) == 2
        for watch in (*watches.values(), key):
            await watch.end()

    @on_a_loop
    async def test_a_watch_that_ended_leaves_no_watcher(self, memory: MemoryBackend) -> None:
        for _ in range(3):
            watching = Watching(memory.watch("key"))
            tree = Watching(memory.watch_tree(""))
            await settle()
            await watching.end()
            await tree.end()
        assert memory.space._watchers == {}
        assert memory._watching == set()

    @on_a_loop
    async def test_another_event_loop_on_the_same_space_is_told(
        self, memory: MemoryBackend, name: str, clock: ManualClock
    ) -> None:
        watching = Watching(memory.watch("key"))
        await settle()

        async def write() -> KVPair:
            other = open_memory(name, clock)
            pair = await other.put("key", b"from another thread")
            await other.close()
            return pair

        pair = await asyncio.to_thread(asyncio.run, write())
        await settle()
        assert watching.told == [None, pair]
        await watching.end()

    def test_a_loop_that_was_closed_in_the_middle_of_a_watch_does_not_hinder_writers(
        self, memory: MemoryBackend
    ) -> None:
        async def watch() -> contextlib.AbstractContextManager[object]:
            watched = memory.space.watched(_Place("key", tree=False))
            watched.__enter__()
            return watched

        left = asyncio.run(watch())
        assert asyncio.run(memory.put("key", b"x")).value == b"x"
        left.__exit__(None, None, None)


class TestSharing:
    @on_a_loop
    async def test_one_name_on_one_clock_is_one_space(self, name: str) -> None:
        clock, moved = ManualClock(), ManualClock()
        first = open_memory(name, clock)
        pair = await first.put("key", b"x")
        assert await open_memory(name, clock).get("key") == pair
        assert await open_memory(name, moved).get("key") is None
        assert await open_memory(name).get("key") is None
        assert await open_memory(name + "2", clock).get("key") is None

    @on_a_loop
    async def test_the_machines_clock_is_one_clock(self, name: str) -> None:
        first, second = open_memory(name, SystemClock()), open_memory(name, SystemClock())
        pair = await first.put("key", b"x")
        assert await second.get("key") == pair

    @on_a_loop
    async def test_closing_one_takes_nothing_from_the_others_and_the_last_forgets(
        self, name: str
    ) -> None:
        first, second = open_memory(name), open_memory(name)
        pair = await first.put("key", b"x")
        await first.close()
        third = open_memory(name)
        assert await second.get("key") == await third.get("key") == pair
        await second.close()
        await third.close()
        # All three objects are still there: it is the close that counts.
        assert await open_memory(name).get("key") is None
        assert len({first, second, third}) == 3

    @on_a_loop
    async def test_who_is_dropped_without_a_close_leaves_nothing_either(self, name: str) -> None:
        await open_memory(name).put("key", b"x")
        gc.collect()
        assert await open_memory(name).get("key") is None
        assert (name, 0) not in MemoryBackend._registry._spaces

    @on_a_loop
    async def test_an_index_never_repeats_also_when_the_key_is_made_again(
        self, memory: MemoryBackend, name: str, clock: ManualClock
    ) -> None:
        other = open_memory(name, clock)
        indexes = []
        for number in range(6):
            backend = (memory, other)[number % 2]
            indexes.append((await backend.put("key", b"x")).index)
            await backend.delete("key")
        assert indexes == sorted(set(indexes))
        await other.close()

    @pytest.mark.usefixtures("restless")
    def test_threads_that_compare_and_swap_lose_nothing(self, name: str) -> None:
        first = open_memory(name)
        asyncio.run(first.put("counter", b"0"))
        start = threading.Barrier(4)

        async def add() -> None:
            mine = open_memory(name)
            start.wait()
            for _ in range(200):
                while True:
                    pair = await mine.get("counter")
                    assert pair is not None
                    with contextlib.suppress(KeyModified):
                        await mine.atomic_put("counter", b"%d" % (int(pair.value) + 1), pair)
                        break
            await mine.close()

        threads = [threading.Thread(target=lambda: asyncio.run(add())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = asyncio.run(first.get("counter"))
        assert last is not None
        assert last.value == b"800"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_begins_with_nothing_also_when_the_parent_was_in_the_middle_of_it(
        self, name: str
    ) -> None:
        parent = open_memory(name)
        asyncio.run(parent.put("key", b"x"))
        with MemoryBackend._registry._lock:
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    status = 0 if asyncio.run(open_memory(name).get("key")) is None else 2
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert asyncio.run(parent.get("key")) is not None


class TestClosing:
    @on_a_loop
    async def test_a_closed_one_says_so_and_may_be_closed_again(self, name: str) -> None:
        memory = open_memory(name)
        pair = await memory.put("key", b"x")
        await memory.close()
        await memory.close()
        for call in (
            memory.get("key"),
            memory.put("key", b"x"),
            memory.delete("key"),
            memory.list(""),
            memory.delete_tree("key"),
            memory.atomic_put("key", b"x", pair),
            memory.atomic_delete("key", pair),
            anext(memory.watch("key")),
            anext(memory.watch_tree("")),
        ):
            with pytest.raises(HandleClosed, match="make a new one"):
                await call

    @on_a_loop
    async def test_closing_ends_its_own_watches_and_nobody_elses(
        self, memory: MemoryBackend, name: str, clock: ManualClock
    ) -> None:
        other = open_memory(name, clock)
        mine, tree = Watching(memory.watch("key")), Watching(memory.watch_tree(""))
        theirs = Watching(other.watch("key"))
        await settle()
        space = other.space
        await memory.close()
        assert isinstance(await mine.error(), HandleClosed)
        assert isinstance(await tree.error(), HandleClosed)
        pair = await other.put("key", b"x")
        await settle()
        assert theirs.told == [None, pair]
        await theirs.end()
        assert space._watchers == {}
        await other.close()


class TestConstruction:
    @pytest.mark.parametrize(
        ("address", "says"),
        [
            ("memory://x?bucket=1", "no options, and has bucket"),
            ("memory://joe:secret@x", "no options, and has password, user"),
            ("memory://", "write memory://NAME"),
            ("memory://x,y", "one name, and has 2"),
        ],
    )
    def test_what_can_never_work_is_refused_with_advice_and_no_secret(
        self, address: str, says: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=says) as refused:
            new_store(address)
        assert "secret" not in str(refused.value)

    def test_the_name_may_be_a_path_or_stand_alone(self) -> None:
        names = [
            MemoryBackend(address, Context()).name
            for address in (
                Address("memory", ("a",)),
                Address("memory", ("a",), "b/c"),
                Address("memory", (), "b"),
            )
        ]
        assert names == ["a", "a/b/c", "b"]

    def test_it_has_all_capabilities_but_a_queue_and_nodes(self) -> None:
        assert MemoryBackend.capabilities == set(Capability) - {Capability.FIFO, Capability.MEMBERS}
        assert MemoryBackend.conditions
