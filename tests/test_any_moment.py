"""Every way out, at random moments, twice, from several threads: nothing hangs, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, Follower, Store, Term, aio, new_store
from leadership.errors import HandleClosed, NotLeader

from .etcd_elections import leases
from .leaks import count_threads
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

ROUNDS = 40
LONGEST = 0.03
"""Seconds before the way out is taken: a campaign on a local etcd takes about a tenth of it."""

EXPECTED = (TimeoutError, NotLeader, HandleClosed, asyncio.CancelledError)


@pytest.fixture
def key() -> str:
    return f"test/{uuid.uuid4().hex}"


def loop(candidate: Candidate) -> None:
    for _ in candidate.run_for_election():
        pass


def block(candidate: Candidate) -> None:
    with candidate.campaign() as term:
        term.wait_lost()


def work(candidate: Candidate) -> None:
    def until_lost(term: Term) -> None:
        term.wait_lost()

    candidate.run(until_lost)


def short(candidate: Candidate) -> None:
    candidate.campaign(timeout=LONGEST / 3)


def followed(candidate: Candidate) -> None:
    with Follower(candidate._store, candidate.key) as follower:
        threading.Timer(LONGEST, follower.stop).start()
        for _ in follower.follow_election():
            pass


def locked(candidate: Candidate) -> None:
    assert isinstance(candidate._store, Store)
    lock = candidate._store.lock(candidate.key, ttl=30)
    threading.Timer(LONGEST, lock.release).start()
    lock.acquire()
    lock.wait_lost()


WAYS_IN: list[Callable[[Candidate], None]] = [loop, block, work, short, followed, locked]


def quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(*EXPECTED):
        act()


@pytest.mark.parametrize("seed", range(3))
def test_threads(etcd: EtcdClient, key: str, seed: int) -> None:
    chance = random.Random(seed)
    before = leases(etcd)
    threads_before = 0
    with ThreadPoolExecutor(16) as pool:
        for number in range(ROUNDS):
            store = new_store(etcd.url)
            candidates = [Candidate(store, key, name, ttl=30) for name in "abc"]
            ways = [chance.choice(WAYS_IN) for _ in candidates]
            runs = [
                pool.submit(quietly, functools.partial(way, each))
                for way, each in zip(ways, candidates, strict=True)
            ]
            outs: list[Callable[[], object]] = []
            for candidate in candidates:
                outs += [candidate.resign, candidate.stop, candidate.close]
            outs.append(store.close)
            taken = [chance.choice(outs) for _ in range(4)]
            for out in (*taken, *taken):
                threading.Event().wait(chance.uniform(0, LONGEST / 4))
                runs.append(pool.submit(quietly, out))
            threading.Event().wait(chance.uniform(0, LONGEST))
            store.close()
            for run in runs:
                run.result(20)
            assert not any(candidate.is_leader() for candidate in candidates)
            assert etcd.ctl("get", "--prefix", f"{key}/", "--keys-only").split() == [], number
            if number == 0:
                threads_before = count_threads()
        assert count_threads() <= max(threads_before, 16 + 8)

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        wait_until(lambda: store.core.call(tasks) == 1, 10, "an idle engine")
    assert leases(etcd) <= before


@pytest.mark.parametrize("seed", range(3))
def test_tasks(etcd: EtcdClient, key: str, seed: int) -> None:
    chance = random.Random(seed)
    before = leases(etcd)

    async def loop(candidate: aio.Candidate) -> None:
        async for _ in candidate.run_for_election():
            await asyncio.sleep(chance.uniform(0, LONGEST))

    async def block(candidate: aio.Candidate) -> None:
        async with candidate.campaign() as term:
            await term.wait_lost()

    async def work(candidate: aio.Candidate) -> None:
        await candidate.run(lambda term: asyncio.sleep(LONGEST))

    async def one_round() -> None:
        store = aio.new_store(etcd.url)
        candidates = [aio.Candidate(store, key, name, ttl=30) for name in "abc"]
        runs = [asyncio.ensure_future(chance.choice([loop, block, work])(c)) for c in candidates]
        for _ in range(6):
            await asyncio.sleep(chance.uniform(0, LONGEST / 3))
            way, one = chance.randrange(4), chance.randrange(3)
            if way == 0:
                runs[one].cancel()
            elif way == 1:
                runs.append(asyncio.ensure_future(candidates[one].resign()))  # type: ignore[arg-type]
            elif way == 2:
                runs.append(asyncio.ensure_future(candidates[one].stop()))
            else:
                runs.append(asyncio.ensure_future(store.close()))
        closing = asyncio.ensure_future(store.close())
        for run in runs:
            if chance.random() < 0.5:
                run.cancel()
        async with asyncio.timeout(20):
            for result in await asyncio.gather(*runs, closing, return_exceptions=True):
                assert result is None or isinstance(result, (bool, *EXPECTED)), result
        assert not any(candidate.is_leader() for candidate in candidates)

    async def all_rounds() -> None:
        for number in range(ROUNDS):
            await one_round()
            left = etcd.ctl("get", "--prefix", f"{key}/", "--keys-only").split()
            assert left == [], number

    asyncio.run(all_rounds())
    assert leases(etcd) <= before
