"""A crowd in a process of its own: `bench.crowds`, by orders.

    python -m bench.crowd MODULE:CLASS URL KIND NUMBER TTL SECONDS

KIND is `elections`, `candidates` or `followers`. Says what entering took, then obeys `resign`
and `proclaim`, a line each, with null where that took too long. No more enter after SECONDS.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from pathlib import Path

from bench.crowds import CLOCK, Crowd
from bench.entrants import Place
from bench.process import say
from tests.candidate_process import CandidateProcess


class CrowdProcess(CandidateProcess):
    """The same, seen by whoever measures."""

    def __init__(
        self, crowd: type[Crowd], url: str, kind: str, number: int, ttl: float, cut: float
    ) -> None:
        program = ("bench.crowd", f"{crowd.__module__}:{crowd.__name__}", str(cut))
        place = Place(url, kind, str(number), ttl)
        super().__init__(place.url, place.key, place.name, place.ttl, program=program)


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell how much memory a process has")


def main() -> None:
    what, cut, url, kind, number, ttl = sys.argv[1:7]
    module, _, name = what.partition(":")
    crowd: Crowd = getattr(importlib.import_module(module), name)(url, float(ttl))
    before = resident()
    began = CLOCK.now()
    entered = getattr(crowd, kind)(int(number), began + float(cut))
    seconds = CLOCK.now() - began
    held = resident() - before
    say("entered", number=entered, seconds=seconds, held=held, threads=threading.active_count())
    for line in sys.stdin:
        order = line.strip()
        if order in ("resign", "proclaim"):
            try:
                say(order, seconds=getattr(crowd, order)())
            except TimeoutError:
                say(order, seconds=None)
    crowd.close()


if __name__ == "__main__":
    main()
