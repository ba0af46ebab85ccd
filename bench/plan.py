"""How much of everything a benchmark does: a small round to try it, and the real one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How many trials of what.

    Attributes:
        resigned: hand-overs of each entrant.
        told: values that a follower is told.
        killed, killed_rival: fail-overs, ours and each rival's.
        asleep: leaders that sleep past their ttl, of each.
        asked: rounds of asking whether we lead.
        imported: interpreters that import each library.
        idle: seconds that a candidate stands still.
        sizes: of elections, candidates and followers.
        cut: seconds after which a size counts as too large.
    """

    resigned: int = 200
    told: int = 200
    killed: int = 100
    killed_rival: int = 30
    asleep: int = 10
    asked: int = 30
    imported: int = 20
    idle: float = 60.0
    sizes: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    cut: float = 60.0


QUICK = Plan(
    resigned=5,
    told=5,
    killed=2,
    killed_rival=1,
    asleep=1,
    asked=2,
    imported=2,
    idle=2.0,
    sizes=(100,),
    cut=5.0,
)
"""Shows that everything works, in a few minutes; its figures mean little."""
