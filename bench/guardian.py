"""How long until the next leader leads when the present one is killed, with a guardian beside it.

    python -m bench.guardian [--kill 30] [--start 30]

Of three processes in one election the leader gets SIGKILL, and what is
measured is the time until another says True, on CLOCK_BOOTTIME, with a ttl of
15 s (peers: 2 s): nothing of it is the ttl's. The floor is what a leader takes
that resigns. Then: how long a guardian takes to start, and its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from leadership.clock import SystemClock
from leadership.guardian import Guardian
from tests.candidate_process import CandidateProcess
from tests.command import Command
from tests.guarded import (
    ConsulContest,
    Contest,
    EtcdContest,
    PeersContest,
    ZooKeeperContest,
    is_running,
)
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.servers.zookeeper import ZooKeeperServer

CLOCK = SystemClock()
TTL = 15.0
# A node that was restarted is silent for as long.
PEERS_TTL = 2.0
BAR = "p99 under 150 ms"


def killed(contest: Contest, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader to another's True."""
    times = []
    leader, others = contest.start_all()
    for _ in range(trials):
        at = leader.kill()
        following, led_at = contest.next_leader(others)
        times.append(led_at - at)
        contest.replace(leader)
        if contest._addresses[0].startswith("peers:"):
            contest.candidates[int(leader.name)].wait("ready", 60)
        contest.wait_entered()
        following.guardian()
        leader = following
        others = [each for each in contest.candidates.values() if each is not leader]
    return times


def resigned(contest: Contest, trials: int) -> list[float]:
    """Seconds from the order to resign to another's True."""
    times = []
    leader, others = contest.start_all()
    for _ in range(trials):
        at = CLOCK.now()
        leader.order("resign")
        following, led_at = contest.next_leader(others)
        times.append(led_at - at)
        leader.wait("resigned")
        contest.wait_entered()
        leader, others = (
            following,
            [each for each in contest.candidates.values() if each is not following],
        )
    return times


def killed_runner(contest: Contest, trials: int) -> list[float]:
    """As `killed`, of `leadership run`, whose command is dead before the other's True."""
    times = []
    for _ in range(trials):
        with Command(
            *("run", "--json", "--store", contest._addresses[0], "--key", contest.key),
            *("--id", "runner", "--ttl", str(contest.ttl), "--", "sleep", "1000"),
        ) as runner:
            pid = runner.wait_for("started")["pid"]
            with CandidateProcess(
                contest._addresses[0], contest.key, "other", contest.ttl
            ) as other:
                other.wait("standing", leader=False)
                contest.candidates = {0: other, 1: other}
                contest.wait_entered()
                at = CLOCK.now()
                runner.send(signal.SIGKILL)
                times.append(other.wait("standing", leader=True)["at"] - at)
                assert not is_running(pid)
    return times


def started(trials: int) -> tuple[list[float], list[float]]:
    """Seconds until a guardian is ready, and its memory in MiB."""
    times, sizes = [], []
    for _ in range(trials):
        guardian = Guardian()
        at = CLOCK.now()
        use = guardian.use(print)
        assert guardian.wait_ready(30)
        times.append(CLOCK.now() - at)
        status = Path(f"/proc/{guardian.process_id}/smaps_rollup").read_text()
        sizes.append(sum(_kilobytes(status, name) for name in ("Private_Clean", "Private_Dirty")))
        guardian.leave(use).result(30)
    return times, [size / 1024 for size in sizes]


def _kilobytes(status: str, name: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def row(name: str, values: list[float], bar: str, unit: float = 1000) -> str:
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.95, 0.99)]
    cells = [statistics.median(ordered), *at, ordered[-1]]
    return (
        f"{name:<40}{len(ordered):>7}" + "".join(f"{unit * c:>11.1f}" for c in cells) + f"  {bar}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--start", type=int, default=30)
    wanted = parser.parse_args()
    write = sys.stdout.write
    write(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.release()}\n")
    write(f"{'milliseconds':<40}{'trials':>7}")
    write("".join(f"{each:>11}" for each in ("median", "p95", "p99", "max")) + "  bar\n")
    with contextlib.ExitStack() as servers:
        etcd = servers.enter_context(EtcdServer(fast=False))
        consul = servers.enter_context(ConsulServer(fast=False))
        zookeeper = servers.enter_context(ZooKeeperServer(fast=False))
        contests: dict[str, Callable[[], Contest]] = {
            f"etcd {etcd.version}": lambda: EtcdContest(etcd, TTL),
            f"Consul {consul.version}": lambda: ConsulContest(consul, TTL),
            f"ZooKeeper {zookeeper.version}": lambda: ZooKeeperContest(zookeeper, TTL),
            "peers": lambda: PeersContest(PEERS_TTL),
        }
        for name, make in contests.items():
            for what, measure, bar in (
                ("resign", resigned, "-"),
                ("SIGKILL", killed, BAR),
            ):
                with make() as contest:
                    write(row(f"{name}: {what}", measure(contest, wanted.kill), bar) + "\n")
                    sys.stdout.flush()
        with EtcdContest(etcd, TTL) as contest:
            times = killed_runner(contest, wanted.kill)
            write(row("etcd: SIGKILL of leadership run", times, BAR) + "\n")
    times, sizes = started(wanted.start)
    write(row("start until ready", times, "-") + "\n")
    write(row("memory of its own, MiB", sizes, "-", unit=1) + "\n")


if __name__ == "__main__":
    main()
