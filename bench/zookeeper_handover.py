"""How long until the next leader leads on ZooKeeper: two processes on one key.

    python -m bench.zookeeper_handover [--resign 200] [--kill 30] [--sleep 30] [--many 2000]

As `bench.handover`, with ZooKeeper's own timing: a session of 4 s expires
after 4 to 6 s. `--many` elections are entered on one store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator

from kazoo.client import KazooClient

from bench.handover import row
from leadership import aio
from leadership.backend import Address, Context
from leadership.backends.zookeeper import ZooKeeperBackend
from leadership.clock import SystemClock
from tests.candidate_process import CandidateProcess
from tests.servers.zookeeper import ZooKeeperServer
from tests.waiting import wait_until
from tests.zookeeper_elections import entries

CLOCK = SystemClock()
TTL = 4.0


def floor(server: ZooKeeperServer, trials: int) -> list[float]:
    """Seconds from a delete's send to its event at a watcher on another connection."""

    async def one(writer: ZooKeeperBackend, watcher: ZooKeeperBackend) -> float:
        key = f"floor/{uuid.uuid4().hex}"
        await writer.put(key, b"x")
        async with contextlib.aclosing(watcher.watch(key)) as states:
            assert await anext(states) is not None
            began = CLOCK.now()
            deleting = asyncio.ensure_future(writer.delete(key))
            assert await anext(states) is None
            seconds = CLOCK.now() - began
            await deleting
            return seconds

    async def all_trials() -> list[float]:
        address = Address("zookeeper", (server.endpoint,))
        backends = [ZooKeeperBackend(address, Context()) for _ in range(2)]
        try:
            return [await one(*backends) for _ in range(trials)]
        finally:
            for backend in backends:
                await backend.close()

    return asyncio.run(all_trials())


@contextlib.contextmanager
def two_candidates(
    server: ZooKeeperServer,
) -> Iterator[tuple[CandidateProcess, CandidateProcess, Callable[[], bool]]]:
    """The one that leads, the one that waits behind it, and whether both have an entry."""
    key = f"bench/{uuid.uuid4().hex}"
    with (
        server.client() as client,
        CandidateProcess(server.url, key, "first", TTL) as first,
    ):
        first.wait("standing", leader=True)
        with CandidateProcess(server.url, key, "second", TTL) as second:
            wait_until(lambda: both(client, key), what="the second entry")
            yield first, second, lambda: both(client, key)


def both(client: KazooClient, key: str) -> bool:
    return len(entries(client, key)) == 2


def resigned(server: ZooKeeperServer, trials: int) -> list[float]:
    """Seconds from the order to resign to the other's True."""
    times = []
    with two_candidates(server) as (first, second, both_are_there):
        leader, other = first, second
        for _ in range(trials):
            began = CLOCK.now()
            leader.order("resign")
            times.append(other.wait("standing", leader=True)["at"] - began)
            leader, other = other, leader
            # The former leader must be in the queue again before the next round.
            wait_until(both_are_there, what="both entries")
    return times


def killed(server: ZooKeeperServer, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader to the other's True."""
    times = []
    for _ in range(trials):
        with two_candidates(server) as (leader, other, _both):
            at = leader.kill()
            times.append(other.wait("standing", leader=True)["at"] - at)
    return times


def slept(server: ZooKeeperServer, trials: int) -> list[float]:
    """Seconds from SIGSTOP of the leader to the other's True; who slept must wake as no leader."""
    times = []
    for _ in range(trials):
        with two_candidates(server) as (leader, other, _both):
            began = CLOCK.now()
            leader.sleep()
            leader.order("check")
            new = other.wait("standing", leader=True)
            times.append(new["at"] - began)
            leader.signal(signal.SIGCONT)
            checked = leader.wait("checked")
            assert checked["leader"] is False
            assert checked["token"] < new["token"]
    return times


def many(server: ZooKeeperServer, number: int) -> str:
    """Enter so many elections on one store."""

    async def scenario() -> tuple[float, int]:
        async with aio.new_store(server.url) as store:
            names = [f"many/{uuid.uuid4().hex}" for _ in range(number)]
            candidates = [aio.Candidate(store, name, "a", ttl=20) for name in names]
            began = CLOCK.now()
            await asyncio.gather(*(each.campaign(timeout=300) for each in candidates))
            return CLOCK.now() - began, threading.active_count()

    seconds, threads = asyncio.run(scenario())
    return f"{number} elections on one store: entered in {seconds:.1f} s, {threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resign", type=int, default=200)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--sleep", type=int, default=30)
    parser.add_argument("--many", type=int, default=2000)
    wanted = parser.parse_args()
    rounds: list[tuple[str, Callable[[ZooKeeperServer, int], list[float]], int, str]] = [
        ("floor: delete + watch event", floor, wanted.resign, "-"),
        ("resign -> the other's True", resigned, wanted.resign, "p99 under 60 ms"),
        (f"SIGKILL -> the other's True, ttl {TTL:g}", killed, wanted.kill, "under 6200 ms"),
        (f"SIGSTOP -> the other's True, ttl {TTL:g}", slept, wanted.sleep, "sleeper says False"),
    ]
    write = sys.stdout.write
    with ZooKeeperServer(fast=False) as server:
        write(f"ZooKeeper {server.version} with default timings, {os.cpu_count()} cores, ")
        write(f"Python {platform.python_version()}, {platform.system()} {platform.release()}\n")
        write(f"{'milliseconds':<34}{'trials':>7}")
        write("".join(f"{each:>11}" for each in ("median", "p95", "p99", "max")) + "  bar\n")
        for name, measure, trials, bar in rounds:
            if trials:
                write(row(name, measure(server, trials), bar) + "\n")
                sys.stdout.flush()
        if wanted.many:
            write(many(server, wanted.many) + "\n")


if __name__ == "__main__":
    main()
