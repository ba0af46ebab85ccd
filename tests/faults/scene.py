"""A round's actors: candidates in their slots, the register, the ground under them."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leadership.clock import SystemClock
from tests.waiting import wait_until

from .contender import Wish
from .ground import KEY, SLOTS, Ground
from .history import (
    AnyRecord,
    Closing,
    Entered,
    Healed,
    Hung,
    Injected,
    Recorder,
    Remained,
    Removed,
    Setting,
)
from .process import GRACE, Process
from .register import Register
from .wall_clock import WallClock, can_be_stepped

START = 60.0
"""Seconds for the first leader of a round."""

_CLOCK = SystemClock()


Steps = Iterator[float]
"""A fault: the seconds until it goes on; between two of its steps others may act."""


class Scene:
    """What faults act on.

    Args:
        ground: started already.
        folder: for the records and logs; empty.
        chance: draws whatever is left open.
        over: ends every wait early.
    """

    def __init__(
        self,
        ground: Ground,
        folder: Path,
        chance: random.Random,
        seed: int,
        over: threading.Event,
    ) -> None:
        self.ground = ground
        self.chance = chance
        self._folder = folder
        self._over = over
        self._never = threading.Event()
        self._seed = seed
        self._recorder = Recorder(folder / "scene.jsonl")
        self._serial = itertools.count(1)
        self.register = Register(folder / "register.jsonl")
        self.processes: dict[int, Process] = {}
        self._wall_clocks: dict[int, WallClock] = {}

    # --- the candidates ---

    def start(self, slot: int, ttl: float | None = None) -> Process:
        """Start a candidate in this slot, after whoever had it has ended.

        It contends once `has_started`, which takes an interpreter's start.

        Args:
            ttl: seconds, if not the ground's.
        """
        former = self.processes.get(slot)
        if former is not None:
            self._await_end(former)
        # A candidate on an event loop is as good as one on a thread, so some are.
        asynchronous = slot % 2 == 1
        name = f"{slot}.{next(self._serial)}"
        wish = Wish(
            url=self.ground.url(slot),
            key=KEY,
            name=name,
            ttl=ttl or self.ground.ttl,
            record=str(self._folder / f"candidate-{name}.jsonl"),
            register=str(self.register.path),
            asynchronous=asynchronous,
        )
        log = self._folder / f"candidate-{slot}.log"
        started = Process(wish, log, self.ground.command(slot), self._environment(slot))
        self.processes[slot] = started
        return started

    def leader(self) -> int:
        """The slot of whoever wrote last, if it contends; else of anybody."""
        for slot, process in self.processes.items():
            if process.name == self.register.owner and process.is_contending:
                return slot
        return self.anybody()

    def anybody(self) -> int:
        """The slot of some candidate that contends, if any does."""
        awake = [slot for slot, process in self.processes.items() if process.is_contending]
        return self.chance.choice(awake or list(self.processes))

    def somebody(self) -> int:
        """The leader, more often than not."""
        return self.leader() if self.chance.random() < 0.7 else self.anybody()

    # --- the wall clock ---

    def step_wall_clock(self, slot: int, seconds: int) -> None:
        """For this candidate it is so much later than for us from now on."""
        self._wall_clocks[slot].step(seconds)

    def _environment(self, slot: int) -> dict[str, str]:
        if not can_be_stepped():
            return {}
        clock = self._wall_clocks[slot] = WallClock(self._folder / f"wall-clock-{slot}")
        return clock.environment

    # --- the course of a round ---

    def open(self) -> None:
        """Start the candidates; there is a leader at the return."""
        began = self.now()
        for slot in range(SLOTS):
            self.start(slot)
        wait_until(lambda: self.register.accepted, START, f"a leader; logs in {self._folder}")
        ground = self.ground
        self.record(
            Setting(began, ground.backend, ground.ttl, ground.bound, self.now(), self._seed)
        )

    def close(self) -> None:
        """Stop the candidates in good order, then look what is left of them."""
        self.record(Closing(self.now()))
        for process in self.processes.values():
            if process.is_running:
                process.resume()
                process.terminate()
        for process in self.processes.values():
            self._await_end(process)
        # The session of one that was killed lapses; nothing of the others' is there.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.ground.remains(), self.ground.bound)
        self.record(Remained(self.now(), tuple(self.ground.remains())))

    def _await_end(self, process: Process) -> None:
        if not process.wait():
            self.record(Hung(self.now(), process.name, GRACE))

    def calm_down(self) -> None:
        """After the last fault: let somebody lead, then record what entries there are."""
        before = self.register.accepted
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.register.accepted > before, 2 * self.ground.bound)
        alive = sum(process.is_running for process in self.processes.values())
        owners: list[str] = []

        def stands() -> bool:
            # Those of the dead lapse in their time.
            owners[:] = self.ground.entries()
            return len(set(owners)) == len(owners) <= alive

        with contextlib.suppress(AssertionError):
            wait_until(stands, self.ground.bound)
        self.record(Entered(self.now(), tuple(owners), alive))

    def injected(
        self, number: int, kind: str, target: str, *, removal: bool, concerns_one: bool
    ) -> None:
        """A fault begins."""
        self.record(Injected(self.now(), number, kind, target, removal, concerns_one))

    def removed(self) -> None:
        """What an operator was to take away is gone."""
        self.record(Removed(self.now()))

    def healed(self, number: int) -> None:
        """That fault is over."""
        self.record(Healed(self.now(), number))

    def wait(self, seconds: float) -> bool:
        """Let time pass; False when the round is to end."""
        if not self._over.wait(max(0.0, seconds)):
            return True
        # What is mended may still take its time.
        self._never.wait(min(max(0.0, seconds), 0.1))
        return False

    def record(self, record: AnyRecord) -> None:
        self._recorder.write(record)

    def now(self) -> float:
        return _CLOCK.now()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The register serves; nobody is left running at the end, whatever happens."""
        with self.register:
            try:
                yield
            finally:
                for process in self.processes.values():
                    if process.is_running:
                        process.kill()
                self._recorder.close()


def restarted(scene: Scene, *slots: int, ttl: float | None = None) -> Steps:
    """Start candidates in these slots; they contend when it is over."""
    processes = [scene.start(slot, ttl) for slot in slots]
    while any(process.is_running and not process.has_started for process in processes):
        yield 0.05


def behind(*acts: Callable[[], object]) -> Steps:
    """Do all of these at once, while other faults go on; over when they are done."""
    with ThreadPoolExecutor(len(acts)) as pool:
        for doing in [pool.submit(act) for act in acts]:
            while not doing.done():
                yield 0.1
            doing.result()


def long(scene: Scene) -> float:
    """Seconds after which somebody else leads instead."""
    return scene.ground.expiry + scene.chance.uniform(0.3, 1.3) * scene.ground.ttl


def short_or_long(scene: Scene) -> float:
    """Seconds after which somebody else leads instead, or perhaps not."""
    short = scene.chance.uniform(0.2, 0.8) * scene.ground.ttl
    return scene.chance.choice((short, long(scene)))
