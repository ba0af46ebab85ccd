"""Where a hand-over's time goes: from the call that resigns to the other's True, step by step.

    python -m bench.handover [--stores etcd zookeeper consul] [--trials 40]

The same two processes as in the benchmark, with a stamp of CLOCK_BOOTTIME at each step. After
it, in turns, the floor, the floor with the proof that a leader owes, and ours without stamps.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
from collections.abc import Sequence

from bench.entrants import Entrant, Role
from bench.grounds import GROUNDS, Ground
from bench.stamps import RESIGNS, Stamped
from bench.trials import PATIENCE, EntrantProcess, Trials, in_turns

CALLED, TRUE = "the call", "the other's thread has its True"


def stepped(ground: Ground, trials: int) -> list[dict[str, float]]:
    """Of each hand-over, the seconds from the call to each step."""
    measured = []
    with Trials(Stamped, ground.url, ground.ttl).pair() as pair:
        leader, other = pair
        leader.wait("won", PATIENCE)
        for _ in range(trials):
            measured.append(_handed_over(leader, other))
            leader.order("contend")
            leader, other = other, leader
            Trials(Stamped, ground.url, ground.ttl).pause()
    return measured


def _handed_over(leader: EntrantProcess, other: EntrantProcess) -> dict[str, float]:
    leader.order("resign")
    called = leader.wait("resigning", PATIENCE)["at"]
    true = other.wait("standing", PATIENCE, leader=True)["at"]
    won = other.wait("won", PATIENCE)["stamps"]
    resigned = leader.wait("resigned", PATIENCE)["stamps"]
    leader.wait("standing", PATIENCE, leader=False)
    # What it did before the call, as it entered, is no part of this.
    steps = {what: at - called for what, at in {**resigned, **won}.items() if at >= called}
    return {CALLED: 0.0, **steps, TRUE: true - called}


def table(measured: Sequence[dict[str, float]]) -> list[str]:
    """Medians of the steps, in the order of time; what came seldom is left out."""
    steps = {step for each in measured for step in each}
    rows = []
    for step in steps:
        taken = [each[step] for each in measured if step in each]
        if 4 * len(taken) >= len(measured):
            some = f" ({len(taken)} of {len(measured)})" if len(taken) < len(measured) else ""
            rows.append((statistics.median(taken), step + some))
    return [f"{1000 * at:8.2f}  {step}\n" for at, step in sorted(rows)]


def beside(ground: Ground, trials: int) -> list[tuple[type[Entrant], list[float]]]:
    """The floors, and ours, without stamps: the seconds of each hand-over."""
    entrants = [each for each in ground.entrants if each.role is not Role.RIVAL]
    with contextlib.ExitStack() as stack:
        handed_over = [Trials(each, ground.url, ground.ttl).resigned() for each in entrants]
        sources = [stack.enter_context(contextlib.closing(each)) for each in handed_over]
        return list(zip(entrants, in_turns(sources, trials), strict=True))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.handover", description=__doc__)
    parser.add_argument("--stores", nargs="*", choices=[*RESIGNS], default=[*RESIGNS])
    parser.add_argument("--trials", type=int, default=40)
    wanted = parser.parse_args(arguments)
    write = sys.stdout.write
    load = os.getloadavg()[0]
    write(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start\n")
    for name in wanted.stores:
        with GROUNDS[name]() as ground:
            write(f"\n{name} {ground.version}: milliseconds from the call, medians\n")
            sys.stdout.writelines(table(stepped(ground, wanted.trials)))
            for entrant, times in beside(ground, wanted.trials):
                write(f"{1000 * statistics.median(times):8.2f}  in all: {entrant.title}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
