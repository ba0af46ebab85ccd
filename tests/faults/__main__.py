"""Faults for as long as asked, on one backend or on all, and the check of what happened.

    python -m tests.faults play [--minutes 1] [--store etcd] [--seed 1] [--folder soak]
    python -m tests.faults check FILE...
    python -m tests.faults --kinds

A round lasts a minute and has a seed of its own, the given one and up; odd
seeds are played on three servers. The same seed draws the same faults, not
the same moments. Each round's history is written to a file, which is read
again and checked.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
from pathlib import Path

from leadership.clock import SystemClock

from . import history
from .grounds import BACKENDS
from .kinds import KINDS
from .rounds import Plan, Summary, play

ROUND = 60.0
_CLOCK = SystemClock()


def main(arguments: list[str]) -> int:
    """The exit status: 0 without a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", action="store_true", help="list the kinds of faults")
    commands = parser.add_subparsers(dest="command")
    playing = commands.add_parser("play", help="play rounds")
    playing.add_argument("--minutes", type=float, default=1.0)
    playing.add_argument("--store", choices=BACKENDS, action="append")
    playing.add_argument("--seed", type=int, default=1)
    playing.add_argument("--folder", type=Path, default=Path("soak"))
    playing.add_argument("--kind", action="append", default=[], help="only faults of this name")
    checking = commands.add_parser("check", help="check histories again")
    checking.add_argument("files", type=Path, nargs="+")
    wanted = parser.parse_args(arguments)
    if wanted.command == "check":
        return _check(wanted.files)
    if wanted.command == "play":
        return _play(wanted)
    if not wanted.kinds:
        parser.error("play, check, or --kinds")
    width = max(len(kind.name) for kind in KINDS)
    for kind in KINDS:
        print(f"{kind.name:{width}}  {kind.does}")
    return 0


def _check(files: list[Path]) -> int:
    summary = Summary()
    for file in files:
        summary.add(history.read(file))
    print(summary)
    return 1 if summary.violations else 0


def _play(wanted: argparse.Namespace) -> int:
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    wanted.folder.mkdir(parents=True, exist_ok=True)
    failed = False
    broken: list[Plan] = []
    for backend in wanted.store or BACKENDS:
        summary = Summary()
        bar = _Bar(backend, 60 * wanted.minutes, summary)
        seed = wanted.seed
        while bar.left > 0 and not over.is_set():
            seconds = min(ROUND, bar.left)
            plan = Plan(backend, seed, seconds, bool(seed % 2), tuple(wanted.kind))
            file = wanted.folder / f"{backend}-{seed}.jsonl"
            try:
                play(plan, file, over, bar.show)
            except Exception:
                # One server that did not come up must not cost the hours that are left.
                broken.append(plan)
                print(f"\r\033[K{plan} broke off:\n{traceback.format_exc()}", flush=True)
            for violation in summary.add(history.read(file)):
                print(f"\r\033[K{file}: {violation}", flush=True)
            seed += 1
        bar.show("done")
        print(f"\n{backend}: {summary}", flush=True)
        failed = failed or bool(summary.violations)
    if broken:
        print(f"{len(broken)} rounds broke off")
    return 1 if failed or broken else 0


class _Bar:
    """How far it is, on the last line of the terminal."""

    def __init__(self, backend: str, seconds: float, summary: Summary) -> None:
        self._backend = backend
        self._seconds = seconds
        self._summary = summary
        self._began = _CLOCK.now()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (_CLOCK.now() - self._began)

    def show(self, what: str) -> None:
        """Draw it anew; `what` is happening."""
        done = "#" * int(30 * min(1.0, 1 - self.left / self._seconds))
        left = f"{max(0.0, self.left):.0f} s left"
        faults = f"{self._summary.faults.total()} faults"
        found = f"{len(self._summary.violations)} violations"
        print(
            f"\r\033[K{self._backend} [{done:30}] {left}, {faults}, {found}: {what}",
            end="",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
