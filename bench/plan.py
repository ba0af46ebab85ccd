"""How much of everything a benchmark does: a small round to try it, and the real one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How many trials of what; a p99 needs a hundred, and who has no bar needs no p99.

    Attributes:
        resigned, resigned_rival: hand-overs: ours and each floor's, each rival's.
        told, told_rival: values that a follower is told: ours and the floor's, each rival's.
        killed, killed_rival: fail-overs, ours and each rival's.
        asleep, asleep_rival: leaders that sleep past their ttl, ours and each rival's.
        asked: rounds of asking whether we lead.
        imported: interpreters that import each library.
        idle, idle_rival: seconds that a candidate stands still.
        sizes: of elections, candidates and followers.
        cut, cut_rival: seconds after which a size counts as too large: ours and the floor's,
            each rival's. A rival that was cut is not tried with more.
    """

    resigned: int = 100
    resigned_rival: int = 20
    told: int = 50
    told_rival: int = 20
    killed: int = 100
    killed_rival: int = 5
    asleep: int = 10
    asleep_rival: int = 3
    asked: int = 30
    imported: int = 10
    idle: float = 60.0
    idle_rival: float = 30.0
    sizes: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    cut: float = 30.0
    cut_rival: float = 10.0


QUICK = Plan(
    resigned=4,
    resigned_rival=2,
    told=4,
    told_rival=2,
    killed=1,
    killed_rival=1,
    asleep=1,
    asleep_rival=1,
    asked=1,
    imported=1,
    idle=2.0,
    idle_rival=2.0,
    sizes=(100,),
    cut=5.0,
    cut_rival=5.0,
)
"""Shows that everything works, in some five minutes; its figures mean little."""
