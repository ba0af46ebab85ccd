"""How long until the next leader leads: two processes on one key of a real etcd.

    python -m bench.handover [--resign 200] [--kill 30] [--sleep 30]

Each row is measured between processes on CLOCK_BOOTTIME. The floor is what
the store itself takes with the same client: one delete, and the watch event
of it in another connection. Who was woken must still prove its entry by one
read: the second floor has that too. Between two trials all are idle for as
long, since a machine that has just slept answers in about twice the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import statistics
import sys
import uuid
from collections.abc import Callable, Iterator

from leadership.backend import Address, Context
from leadership.backends.etcd import EtcdBackend
from leadership.clock import SystemClock
from tests.candidate_process import CandidateProcess
from tests.servers.etcd import EtcdServer
from tests.waiting import wait_until

CLOCK = SystemClock()
TTL = 2.0

Pair = tuple[CandidateProcess, CandidateProcess]


def floor(server: EtcdServer, trials: int) -> list[float]:
    """Seconds from a delete's send to its event at a watcher on another connection."""
    return deleted(server, trials, proved=False)


def floor_with_proof(server: EtcdServer, trials: int) -> list[float]:
    """As `floor`, until the watcher has read once more."""
    return deleted(server, trials, proved=True)


def deleted(server: EtcdServer, trials: int, proved: bool) -> list[float]:

    async def one(writer: EtcdBackend, watcher: EtcdBackend) -> float:
        key = f"floor/{uuid.uuid4().hex}"
        await writer.put(key, b"x")
        async with contextlib.aclosing(watcher.watch(key)) as states:
            assert await anext(states) is not None
            # A watch that the server has still to catch up with would be charged for that.
            await writer.put(key, b"y")
            assert await anext(states) is not None
            # As before each hand-over.
            entries(server, key)
            began = CLOCK.now()
            deleting = asyncio.ensure_future(writer.delete(key))
            assert await anext(states) is None
            if proved:
                await watcher.get(key)
            seconds = CLOCK.now() - began
            await deleting
            return seconds

    async def all_trials() -> list[float]:
        address = Address("etcd", (server.endpoint,))
        backends = [EtcdBackend(address, Context()) for _ in range(2)]
        try:
            return [await one(*backends) for _ in range(trials)]
        finally:
            for backend in backends:
                await backend.close()

    return asyncio.run(all_trials())


@contextlib.contextmanager
def two_candidates(server: EtcdServer) -> Iterator[Pair]:
    """The one that leads, and the one that waits behind it."""
    key = f"bench/{uuid.uuid4().hex}"
    with CandidateProcess(server.url, key, "first", TTL) as first:
        first.wait("standing", leader=True)
        with CandidateProcess(server.url, key, "second", TTL) as second:
            wait_until(lambda: entries(server, key) == 2, what="the second entry")
            yield first, second


def entries(server: EtcdServer, key: str) -> int:
    return len(server.ctl("get", "--prefix", f"{key}/", "--keys-only").split())


def resigned(server: EtcdServer, trials: int) -> list[float]:
    """Seconds from the order to resign to the other's True."""
    times = []
    with two_candidates(server) as pair:
        leader, other = pair
        for _ in range(trials):
            began = CLOCK.now()
            leader.order("resign")
            times.append(other.wait("standing", leader=True)["at"] - began)
            leader, other = other, leader
            # The former leader must be in the queue again before the next round.
            key = other_key(leader)
            wait_until(lambda key=key: entries(server, key) == 2, what="both entries")  # type: ignore[misc]
    return times


def other_key(process: CandidateProcess) -> str:
    arguments = process.process.args
    assert isinstance(arguments, list)
    return str(arguments[-3])


def killed(server: EtcdServer, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader to the other's True."""
    times = []
    for _ in range(trials):
        with two_candidates(server) as (leader, other):
            at = leader.kill()
            times.append(other.wait("standing", leader=True)["at"] - at)
    return times


def slept(server: EtcdServer, trials: int) -> list[float]:
    """Seconds from SIGSTOP of the leader to the other's True; who slept must wake as no leader."""
    times = []
    for _ in range(trials):
        with two_candidates(server) as (leader, other):
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


def row(name: str, seconds: list[float], bar: str) -> str:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.95, 0.99)]
    cells = [statistics.median(ordered), *at, ordered[-1]]
    return (
        f"{name:<34}{len(ordered):>7}" + "".join(f"{1000 * c:>11.1f}" for c in cells) + f"  {bar}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resign", type=int, default=200)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--sleep", type=int, default=30)
    wanted = parser.parse_args()
    rounds: list[tuple[str, Callable[[EtcdServer, int], list[float]], int, str]] = [
        ("floor: delete + watch event", floor, wanted.resign, "-"),
        ("the same, and one read", floor_with_proof, wanted.resign, "-"),
        ("resign -> the other's True", resigned, wanted.resign, "p99 under 60 ms"),
        (f"SIGKILL -> the other's True, ttl {TTL:g}", killed, wanted.kill, "under 2700 ms"),
        (f"SIGSTOP -> the other's True, ttl {TTL:g}", slept, wanted.sleep, "sleeper says False"),
    ]
    write = sys.stdout.write
    with EtcdServer(fast=False) as server:
        write(f"etcd {server.version} with default timings, {os.cpu_count()} cores, ")
        write(f"Python {platform.python_version()}, {platform.system()} {platform.release()}\n")
        write(f"{'milliseconds':<34}{'trials':>7}")
        write("".join(f"{each:>11}" for each in ("median", "p95", "p99", "max")) + "  bar\n")
        for name, measure, trials, bar in rounds:
            if trials:
                write(row(name, measure(server, trials), bar) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
