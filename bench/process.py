"""One entrant in a process of its own: orders come in as lines, what happens goes out as JSON.

    python -m bench.process MODULE:CLASS URL KEY NAME TTL

Orders: `contend`, and while it leads `resign`, `check`, `time N`, `proclaim VALUE`; or, in
place of `contend`, `follow`. Every line out carries `at`, the machine's CLOCK_BOOTTIME, which
all processes share.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from functools import partial
from typing import Any

from bench.entrants import Entrant, Place

now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds on the clock that all processes share."""


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"at": now(), "event": event, **fields}) + "\n")
    sys.stdout.flush()


def asked_often(entrant: Entrant, times: int) -> float:
    """Seconds that one question takes whether we lead, of so many one after the other."""
    is_leader = entrant.question()
    began = now()
    for _ in range(times):
        is_leader()
    return (now() - began) / times


def until_resigning(entrant: Entrant) -> None:
    """Obey until the order to resign."""
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        if order == "resign":
            say("resigning")
            return
        if order == "check":
            say("checked", leader=entrant.is_leader())
        elif order == "time":
            say("timed", seconds=asked_often(entrant, int(argument)))
        elif order == "proclaim":
            say("proclaiming")
            entrant.proclaim(argument)
    sys.exit()


def main() -> None:
    what, url, key, name, ttl = sys.argv[1:6]
    module, _, class_name = what.partition(":")
    made = getattr(importlib.import_module(module), class_name)
    entrant: Entrant = made(Place(url, key, name, float(ttl)))
    say("ready")
    try:
        obey(entrant)
    finally:
        entrant.close()


def obey(entrant: Entrant) -> None:
    """Follow the orders of whoever measures, until there are no more."""
    for line in sys.stdin:
        order = line.strip()
        if order == "follow":
            entrant.follow(lambda value: say("told", value=value))
        elif order == "contend":
            entrant.contend(lambda: say("standing", leader=True), lambda: until_resigning(entrant))
            say("standing", leader=False)


if __name__ == "__main__":
    main()
