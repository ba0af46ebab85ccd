"""Play schedules of the peers core: many, on all cores, or one with a trace to read.

python -m tests.simulate SEEDS=100000 [FROM=0]
python -m tests.simulate SEED=4711 [MUTANT="A2 two votes in one term"]
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import dataclass

from leadership.backends._quorum_lease import QuorumLease

from .simulation import Violation, draw
from .simulation_faults import simulate

_CHUNK = 25


@dataclass(slots=True)
class Tally:
    """What came of some schedules."""

    schedules: int = 0
    leaderships: int = 0
    messages: int = 0
    slowest: float = 0.0
    violations: tuple[str, ...] = ()

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.leaderships += other.leaderships
        self.messages += other.messages
        self.slowest = max(self.slowest, other.slowest)
        self.violations += other.violations


def play(seeds: range) -> Tally:
    """All of these; errors in the core count as violations."""
    tally = Tally()
    for seed in seeds:
        tally.schedules += 1
        try:
            outcome = simulate(seed)
        except Violation as violation:
            tally.violations += (str(violation),)
        except Exception as error:
            tally.violations += (f"seed {seed}: {error!r}",)
        else:
            tally.leaderships += outcome.leaderships
            tally.messages += outcome.messages
            tally.slowest = max(tally.slowest, outcome.healed_after / outcome.bound)
    return tally


def play_many(first: int, count: int) -> Tally:
    """On all cores, with a progress bar; a violation is told when it is found."""
    chunks = [range(i, min(i + _CHUNK, first + count)) for i in range(first, first + count, _CHUNK)]
    total = Tally()
    began = time.monotonic()
    with multiprocessing.Pool() as pool:
        for tally in pool.imap_unordered(play, chunks):
            total.add(tally)
            for violation in tally.violations:
                print(f"\r\033[K{violation}", flush=True)
            _show(total, count, time.monotonic() - began)
    print()
    return total


def _show(total: Tally, count: int, seconds: float) -> None:
    share = total.schedules / count
    bar = "#" * int(30 * share)
    left = seconds / share - seconds
    print(
        f"\r[{bar:30}] {total.schedules}/{count} schedules, {len(total.violations)} violations, "
        f"{left:.0f} s left ",
        end="",
        flush=True,
    )


def main(arguments: list[str]) -> int:
    """The exit status: 0 without a violation."""
    given = dict(argument.split("=", 1) for argument in arguments)
    if given.get("SEED"):
        return _replay(int(given["SEED"]), given.get("MUTANT", ""))
    total = play_many(int(given.get("FROM") or 0), int(given.get("SEEDS") or 1000))
    print(
        f"{total.schedules} schedules, {total.leaderships} leaderships, {total.messages} messages, "
        f"{len(total.violations)} violations; the slowest healing took "
        f"{total.slowest:.0%} of its bound"
    )
    return 1 if total.violations else 0


def _replay(seed: int, rule: str) -> int:
    plan, node = draw(seed), QuorumLease
    if rule:
        from .quorum_mutant_table import MUTANTS

        plan, node = MUTANTS[rule].focus(plan), MUTANTS[rule].node
    print(plan)
    try:
        outcome = simulate(plan, node, print)
    except Violation as violation:
        print(violation)
        return 1
    print(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
