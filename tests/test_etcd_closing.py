"""Closing where the surroundings are odd: a child of multiprocessing, a server that is down."""

from __future__ import annotations

import asyncio
import multiprocessing
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, new_store
from leadership._engine import engine

from .command import Command
from .etcd_elections import entries, leases
from .programs import python
from .servers.etcd import EtcdServer
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

_kept: list[object] = []


@pytest.fixture
def key() -> str:
    return f"test/{uuid.uuid4().hex}"


def lead_and_return(url: str, key: str) -> None:
    # Kept, as by a module's global: no destructor closes the store in time.
    _kept.append(Candidate(new_store(url), key, "child", ttl=60).campaign(timeout=20))


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_process_of_multiprocessing_that_ends_resigns(
    etcd: EtcdClient, key: str, way: str
) -> None:
    before = leases(etcd)
    context = multiprocessing.get_context(way)
    child = context.Process(target=lead_and_return, args=(etcd.url, key))  # type: ignore[attr-defined]
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert entries(etcd, key) == []
    assert leases(etcd) <= before


def test_a_lock_in_whose_block_a_thread_still_works_at_the_end_lapses(
    etcd: EtcdClient, key: str
) -> None:
    before = leases(etcd)
    python(
        """
    import os, threading
    from leadership import new_store
    store = new_store(os.environ["STORE"])
    inside = threading.Event()
    def work():
        with store.lock(os.environ["KEY"], ttl=60):
            inside.set()
            threading.Event().wait()
    threading.Thread(target=work, daemon=True).start()
    inside.wait()
    """,
        STORE=etcd.url,
        KEY=key,
    )
    assert len(entries(etcd, key)) == 1
    (left,) = leases(etcd) - before
    etcd.ctl("lease", "revoke", left)


def tasks() -> set[str]:
    async def look() -> set[str]:
        own = asyncio.current_task()
        return {str(task.get_coro()) for task in asyncio.all_tasks() if task is not own}

    return engine().call(look)


@pytest.mark.parametrize("stop_first", [False, True])
def test_a_store_that_is_closed_while_its_server_is_down_leaves_no_task(
    etcd_server: EtcdServer, key: str, stop_first: bool
) -> None:
    before = tasks()
    store = new_store(etcd_server.url, request_timeout=0.5)
    candidate = Candidate(store, key, "a", ttl=2)
    candidate.campaign(timeout=20)
    if stop_first:
        etcd_server.kill()
        candidate.stop()
    else:
        etcd_server.pause()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.close).result(30)
    etcd_server.kill()
    wait_until(lambda: tasks() <= before, 20, "the tasks' end")


def test_a_campaign_ends_at_its_time_limit_though_the_server_does_not_answer(
    etcd_server: EtcdServer, key: str
) -> None:
    with new_store(etcd_server.url, request_timeout=30) as store:
        store.connect()
        etcd_server.pause()
        began = store.clock.now()
        with pytest.raises(TimeoutError):
            Candidate(store, key, "a", ttl=5).campaign(timeout=0.5)
        # A tenth of what one request may take.
        assert store.clock.now() - began < 3
        etcd_server.kill()


def test_a_command_whose_entry_was_deleted_is_killed_without_its_grace(
    etcd: EtcdClient, key: str
) -> None:
    deaf = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    options = ("run", "--store", etcd.url, "--key", key, "--id", "a", "--ttl", "60", "--json")
    with Command(*options, "--once", "--grace", "20", "--", *deaf) as running:
        running.wait_for("started")
        assert running.line() == "ready"
        (entry,) = entries(etcd, key)
        etcd.ctl("del", entry)
        stopping = running.wait_for("stopping")
        assert running.wait_for("killed")["at"] - stopping["at"] < 5
