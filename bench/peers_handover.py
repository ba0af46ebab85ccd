"""How long until the next leader leads, with no server: processes that are peers, on loopback.

    python -m bench.peers_handover [--trials 200] [--processes 2 3]

Each process is a node of its own and a candidate. Measured on CLOCK_BOOTTIME
from the order to resign, which goes through a pipe, to the other's True. The
floor is one message from process to process and its answer, as the nodes send
them; a hand-off takes one and a half of these, a majority's promise among them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence

from bench.trials import heading, row
from leadership.backends._peers_http import Client, Limits
from leadership.backends._peers_legacy import WHO
from leadership.clock import SystemClock
from tests.candidate_process import CandidateProcess
from tests.peers_cluster import PeersCluster
from tests.waiting import wait_until

CLOCK = SystemClock()
KEY = "bench/leader"
TTL = 1.0


@contextlib.contextmanager
def candidates(size: int) -> Iterator[tuple[PeersCluster, list[CandidateProcess]]]:
    """A cluster in so many processes; whoever leads comes first, and the others wait behind it."""
    cluster = PeersCluster(size)
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(CandidateProcess(cluster.url(number), KEY, f"n{number}", TTL))
            for number in range(size)
        ]
        first, _ = first_to_lead(processes)
        processes.sort(key=lambda process: process is not first)
        yield cluster, processes


def handed_over(size: int, trials: int, *, named: bool) -> list[float]:
    """Seconds from each order to resign to the True of the one that leads next.

    Args:
        named: to the one that waits longest, by its id; else to anybody.
    """
    times = []
    with candidates(size) as (_, queue):
        for _ in range(trials):
            leader, following = queue[0], queue[1]
            hears_who_waits(leader)
            began = CLOCK.now()
            leader.order(f"resign {following.name}" if named else "resign")
            led = first_to_lead(queue[1:])
            times.append(led[1] - began)
            queue.remove(led[0])
            queue.remove(leader)
            queue.insert(0, led[0])
            queue.append(leader)
            leader.wait("standing", leader=False)
    return times


def hears_who_waits(leader: CandidateProcess) -> None:
    """Until it has: it looks that long for one of whom nobody has heard, and refuses."""
    leader.order("resign nobody")
    leader.wait("refused")


def first_to_lead(waiting: Sequence[CandidateProcess]) -> tuple[CandidateProcess, float]:
    """Whichever of them leads next, and since when."""

    def look() -> tuple[CandidateProcess, float] | None:
        for process in waiting:
            said = process.heard("standing", leader=True)
            if said is not None:
                return process, said["at"]
        return None

    return wait_until(look, 20, "the next leader")


def floor(trials: int) -> list[float]:
    """Seconds that one request to a node in another process and its answer take."""

    async def all_trials(address: str) -> list[float]:
        client = Client(Limits(), None)
        times = []
        try:
            for _ in range(trials):
                began = CLOCK.now()
                await client.call("GET", address, WHO, timeout=5.0)
                times.append(CLOCK.now() - began)
        finally:
            await client.close()
        return times

    with candidates(2) as (cluster, _):
        return asyncio.run(all_trials(cluster.addresses[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    wanted = parser.parse_args()
    write = sys.stdout.write
    write(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}\n")
    write(heading())
    write(row("floor: a request and its answer", floor(wanted.trials), "-") + "\n")
    for size in wanted.processes:
        for named, what in ((False, "resign()"), (True, "resign(to=...)")):
            times = handed_over(size, wanted.trials, named=named)
            write(row(f"{what} -> True, {size} processes", times, "median 15 ms") + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
