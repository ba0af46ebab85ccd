"""What a candidate costs that does nothing: its process's time and memory, and the store's."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.entrants import Entrant, Place, Role
from bench.figures import Bar, Figure, Of
from bench.grounds import Ground
from bench.plan import Plan
from bench.rounds import Progress, Round, row
from bench.trials import EntrantProcess

TTL = 15.0
"""Seconds: the default."""

REQUESTS = "idle, one leads and one waits: requests per second"
PROCESSOR = "idle: processor time per second, who waits"
PROCESSOR_LEADING = "idle: processor time per second, who leads"
MEMORY = "idle: memory of the process that waits"


def processor_time(process: EntrantProcess) -> float:
    """Seconds that all its threads have run."""
    tasks = Path(f"/proc/{process.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory(process: EntrantProcess) -> int:
    """Bytes that are resident."""
    pages = int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1])
    return pages * 4096


def idle_on(ground: Ground, plan: Plan) -> Iterator[Round]:
    """Each entrant in turn, with the default ttl."""
    for entrant in ground.entrants:
        if entrant.role is not Role.FLOOR:
            ours = entrant.role is Role.OURS
            yield _idle(ground, entrant, plan.idle if ours else plan.idle_rival)


def _idle(ground: Ground, entrant: type[Entrant], seconds: float) -> Round:
    # Of each one falls into the time by chance.
    renewals = Bar(Of.P99, 2 * (ground.renewals / TTL + 1 / seconds))

    def measured(done: Progress) -> Iterator[Figure]:
        key = f"bench/{uuid.uuid4().hex}"
        places = [Place(ground.counted_url, key, name, TTL) for name in ("leads", "waits")]
        with (
            EntrantProcess(entrant, places[0]) as leads,
            EntrantProcess(entrant, places[1]) as waits,
        ):
            for process in (leads, waits):
                process.wait("ready", 60)
            leads.order("contend")
            leads.wait("standing", 60, leader=True)
            waits.order("contend")
            threading.Event().wait(1.0)
            before = ground.requests(), processor_time(leads), processor_time(waits)
            threading.Event().wait(seconds)
            after = ground.requests(), processor_time(leads), processor_time(waits)
            asked, led, waited = (
                (now - then) / seconds for now, then in zip(after, before, strict=True)
            )
            held = memory(waits)
        for what, unit, value, bars in (
            (REQUESTS, "/s", asked, (renewals,)),
            (PROCESSOR_LEADING, "s", led, ()),
            (PROCESSOR, "s", waited, ()),
            (MEMORY, "B", held, ()),
        ):
            yield row(what, ground.name, entrant, unit, bars).with_values([value])
        done()

    return Round(row(REQUESTS, ground.name, entrant, "/s"), 1, seconds + 4, measured)
