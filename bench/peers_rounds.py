"""Our peers, who need no server; there is nothing in Python to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.entrants import Role
from bench.figures import Bar, Figure, Of
from bench.peers_failover import killed
from bench.peers_handover import floor, handed_over
from bench.plan import Plan
from bench.rounds import FAIL_OVER, HAND_OVER, Progress, Round

STORE = "peers"
NODES = 3
MEDIAN = 0.015
"""Seconds: a hand-over takes one and a half times a request and its answer, and the protocol."""


def peers_rounds(plan: Plan) -> Iterator[Round]:
    """Three processes, a node and a candidate each; ttl 1 s."""
    rows = (
        (
            Figure(HAND_OVER, STORE, "floor: a request and its answer", Role.FLOOR, "s", ()),
            plan.resigned,
            0.01,
            lambda: floor(plan.resigned),
        ),
        (
            Figure(
                HAND_OVER,
                STORE,
                "leadership",
                Role.OURS,
                "s",
                (),
                bars=(Bar(Of.MEDIAN, MEDIAN), Bar(Of.P99, 0.060)),
            ),
            plan.resigned,
            0.1,
            lambda: handed_over(NODES, plan.resigned, named=False),
        ),
        (
            Figure(FAIL_OVER, STORE, "leadership", Role.OURS, "s", (), bars=(Bar(Of.P99, 1.2),)),
            plan.killed,
            3.0,
            lambda: killed(NODES, plan.killed),
        ),
    )
    for blank, steps, seconds, measure in rows:
        yield _round(blank, steps, seconds, measure)


def _round(blank: Figure, steps: int, seconds: float, measure: Callable[[], list[float]]) -> Round:
    def measured(done: Progress) -> Iterator[Figure]:
        yield blank.with_values(measure())

    return Round(blank, steps, seconds, measured)
