"""Two processes on one key: how long until the next one leads, or until a follower is told.

Each moment is taken on CLOCK_BOOTTIME by the process that it happens in: from the call that
resigns, or the SIGKILL, to the other's knowing that it leads. Before each all are idle for as
long, by chance: a machine that has just slept answers in about twice the time, and who polls
must not always be met at the same moment.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import signal
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from bench.entrants import Entrant, Place
from tests.candidate_process import CandidateProcess

PATIENCE = 60.0
"""Seconds for the next leader to lead: far beyond every bar, so that a miss is a figure."""


class EntrantProcess(CandidateProcess):
    """`bench.process`, seen by whoever measures; it is connected once it says `ready`."""

    def __init__(self, entrant: type[Entrant], place: Place) -> None:
        program = ("bench.process", f"{entrant.__module__}:{entrant.__name__}")
        super().__init__(place.url, place.key, place.name, place.ttl, program=program)

    def close(self) -> None:
        """Kill it: who waits for the lead in somebody else's library hears no order to end."""
        self.kill()
        super().close()


Pair = tuple[EntrantProcess, EntrantProcess]


@dataclass(frozen=True, slots=True)
class Trials:
    """How one entrant is measured.

    Attributes:
        entrant: whose processes contend.
        url: the store.
        ttl: seconds.
        idle: the shortest and the longest pause before a trial, in seconds.
        chance: picks the pause.
        done: told after each trial.
    """

    entrant: type[Entrant]
    url: str
    ttl: float
    idle: tuple[float, float] = (0.3, 0.5)
    chance: random.Random = field(default_factory=random.Random)
    done: Callable[[], None] = lambda: None

    def pause(self) -> None:
        """All stand still; whoever is to wait for the lead or for news does so at the return."""
        threading.Event().wait(self.chance.uniform(*self.idle))

    @contextlib.contextmanager
    def processes(self, *names: str) -> Iterator[list[EntrantProcess]]:
        """So many, connected, at a key of their own."""
        key = f"bench/{uuid.uuid4().hex}"
        with contextlib.ExitStack() as stack:
            made = [
                stack.enter_context(
                    EntrantProcess(self.entrant, Place(self.url, key, name, self.ttl))
                )
                for name in names
            ]
            for process in made:
                process.wait("ready", PATIENCE)
            yield made

    @contextlib.contextmanager
    def pair(self) -> Iterator[Pair]:
        """The one that leads, and the one that waits behind it."""
        with self.processes("first", "second") as (first, second):
            first.order("contend")
            first.wait("standing", PATIENCE, leader=True)
            second.order("contend")
            self.pause()
            yield first, second

    def resigned(self) -> Generator[float]:
        """Seconds from the call that resigns to the other's True, one trial after the other."""
        with self.pair() as pair:
            leader, other = pair
            while True:
                self.pause()
                leader.order("resign")
                called = leader.wait("resigning", PATIENCE)["at"]
                led = other.wait("standing", PATIENCE, leader=True)["at"]
                leader.wait("standing", PATIENCE, leader=False)
                leader.order("contend")
                leader, other = other, leader
                self.done()
                yield led - called

    def lost(self, killed: int, asleep: int, abreast: int) -> tuple[list[float], list[bool]]:
        """Leaders that are killed, and some that sleep until another leads.

        Args:
            killed, asleep: how many.
            abreast: so many pairs wait side by side, idle but for their renewals.

        Returns:
            Seconds from each SIGKILL to the other's True; and whether each that slept, by
            SIGSTOP, says when it wakes that it leads, while another does.
        """
        times: list[float] = []
        answers: list[bool] = []
        ends = [True] * killed + [False] * asleep
        for begun in range(0, len(ends), abreast):
            with contextlib.ExitStack() as stack:
                wave = [
                    (*stack.enter_context(self.pair()), dies)
                    for dies in ends[begun : begun + abreast]
                ]
                moments = [self._end_at_random(leader, dies) for leader, _, dies in wave]
                for moment, (leader, other, dies) in zip(moments, wave, strict=True):
                    led = other.wait("standing", PATIENCE, leader=True)["at"]
                    if dies:
                        times.append(led - moment)
                    else:
                        answers.append(self._woken(leader))
                    self.done()
        return times, answers

    def _end_at_random(self, leader: EntrantProcess, dies: bool) -> float:
        # How much is left of a lease when its holder dies is chance.
        threading.Event().wait(self.chance.uniform(0, self.ttl / 3))
        if dies:
            return leader.kill()
        leader.sleep()
        return math.nan

    def _woken(self, leader: EntrantProcess) -> bool:
        """What a leader that slept says first."""
        leader.order("check")
        leader.signal(signal.SIGCONT)
        said: bool = leader.wait("checked", PATIENCE)["leader"]
        return said

    def told(self) -> Generator[float]:
        """Seconds from the call that changes the leader's value to the follower's knowing it."""
        with self.processes("candidate", "follower") as (leader, follower):
            leader.order("contend")
            leader.wait("standing", PATIENCE, leader=True)
            follower.order("follow")
            self.pause()
            for number in itertools.count():
                self.pause()
                leader.order(f"proclaim {number}")
                called = leader.wait("proclaiming", PATIENCE)["at"]
                told = follower.wait("told", PATIENCE, value=str(number))["at"]
                self.done()
                yield told - called

    def asked(self, trials: int, times: int) -> list[float]:
        """Seconds that the leader needs to answer whether it leads; the mean of `times` each."""
        with self.processes("candidate") as (leader,):
            leader.order("contend")
            leader.wait("standing", PATIENCE, leader=True)
            answers = []
            for _ in range(trials):
                leader.order(f"time {times}")
                answers.append(leader.wait("timed", PATIENCE)["seconds"])
                self.done()
            return answers


def in_turns(measured: Sequence[Iterator[float]], number: int) -> list[list[float]]:
    """So many values of each: a slower minute of the machine befalls all alike."""
    drawn: list[list[float]] = [[] for _ in measured]
    turn = list(zip(drawn, measured, strict=True))
    for _ in range(number):
        # Nobody always comes after the same one, or after the same pause.
        random.shuffle(turn)
        for values, source in turn:
            values.append(next(source))
    return drawn


def heading() -> str:
    """Above lines that `row` gives, in the scripts that measure one thing."""
    names = "".join(f"{each:>11}" for each in ("median", "p95", "p99", "max"))
    return f"{'milliseconds':<38}{'trials':>7}{names}  bar\n"


def row(name: str, seconds: Sequence[float], bar: str) -> str:
    """A line of milliseconds: trials, median, p95, p99, largest."""
    ordered = sorted(seconds)
    parts = (0.5, 0.95, 0.99)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in parts]
    cells = "".join(f"{1000 * cell:>11.1f}" for cell in (*at, ordered[-1]))
    return f"{name:<38}{len(ordered):>7}{cells}  {bar}"
