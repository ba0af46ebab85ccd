"""A `with lock:` block is the leader's code as any other: joined, and ended by itself alone."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import aio, new_store
from leadership.errors import AlreadyRunning
from leadership.testing import ManualClock

from .waiting import wait_until

pytestmark = pytest.mark.backend("memory")


def test_closing_the_store_waits_for_the_block() -> None:
    name = f"memory://{uuid.uuid4()}"
    inside, may_end = threading.Event(), threading.Event()
    with new_store(name) as own, new_store(name) as other, ThreadPoolExecutor() as pool:

        def work() -> None:
            with own.lock("job", ttl=60):
                inside.set()
                may_end.wait(30)

        working = pool.submit(work)
        assert inside.wait(10)
        closing = pool.submit(own.close)
        with pytest.raises(TimeoutError):
            other.lock("job", ttl=60).acquire(timeout=0.1)
        may_end.set()
        working.result(10)
        closing.result(10)
        other.lock("job", ttl=60).acquire(timeout=10)


def test_a_block_that_lost_the_lock_keeps_its_object_from_being_held_anew() -> None:
    clock = ManualClock()
    inside, may_end = threading.Event(), threading.Event()
    believed: list[bool] = []
    with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store, ThreadPoolExecutor() as pool:
        lock = store.lock("job", ttl=10)

        def work() -> None:
            with lock:
                inside.set()
                may_end.wait(30)
                believed.append(lock.is_held())

        working = pool.submit(work)
        assert inside.wait(10)
        clock.advance(100)
        assert not lock.is_held()
        with pytest.raises(AlreadyRunning, match="code that led still runs"):
            lock.acquire(timeout=5)
        # Another object is another holder, and is not hurt by the old block's end.
        second = store.lock("job", ttl=10)
        assert second.acquire(timeout=10)
        may_end.set()
        working.result(10)
        assert believed == [False]
        assert second.is_held()
        second.release()
        with lock:
            assert lock.is_held()


def test_the_end_of_a_block_that_released_early_is_not_the_next_holders() -> None:
    released, may_end = threading.Event(), threading.Event()
    with new_store(f"memory://{uuid.uuid4()}") as store, ThreadPoolExecutor() as pool:
        lock = store.lock("job", ttl=60)

        def work() -> None:
            with lock:
                lock.release()
                released.set()
                may_end.wait(30)

        working = pool.submit(work)
        assert released.wait(10)
        lock.acquire(timeout=10)
        may_end.set()
        working.result(10)
        assert lock.is_held()


def test_who_was_told_that_it_is_not_held_may_acquire_it() -> None:
    clock = ManualClock()
    with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
        lock = store.lock("job", ttl=10)
        for _ in range(20):
            lock.acquire(timeout=10)
            clock.advance(100)
            assert not lock.is_held()
        lock.release()


def test_an_async_block_is_joined_too() -> None:
    async def scenario() -> None:
        name = f"memory://{uuid.uuid4()}"
        async with aio.new_store(name) as own, aio.new_store(name) as other:
            inside, may_end = asyncio.Event(), asyncio.Event()

            async def work() -> None:
                async with own.lock("job", ttl=60):
                    inside.set()
                    await may_end.wait()

            working = asyncio.ensure_future(work())
            await asyncio.wait_for(inside.wait(), 10)
            closing = asyncio.ensure_future(own.close())
            with pytest.raises(TimeoutError):
                await other.lock("job", ttl=60).acquire(timeout=0.1)
            may_end.set()
            async with asyncio.timeout(10):
                await asyncio.gather(working, closing)
                await other.lock("job", ttl=60).acquire()

    asyncio.run(scenario())


def test_a_stale_blocks_end_leaves_the_engine_in_order() -> None:
    clock = ManualClock()
    with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
        lock = store.lock("job", ttl=10)
        with lock:
            clock.advance(100)
            wait_until(lambda: lock.term is not None and lock.term.reason, 10, "the loss")
        assert lock.acquire(timeout=10)
        lock.release()
