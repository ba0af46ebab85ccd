"""A round: candidates contend, faults come and go, and the history is checked."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import history
from .checker import Violation, leaders, violations
from .grounds import ground
from .history import AnyRecord, Injected, Registered
from .kinds import KINDS, Kind
from .scene import Scene, Steps

AT_ONCE = 2
"""Faults."""

_PER_ROUND = 25
"""Kinds for which a round of a minute has time at least, as a rule."""

_PATIENCE = 3
"""Times that the next kind is passed over because another one breaks the same."""

Progress = Callable[[str], None]


def _silent(what: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played; everything that is left open is drawn from the seed.

    Attributes:
        seconds: for which faults are begun.
        clustered: on three servers instead of one; of peers: on three machines.
        kinds: names of the faults to choose from; all, if there are none.
    """

    backend: str
    seed: int
    seconds: float
    clustered: bool = False
    kinds: tuple[str, ...] = ()


@dataclass(slots=True)
class Summary:
    """What came of some rounds."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    writes: int = 0
    rejected: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, records: Sequence[AnyRecord]) -> list[Violation]:
        """Count, and check, one round's history; its violations."""
        found = violations(records)
        writes = [record for record in records if isinstance(record, Registered)]
        self.rounds += 1
        self.faults.update(record.kind for record in records if isinstance(record, Injected))
        self.changes += max(0, leaders(records) - 1)
        self.writes += len(writes)
        self.rejected += sum(not write.accepted for write in writes)
        self.violations += found
        return found

    def __str__(self) -> str:
        total = (
            f"{self.rounds} rounds, {self.faults.total()} faults, {self.changes} leader changes, "
            f"{self.writes} register writes, {self.rejected} rejected, "
            f"{len(self.violations)} violations"
        )
        lines = [f"  {count:>6}  {kind}" for kind, count in sorted(self.faults.items())]
        return "\n".join([total, *lines, *map(str, self.violations)])


def play(
    plan: Plan,
    file: Path,
    over: threading.Event | None = None,
    progress: Progress = _silent,
) -> None:
    """Play a round and write its history to `file`.

    Args:
        over: ends it early, and in order.
        progress: is told each fault's name as it begins.
    """
    chance = random.Random(plan.seed)
    folder = Path(tempfile.mkdtemp(prefix=f"round-{plan.backend}-"))
    try:
        with ground(plan.backend, plan.clustered, folder, chance) as here:
            try:
                scene = Scene(here, folder, chance, plan.seed, over or threading.Event())
                with scene.running():
                    scene.open()
                    _Course(scene, plan, progress).run()
                    scene.calm_down()
                    scene.close()
            finally:
                # A store may end what it should keep, and only its own word tells why.
                for number, server in enumerate(here.servers):
                    shutil.copy(server.log, folder / f"server-{number}.log")
    finally:
        # Also of a round that broke off: there it is wanted most.
        history.write(file, history.merged(sorted(folder.glob("*.jsonl"))))
        for log in folder.glob("*.log"):
            if log.stat().st_size:
                shutil.copy(log, file.with_suffix(f".{log.stem}.log"))
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class _Fault:
    number: int
    kind: Kind
    steps: Steps
    due: float


class _Course:
    """Faults, of which a few run at a time."""

    def __init__(self, scene: Scene, plan: Plan, progress: Progress) -> None:
        self._scene = scene
        self._seconds = plan.seconds
        self._progress = progress
        self._kinds = [
            kind
            for kind in KINDS
            if kind.possible(scene.ground) and (not plan.kinds or kind.name in plan.kinds)
        ]
        self._bag = self._share(plan)
        self._passed_over = 0
        self._active: list[_Fault] = []
        self._begun = 0

    def run(self) -> None:
        """Until the time is over and every fault is mended."""
        scene = self._scene
        end = scene.now() + self._seconds
        next_at = scene.now()
        going_on = True
        while going_on or self._active:
            due = [fault.due for fault in self._active] + ([next_at] if going_on else [])
            # Called off: what is broken is mended at once.
            called_off = not scene.wait(min(due) - scene.now())
            for fault in list(self._active):
                if called_off or scene.now() >= fault.due:
                    self._go_on(fault)
            going_on = not called_off and scene.now() < end
            if going_on and scene.now() >= next_at:
                self._begin()
                next_at = scene.now() + scene.chance.uniform(0.1, 1.5) * scene.ground.ttl

    def _begin(self) -> None:
        kind = self._draw()
        if kind is None:
            return
        self._begun += 1
        slot = self._scene.leader() if kind.leader else self._scene.somebody()
        self._progress(kind.name)
        self._scene.injected(
            self._begun,
            kind.name,
            self._scene.processes[slot].name,
            removal=kind.removal,
            concerns_one=kind.concerns_one,
        )
        fault = _Fault(self._begun, kind, kind.play(self._scene, slot), 0.0)
        self._active.append(fault)
        self._go_on(fault)

    def _draw(self) -> Kind | None:
        """One that can begin now; each kind comes once before any comes again."""
        if len(self._active) >= AT_ONCE or any(fault.kind.alone for fault in self._active):
            return None
        if not self._bag:
            self._bag = self._scene.chance.sample(self._kinds, len(self._kinds))
        busy = {area for fault in self._active for area in fault.kind.areas}
        for kind in self._bag:
            if not kind.areas & busy and not (kind.alone and self._active):
                # Whoever breaks much would have to wait for ever, were others always let pass.
                self._passed_over = 0 if kind is self._bag[0] else self._passed_over + 1
                self._bag.remove(kind)
                return kind
            if self._passed_over >= _PATIENCE:
                return None
        return None

    def _share(self, plan: Plan) -> list[Kind]:
        """Of all kinds those that this seed begins with: the seeds after it go on from there."""
        order = random.Random(plan.backend).sample(self._kinds, len(self._kinds))
        first = plan.seed // 2 * _PER_ROUND % max(1, len(order))
        return order[first:] + order[:first]

    def _go_on(self, fault: _Fault) -> None:
        try:
            fault.due = self._scene.now() + next(fault.steps)
        except StopIteration:
            self._active.remove(fault)
            self._scene.healed(fault.number)
