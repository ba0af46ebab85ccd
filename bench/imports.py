"""How long an import takes, by the interpreter's own account."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

from bench.entrants import Role
from bench.figures import Figure
from bench.plan import Plan
from bench.rounds import Progress, Round

WHAT = "import time"

IMPORTED = (
    (Role.FLOOR, "aiohttp"),
    (Role.OURS, "leadership"),
    (Role.OURS, "leadership.backends.etcd"),
    (Role.OURS, "leadership.backends.zookeeper"),
    (Role.OURS, "leadership.backends.consul"),
    (Role.OURS, "leadership.backends.peers"),
    (Role.RIVAL, "etcd3"),
    (Role.RIVAL, "kazoo.client"),
    (Role.RIVAL, "consul"),
    (Role.RIVAL, "tooz.coordination"),
)
"""Of ours the core alone first; it never imports a backend. Its largest dependency is the floor."""

_LINE = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)


def _microseconds(code: str) -> dict[str, int]:
    """What each module took by itself."""
    program = [sys.executable, "-X", "importtime", "-c", code]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stderr
    return {name: int(own) for own, name in _LINE.findall(told)}


def seconds_to_import(module: str) -> float:
    """Seconds for the module and all that it imports, but for what a bare interpreter has."""
    bare = _microseconds("pass")
    return (
        sum(own for name, own in _microseconds(f"import {module}").items() if name not in bare)
        / 1e6
    )


def import_rounds(plan: Plan) -> Iterator[Round]:
    for role, module in IMPORTED:
        blank = Figure(WHAT, "", module, role, "s", ())

        def measured(done: Progress, blank: Figure = blank) -> Iterator[Figure]:
            times = []
            for _ in range(plan.imported):
                times.append(seconds_to_import(blank.subject))
                done()
            yield blank.with_values(times)

        yield Round(blank, plan.imported, 0.7, measured)
