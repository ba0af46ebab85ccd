"""What is timed on every store: two processes on one key, and the store's own floor."""

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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from leadership.backend import Backend
from leadership.clock import SystemClock
from tests.candidate_process import CandidateProcess
from tests.waiting import wait_until

CLOCK = SystemClock()

PATIENCE = 60.0
"""Seconds for the next leader to lead: far beyond every bar, so that a miss is a figure."""

Pair = tuple[CandidateProcess, CandidateProcess]


@dataclass(frozen=True, slots=True)
class Ground:
    """Where two processes contend.

    Attributes:
        url: the store.
        ttl: seconds.
        is_queued: whether one leads at a key and one waits, as the store itself shows it.
    """

    url: str
    ttl: float
    is_queued: Callable[[str], bool]

    def queued(self, key: str) -> None:
        """Return once one leads and one waits."""
        wait_until(lambda: self.is_queued(key), what="one to lead and one to wait")


async def _nothing(watcher: Backend, key: str) -> None: ...


def deleted(
    make: Callable[[], Backend],
    trials: int,
    *,
    is_queued: Callable[[str], bool],
    proof: Callable[[Backend, str], Awaitable[object]] = _nothing,
) -> list[float]:
    """Seconds from a delete's send to its event at a watcher on another connection.

    Args:
        make: makes a backend, with a connection of its own.
        is_queued: asked before each trial, as before each hand-over.
        proof: what whoever is told must do still, before it may lead.
    """

    async def one(writer: Backend, watcher: Backend) -> float:
        key = f"floor/{uuid.uuid4().hex}"
        await writer.put(key, b"x")
        async with contextlib.aclosing(watcher.watch(key)) as states:
            assert await anext(states) is not None
            # A watch that the server has still to catch up with would be charged for that.
            await writer.put(key, b"y")
            assert await anext(states) is not None
            is_queued(key)
            began = CLOCK.now()
            deleting = asyncio.ensure_future(writer.delete(key))
            assert await anext(states) is None
            await proof(watcher, key)
            seconds = CLOCK.now() - began
            await deleting
            return seconds

    async def all_trials() -> list[float]:
        backends = [make() for _ in range(2)]
        try:
            return [await one(*backends) for _ in range(trials)]
        finally:
            for backend in backends:
                await backend.close()

    return asyncio.run(all_trials())


@contextlib.contextmanager
def two_candidates(ground: Ground, key: str) -> Iterator[Pair]:
    """The one that leads, and the one that waits behind it."""
    with CandidateProcess(ground.url, key, "first", ground.ttl) as first:
        first.wait("standing", leader=True)
        with CandidateProcess(ground.url, key, "second", ground.ttl) as second:
            ground.queued(key)
            yield first, second


def resigned(ground: Ground, trials: int) -> list[float]:
    """Seconds from the order to resign to the other's True."""
    times = []
    key = _some_key()
    with two_candidates(ground, key) as pair:
        leader, other = pair
        for _ in range(trials):
            began = CLOCK.now()
            leader.order("resign")
            times.append(other.wait("standing", leader=True)["at"] - began)
            leader, other = other, leader
            # The former leader must wait again before the next round.
            ground.queued(key)
    return times


def killed(ground: Ground, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader to the other's True."""
    times = []
    for _ in range(trials):
        with two_candidates(ground, _some_key()) as (leader, other):
            at = leader.kill()
            times.append(other.wait("standing", timeout=PATIENCE, leader=True)["at"] - at)
    return times


def slept(ground: Ground, trials: int) -> list[float]:
    """Seconds from SIGSTOP of the leader to the other's True; who slept must wake as no leader."""
    times = []
    for _ in range(trials):
        with two_candidates(ground, _some_key()) as (leader, other):
            began = CLOCK.now()
            leader.sleep()
            leader.order("check")
            new = other.wait("standing", timeout=PATIENCE, leader=True)
            times.append(new["at"] - began)
            leader.signal(signal.SIGCONT)
            checked = leader.wait("checked")
            assert checked["leader"] is False
            assert checked["token"] < new["token"]
    return times


@dataclass(frozen=True, slots=True)
class Round:
    """A row of the table, and how it is measured."""

    name: str
    measure: Callable[[int], list[float]]
    trials: int
    bar: str


def hand_overs(ground: Ground, wanted: argparse.Namespace, bar: str) -> list[Round]:
    """By resigning, by SIGKILL and by SIGSTOP, so often each; `bar` is SIGKILL's."""
    who = f"-> the other's True, ttl {ground.ttl:g}"
    return [
        Round(
            "resign -> the other's True",
            partial(resigned, ground),
            wanted.resign,
            "p99 under 60 ms",
        ),
        Round(f"SIGKILL {who}", partial(killed, ground), wanted.kill, bar),
        Round(f"SIGSTOP {who}", partial(slept, ground), wanted.sleep, "sleeper says False"),
    ]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """How many trials of each."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--resign", type=int, default=200)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--sleep", type=int, default=30)
    return parser


def show(title: str, rounds: Iterable[Round]) -> None:
    """Write a table to the standard output, row by row as they are measured."""
    write = sys.stdout.write
    write(f"{title}, {os.cpu_count()} cores, ")
    write(f"Python {platform.python_version()}, {platform.system()} {platform.release()}\n")
    write(f"{'milliseconds':<34}{'trials':>7}")
    write("".join(f"{each:>11}" for each in ("median", "p95", "p99", "max")) + "  bar\n")
    for each in rounds:
        if each.trials:
            write(row(each.name, each.measure(each.trials), each.bar) + "\n")
            sys.stdout.flush()


def row(name: str, seconds: list[float], bar: str) -> str:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.95, 0.99)]
    cells = [statistics.median(ordered), *at, ordered[-1]]
    return (
        f"{name:<34}{len(ordered):>7}" + "".join(f"{1000 * c:>11.1f}" for c in cells) + f"  {bar}"
    )


def _some_key() -> str:
    return f"bench/{uuid.uuid4().hex}"
