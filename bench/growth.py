"""What it costs as the number of elections, candidates and followers in one process grows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from bench.crowd import CrowdProcess
from bench.crowds import PATIENCE, Crowd
from bench.entrants import Role
from bench.figures import Bar, Figure, Of
from bench.grounds import Ground
from bench.plan import Plan
from bench.rounds import Progress, Round

TTL = 15.0
"""Seconds: the default, so that renewals are as rare as they usually are."""

LARGE = 10_000
"""Elections in one process, as the bar has it."""

CONTENDING = 1_000
"""Candidates for one key, as the bar has it."""

STORES_WITH_BARS = ("etcd", "zookeeper")
"""Where 10,000 elections have a bar: Consul does each election as a session's lock of its own."""

ENTERED = "elections in one process: entered"
MEMORY = "elections in one process: memory each"
THREADS = "elections in one process: threads"
RENEWALS = "elections in one process: requests per second"
NEXT = "candidates for one key, the leader resigns: the next leads"
WRITES = "candidates for one key, the leader resigns: writes"
WAKE_UPS = "candidates for one key, the leader resigns: told"
ALL_TOLD = "followers in one process: all told"
FOLLOWERS_MEMORY = "followers in one process: memory each"

RESIGNATIONS = 2
"""Leaders of a crowd of ours that resign, one after the other; of the others' one."""

LED = TTL * 4 / 3 + 1
"""Seconds that the second of them has led: what it needed while it waited is put away by then."""

REPETITIONS = 5
"""Changes that each number of followers is told."""


@dataclass(frozen=True, slots=True)
class Grown:
    """One crowd of one size on one store.

    Attributes:
        ground: the store.
        crowd: who.
        size: how many.
        plan: when it is too many.
    """

    ground: Ground
    crowd: type[Crowd]
    size: int
    plan: Plan

    def row(self, what: str, unit: str, *bars: Bar) -> Figure:
        ours = bars if self.crowd.role is Role.OURS else ()
        store, title, role = self.ground.name, self.crowd.title, self.crowd.role
        return Figure(what, store, title, role, unit, (), self.size, ours)

    @property
    def cut(self) -> float:
        """Seconds after which no more enter."""
        rival = self.crowd.role is Role.RIVAL
        return self.plan.cut_rival if rival else self.plan.cut

    def process(self, kind: str) -> CrowdProcess:
        self.ground.wait_for_service()
        url = self.ground.counted_url if kind == "candidates" else self.ground.url
        return CrowdProcess(self.crowd, url, kind, self.size, TTL, self.cut)

    def elections(self, done: Progress) -> Iterator[Figure]:
        """What it takes to lead at so many keys."""
        barred = self.size == LARGE and self.ground.name in STORES_WITH_BARS
        with self.process("elections") as process:
            entered, cut = self._entered(process)
            yield self.row(ENTERED, "s", *([Bar(Of.MEDIAN, 15.0)] if barred else [])).with_values(
                [entered["seconds"]], cut
            )
            number = max(1, entered["number"])
            if self.size >= 100:
                yield self.row(
                    MEMORY, "B", *([Bar(Of.MEDIAN, 12 * 1024)] if barred else [])
                ).with_values([entered["held"] / number], cut)
            yield self.row(THREADS, "", Bar(Of.MEDIAN, 10)).with_values([entered["threads"]], cut)
            # Through what counts Consul's requests, entering would be slower; and of a crowd that
            # was cut the others are entering still.
            counted = self.ground.url == self.ground.counted_url
            if counted and not cut and self.crowd.role is not Role.FLOOR:
                self.ground.settle()
                before = self.ground.requests()
                lasts = min(TTL, self.plan.idle)
                threading.Event().wait(lasts)
                asked = (self.ground.requests() - before) / lasts
                # As many as for one election; one falls into the time by chance.
                bar = Bar(Of.MEDIAN, self.ground.renewals / TTL + 1 / lasts)
                yield self.row(RENEWALS, "/s", bar).with_values([asked], cut)
        done()

    def candidates(self, done: Progress) -> Iterator[Figure]:
        """What happens when the leader of so many for one key resigns, and then the next."""
        self.ground.wait_for_service()
        if self.crowd.role is Role.OURS:
            self.ground.clear()
        passed, writes, told = list[float](), list[float](), list[float]()
        with self.process("candidates") as process:
            entered, note = self._entered(process)
            quiet = self.ground.settle()
            wanted = RESIGNATIONS if self.crowd.role is Role.OURS else 1
            # Who was handed the key by name hands it on by deleting it: both ways count.
            while entered["number"] and len(passed) < wanted:
                if passed:
                    threading.Event().wait(LED)
                written, woken = self.ground.writes(), self.ground.wake_ups()
                process.order("resign")
                seconds = process.wait("resign", PATIENCE + 10)["seconds"]
                if seconds is None:
                    # The counts would be those of the crowd that is still coming.
                    note = note or f"nobody led within {PATIENCE:g} s"
                    break
                quiet = self.ground.settle() and quiet
                passed.append(seconds)
                writes.append(self.ground.writes() - written)
                told.append(self.ground.wake_ups() - woken)
        counted = note or ("" if quiet else "never quiet: what else went on is counted too")
        if len(passed) < wanted:
            writes, told = [], []
        yield self.row(NEXT, "s").with_values(passed, note)
        if passed or self.size <= CONTENDING:
            yield self.row(WRITES, "", Bar(Of.P99, 3)).with_values(writes, counted)
            yield self.row(WAKE_UPS, "", Bar(Of.P99, 2)).with_values(told, counted)
        done()

    def followers(self, done: Progress) -> Iterator[Figure]:
        """What it takes to tell so many."""
        with self.process("followers") as process:
            entered, cut = self._entered(process)
            times = []
            if entered["number"] == self.size:
                for _ in range(REPETITIONS):
                    process.order("proclaim")
                    passed = process.wait("proclaim", PATIENCE + 10)["seconds"]
                    if passed is None:
                        raise TimeoutError(f"not all were told within {PATIENCE:g} s")
                    times.append(passed)
        yield self.row(ALL_TOLD, "s").with_values(times, cut)
        if self.size >= 100:
            number = max(1, entered["number"])
            yield self.row(FOLLOWERS_MEMORY, "B").with_values([entered["held"] / number], cut)
        done()

    def _entered(self, process: CrowdProcess) -> tuple[dict[str, float], str]:
        """What it said, and whether it was cut."""
        said = process.wait("entered", self.cut + PATIENCE)
        number = said["number"]
        cut = f"cut after {self.cut:g} s at {number:,}" if number < self.size else ""
        return said, cut


def growth_on(ground: Ground, plan: Plan) -> Iterator[Round]:
    """Each crowd at each size; a rival up to the first that is too large for it."""
    for kind, what in (("elections", ENTERED), ("candidates", NEXT), ("followers", ALL_TOLD)):
        # One candidate has nobody who could lead after it.
        sizes = [size for size in plan.sizes if kind != "candidates" or size > 1]
        for crowd in ground.crowds:
            if crowd.can(kind):
                too_large: list[int] = []
                for size in sizes:
                    yield _round(Grown(ground, crowd, size, plan), kind, what, too_large)


def _round(grown: Grown, kind: str, what: str, too_large: list[int]) -> Round:
    """One size.

    Args:
        too_large: the sizes of this crowd that were cut, known when those before are done.
    """
    blank = grown.row(what, "s")

    def measured(done: Progress) -> Iterator[Figure]:
        if too_large and grown.crowd.role is Role.RIVAL:
            yield blank.with_values((), f"not tried: {too_large[0]:,} were too many")
            done()
            return
        for row in getattr(grown, kind)(done):
            if row.note and row.what == what and grown.size not in too_large:
                too_large.append(grown.size)
            yield row

    return Round(blank, 1, 3 + min(grown.cut, grown.size / 200), measured)
