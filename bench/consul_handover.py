"""How long until the next leader leads on a real Consul, and how much is written for it.

    python -m bench.consul_handover [--resign 200] [--kill 30] [--sleep 30] [--ttl 2]

Each row of times is measured between processes on CLOCK_BOOTTIME. The floor is
what the store itself takes with the same client: one delete, and the answer to
a blocking query on another connection. Where the key is not handed over, who
heard of it must still acquire it: the second floor has that too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
import uuid
from collections.abc import Callable, Iterator

from bench.handover import CLOCK, Pair, other_key, row
from leadership import aio
from leadership.backend import Address, Context
from leadership.backends._consul_requests import places_of
from leadership.backends.consul import ConsulBackend
from leadership.events import Elected, Event
from tests.candidate_process import CandidateProcess
from tests.servers.consul import ConsulServer
from tests.waiting import async_wait_until, wait_until


def floor(server: ConsulServer, ttl: float, trials: int) -> list[float]:
    """Seconds from a delete's send to its being told on another connection."""
    return deleted(server, trials, acquired=False)


def floor_with_acquisition(server: ConsulServer, ttl: float, trials: int) -> list[float]:
    """As `floor`, until who was told has written once."""
    return deleted(server, trials, acquired=True)


def deleted(server: ConsulServer, trials: int, acquired: bool) -> list[float]:
    async def one(writer: ConsulBackend, watcher: ConsulBackend) -> float:
        key = f"floor/{uuid.uuid4().hex}"
        await writer.put(key, b"x")
        async with contextlib.aclosing(watcher.watch(key)) as states:
            assert await anext(states) is not None
            await writer.put(key, b"y")
            assert await anext(states) is not None
            # As before each hand-over.
            waiting(server, key)
            began = CLOCK.now()
            deleting = asyncio.ensure_future(writer.delete(key))
            assert await anext(states) is None
            if acquired:
                await watcher.put(key, b"z")
            seconds = CLOCK.now() - began
            await deleting
            return seconds

    async def all_trials() -> list[float]:
        address = Address("consul", (server.endpoint,))
        backends = [ConsulBackend(address, Context()) for _ in range(2)]
        try:
            return [await one(*backends) for _ in range(trials)]
        finally:
            for backend in backends:
                await backend.close()

    return asyncio.run(all_trials())


@contextlib.contextmanager
def two_candidates(server: ConsulServer, ttl: float) -> Iterator[Pair]:
    """The one that leads, and the one that waits behind it."""
    key = f"bench/{uuid.uuid4().hex}"
    with CandidateProcess(server.url, key, "first", ttl) as first:
        first.wait("standing", leader=True)
        with CandidateProcess(server.url, key, "second", ttl) as second:
            wait_until(lambda: waiting(server, key) == 1, what="the second's place")
            yield first, second


def waiting(server: ConsulServer, key: str) -> int:
    return len(server.keys(places_of(key)))


def resigned(server: ConsulServer, ttl: float, trials: int) -> list[float]:
    """Seconds from the order to resign to the other's True."""
    times = []
    with two_candidates(server, ttl) as pair:
        leader, other = pair
        key = other_key(leader)
        for _ in range(trials):
            began = CLOCK.now()
            leader.order("resign")
            times.append(other.wait("standing", leader=True)["at"] - began)
            leader, other = other, leader
            # The former leader must wait again before the next round.
            wait_until(lambda: waiting(server, key) == 1, what="its place")
    return times


def killed(server: ConsulServer, ttl: float, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader to the other's True."""
    times = []
    for _ in range(trials):
        with two_candidates(server, ttl) as (leader, other):
            at = leader.kill()
            times.append(other.wait("standing", timeout=60, leader=True)["at"] - at)
    return times


def slept(server: ConsulServer, ttl: float, trials: int) -> list[float]:
    """Seconds from SIGSTOP of the leader to the other's True; who slept must wake as no leader."""
    times = []
    for _ in range(trials):
        with two_candidates(server, ttl) as (leader, other):
            began = CLOCK.now()
            leader.sleep()
            leader.order("check")
            new = other.wait("standing", timeout=60, leader=True)
            times.append(new["at"] - began)
            leader.signal(signal.SIGCONT)
            checked = leader.wait("checked")
            assert checked["leader"] is False
            assert checked["token"] < new["token"]
    return times


def written(server: ConsulServer, changes: int, candidates: int = 200) -> list[int]:
    """Entries in the server's log for each change of the leader, until all wait again."""
    key = f"bench/{uuid.uuid4().hex}"
    elected: list[Event] = []
    order: asyncio.Queue[None] = asyncio.Queue()

    async def lead_by_turns(candidate: aio.Candidate) -> None:
        async for leads in candidate.run_for_election():
            if leads:
                await order.get()
                await candidate.resign()

    async def all_changes() -> list[int]:
        def hook(event: Event) -> None:
            if isinstance(event, Elected):
                elected.append(event)

        def settled(terms: int) -> bool:
            return len(elected) == terms and waiting(server, key) == candidates - 1

        counts = []
        async with aio.new_store(server.url, hooks=[hook]) as store:
            runs = [
                asyncio.ensure_future(lead_by_turns(aio.Candidate(store, key, str(n), ttl=60)))
                for n in range(candidates)
            ]
            await async_wait_until(lambda: settled(1), 60, "all to wait")
            for change in range(changes):
                before = server.writes()
                order.put_nowait(None)
                await async_wait_until(lambda n=change: settled(n + 2), 20, "the next")  # type: ignore[misc]
                counts.append(server.writes() - before)
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        return counts

    return asyncio.run(all_changes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resign", type=int, default=200)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--sleep", type=int, default=30)
    parser.add_argument("--changes", type=int, default=30)
    parser.add_argument("--ttl", type=float, default=2.0, help="seconds; from 10 on: defaults")
    wanted = parser.parse_args()
    ttl = wanted.ttl
    bar = f"under {2000 * ttl + 500:g} ms"
    rounds: list[tuple[str, Callable[[ConsulServer, float, int], list[float]], int, str]] = [
        ("floor: delete + blocking query", floor, wanted.resign, "-"),
        ("the same, and one write", floor_with_acquisition, wanted.resign, "-"),
        ("resign -> the other's True", resigned, wanted.resign, "p99 under 60 ms"),
        (f"SIGKILL -> the other's True, ttl {ttl:g}", killed, wanted.kill, bar),
        (f"SIGSTOP -> the other's True, ttl {ttl:g}", slept, wanted.sleep, "sleeper says False"),
    ]
    write = sys.stdout.write
    with ConsulServer(fast=ttl < 10) as server:
        write(f"Consul {server.version}, {os.cpu_count()} cores, ")
        write(f"Python {platform.python_version()}, {platform.system()} {platform.release()}\n")
        write(f"{'milliseconds':<34}{'trials':>7}")
        write("".join(f"{each:>11}" for each in ("median", "p95", "p99", "max")) + "  bar\n")
        for name, measure, trials, limit in rounds:
            if trials:
                write(row(name, measure(server, ttl, trials), limit) + "\n")
                sys.stdout.flush()
        if wanted.changes:
            counts = sorted(written(server, wanted.changes))
            write(f"writes for a change of the leader, 200 candidates, {len(counts)} changes: ")
            write(f"median {counts[len(counts) // 2]}, max {counts[-1]}; bar: 3\n")


if __name__ == "__main__":
    main()
