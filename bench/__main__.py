"""The bars of the design, beside the stores' own floors and what else a Python user could take.

    python -m bench [--quick] [--stores etcd zookeeper consul] [--only WORD] [--out FOLDER]

All entrants meet on the same servers in one run. Writes a table to the terminal, and
`bench.json` and `bench.svg` to the folder. The status tells whether every bar was met.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.crowds import CLOCK
from bench.entrants import Role
from bench.figures import Figure, Figures
from bench.grounds import GROUNDS, Ground
from bench.growth import growth_on
from bench.idle import idle_on
from bench.imports import import_rounds
from bench.machine import this_machine
from bench.peers_rounds import peers_rounds
from bench.plan import QUICK, Plan
from bench.plot import plot
from bench.report import show, write_json
from bench.rounds import Round, rounds_on


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small round of everything")
    stores = [*GROUNDS, "peers"]
    parser.add_argument("--stores", nargs="*", choices=stores, default=stores)
    parser.add_argument("--only", default="", help="rounds with this in their name, or subject")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="a folder")
    return parser.parse_args()


class Run:
    """One run: rounds in turn, under a progress bar."""

    def __init__(self, console: Console, wanted: str) -> None:
        self.rows: list[Figure] = []
        self.servers: dict[str, str] = {}
        self._began = CLOCK.now()
        self._wanted = wanted.lower()
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def wants(self, each: Round) -> bool:
        blank = each.blank
        return self._wanted in f"{blank.what} {blank.store} {blank.subject}".lower()

    def play(self, grounds: Sequence[tuple[Ground | None, list[Round]]]) -> None:
        """Measure what is wanted; a ground's server runs for as long as its rounds."""
        grounds = [(ground, [r for r in rounds if self.wants(r)]) for ground, rounds in grounds]
        every = [each for _, rounds in grounds for each in rounds]
        with self._progress as progress:
            task = progress.add_task("", total=sum(each.steps * each.seconds for each in every))
            for ground, rounds in grounds:
                if ground is None:
                    self._measure(rounds, task)
                elif rounds:
                    try:
                        with ground:
                            self.servers[ground.name] = ground.version
                            self._measure(rounds, task)
                    except Exception as error:
                        # Of ours, where there is one: what fails there is never taken for met.
                        ours = [each for each in rounds if each.blank.role is Role.OURS]
                        self._failed((ours or rounds)[-1].blank, error)

    def _measure(self, rounds: list[Round], task: TaskID) -> None:
        for each in rounds:
            blank = each.blank
            name = f"{blank.store} {blank.subject}: {blank.what.partition(':')[0]}"
            self._progress.update(task, description=f"{name:<55.55}")
            end = self._progress.tasks[task].completed + each.steps * each.seconds
            try:
                self.rows += each.measure(partial(self._progress.advance, task, each.seconds))
            except Exception as error:
                self._failed(blank, error)
            self._progress.update(task, completed=end)
            if not self._progress.console.is_terminal:
                # No bar is seen there before all is over.
                self._progress.console.print(f"{CLOCK.now() - self._began:>6.0f} s  {name}")

    def _failed(self, blank: Figure, error: Exception) -> None:
        """One that fails is a row too: the others are worth their time."""
        self._progress.console.print(traceback.format_exc(), style="dim")
        self.rows.append(replace(blank, note=f"failed: {error!s:.80}", failed=True))


def main() -> None:
    wanted = arguments()
    plan = QUICK if wanted.quick else Plan()
    console = Console(width=None if sys.stdout.isatty() else 150)
    run = Run(console, wanted.only)
    grounds = [GROUNDS[name]() for name in wanted.stores if name in GROUNDS]
    without_server = [*import_rounds(plan)]
    if "peers" in wanted.stores:
        without_server += peers_rounds(plan)
    played: list[tuple[Ground | None, list[Round]]] = [(None, without_server)]
    for ground in grounds:
        of_ground = (*rounds_on(ground, plan), *idle_on(ground, plan), *growth_on(ground, plan))
        played.append((ground, list(of_ground)))
    load = os.getloadavg()[0]
    run.play(played)
    machine = this_machine(run.servers, load)
    figures = Figures(run.rows)
    show(console, machine, figures)
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_json(wanted.out / "bench.json", machine, figures)
    plot(wanted.out / "bench.svg", machine, figures)
    console.print(f"all values: {wanted.out}/bench.json; the plot: {wanted.out}/bench.svg")
    sys.exit(1 if figures.missed() else 0)


if __name__ == "__main__":
    main()
