"""However a program ends or forks, etcd holds no entry and no lease of it afterwards."""

from __future__ import annotations

import uuid

import pytest

from .etcd_elections import leases
from .programs import python
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

PREPARE = """
    import os, sys, threading, warnings
    from leadership import *
    from leadership import aio
    from leadership.errors import *
    warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
    store = new_store(os.environ["STORE"])
    key = os.environ["KEY"]
    candidate = Candidate(store, key, "a", ttl=60)
"""


@pytest.fixture
def key() -> str:
    return f"test/{uuid.uuid4().hex}"


def run(etcd: EtcdClient, key: str, code: str, interrupt_at: str | None = None) -> str:
    before = leases(etcd)
    printed = python(
        PREPARE + code,
        interrupt_at=interrupt_at,
        seconds=20,
        STORE=etcd.url,
        KEY=key,
    )
    assert etcd.ctl("get", "--prefix", f"{key}/", "--keys-only").split() == []
    assert leases(etcd) <= before
    return printed


ENDINGS = {
    "leading": "    candidate.campaign()",
    "leading in a loop": """
    standings = candidate.run_for_election()
    next(standings), next(standings)
    """,
    "waiting": """
    candidate.campaign()
    other = Candidate(store, key, "b", ttl=60)
    threading.Thread(target=other.campaign, daemon=True).start()
    standings = Candidate(store, key, "c", ttl=60).run_for_election()
    next(standings)
    """,
    "holding a lock": "    lock = store.lock(key, ttl=60); lock.acquire()",
    "following": """
    leaders = Follower(store, key).follow_election()
    next(leaders)
    watch = store.watch(key)
    next(watch)
    """,
    "stopped": "    candidate.campaign(); candidate.stop(); candidate.stop()",
    "closed": "    candidate.campaign(); store.close(); store.close()",
    "left by an exception": """
    try:
        for elected in candidate.run_for_election():
            if elected:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    """,
    "left by sys.exit": """
    for elected in candidate.run_for_election():
        if elected:
            sys.exit(0)
    """,
    "in asyncio": """
    import asyncio
    async def main():
        store = aio.new_store(os.environ["STORE"])
        async for elected in aio.Candidate(store, key, "a", ttl=60).run_for_election():
            if elected:
                return
    asyncio.run(main())
    """,
    "in a cancelled task": """
    import asyncio
    async def main():
        store = aio.new_store(os.environ["STORE"])
        candidate = aio.Candidate(store, key, "a", ttl=60)
        task = asyncio.ensure_future(candidate.run(lambda term: asyncio.sleep(60)))
        async with aio.Follower(store, key) as follower:
            await follower.wait_for_leader(10)
        task.cancel()
        await asyncio.wait([task])
    asyncio.run(main())
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interpreter_that_ends_leaves_nothing_and_does_not_hang(
    etcd: EtcdClient, key: str, ending: str
) -> None:
    run(etcd, key, ENDINGS[ending])


def test_work_that_outlasts_the_interpreters_end_keeps_its_key_until_the_deadline(
    etcd: EtcdClient, key: str
) -> None:
    before = leases(etcd)
    python(
        PREPARE
        + """
    started = threading.Event()
    def work(term):
        started.set()
        threading.Event().wait()
    threading.Thread(target=candidate.run, args=[work], daemon=True).start()
    started.wait()
    """,
        seconds=20,
        STORE=etcd.url,
        KEY=key,
    )
    assert etcd.ctl("get", "--prefix", f"{key}/", "--keys-only").split()
    (left,) = leases(etcd) - before
    etcd.ctl("lease", "revoke", left)


def test_ctrl_c_in_the_loop_releases(etcd: EtcdClient, key: str) -> None:
    run(
        etcd,
        key,
        """
    try:
        for elected in candidate.run_for_election():
            print("leading" if elected else "waiting", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    """,
        interrupt_at="leading",
    )


def test_a_forked_child_hurts_neither_the_parent_nor_itself(etcd: EtcdClient, key: str) -> None:
    printed = run(
        etcd,
        key,
        """
    with candidate.campaign() as term:
        watch = store.watch(key)
        next(watch)
        for way in ["os._exit", "sys.exit", "a new store"] * 10:
            child = os.fork()
            if child == 0:
                assert not candidate.is_leader() and not term.is_valid()
                try:
                    store.get(key)
                except ForkedHandle:
                    pass
                else:
                    os._exit(3)
                store.close(); candidate.stop()
                if way == "os._exit":
                    os._exit(0)
                if way == "a new store":
                    # gRPC cannot: better an error at once than a call that hangs.
                    with new_store(os.environ["STORE"]) as fresh:
                        try:
                            Candidate(fresh, key + "/child", "c", ttl=60).campaign(10)
                        except ForkedHandle as error:
                            assert "spawn" in str(error)
                        else:
                            os._exit(3)
                import gc
                del store, watch, candidate, term
                gc.collect()
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, way
        assert candidate.is_leader()
        store.put(key, "x"); assert next(watch) is not None; store.delete(key)
        assert not term.wait_lost(0.5)
        print("parent leads on")
    """,
    )
    assert printed == "parent leads on\n"


def test_a_store_made_before_a_fork_is_refused_in_the_child_and_a_new_one_works(
    etcd: EtcdClient, key: str
) -> None:
    run(
        etcd,
        key,
        """
    child = os.fork()
    if child == 0:
        try:
            candidate.campaign()
        except ForkedHandle as error:
            assert "make a new store" in str(error)
        else:
            os._exit(3)
        # As under gunicorn's preload: the child makes its own, and it works.
        with new_store(os.environ["STORE"]) as fresh:
            with Candidate(fresh, key, "c", ttl=60).campaign(10) as mine:
                assert mine.is_valid()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """,
    )


def test_a_store_that_is_down_does_not_hold_up_the_end(key: str) -> None:
    python(
        PREPARE
        + """
    import logging
    # The outage may be told before the end, and is no noise of the end.
    logging.getLogger("leadership").setLevel(logging.CRITICAL)
    standings = candidate.run_for_election()
    next(standings)
    threading.Thread(target=next, args=[standings], daemon=True).start()
    """,
        seconds=10,
        STORE="etcd://127.0.0.1:1",
        KEY=key,
    )


def test_a_server_that_is_killed_does_not_hold_up_the_end(
    etcd_server: EtcdClient, key: str
) -> None:
    printed = python(
        PREPARE
        + """
    import logging, signal
    logging.getLogger("leadership").setLevel(logging.CRITICAL)
    candidate.campaign()
    os.kill(int(os.environ["SERVER"]), signal.SIGSTOP)
    print("stopped")
    """,
        seconds=10,
        STORE=etcd_server.url,
        KEY=key,
        SERVER=str(wait_until(lambda: getattr(etcd_server, "pid", None))),
    )
    assert printed == "stopped\n"
