"""What is measured between two processes, one entrant after the other on the same server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.entrants import Entrant, Role
from bench.figures import Bar, Figure, Of
from bench.grounds import Ground
from bench.ours import Ours
from bench.plan import Plan
from bench.trials import Trials

HAND_OVER = "hand-over: resign -> the other's True"
FAIL_OVER = "fail-over: SIGKILL -> the other's True"
ASLEEP = "woken past its ttl, another leads: says it leads"
TOLD = "follower: value written -> told"
ASKED = "is_leader()"

ASKED_AT_ONCE = 1_000
"""Questions whether we lead, one after the other: one alone is shorter than a look at the clock."""

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Round:
    """Some rows of the table, and how they are measured.

    Attributes:
        blank: the row that stands in the table if all fails; it names the round.
        steps: how often `measure` tells of progress.
        seconds: about how long a step takes, to weigh the progress by.
        measure: gives the rows; what it is handed is called after each step.
    """

    blank: Figure
    steps: int
    seconds: float
    measure: Callable[[Progress], Iterable[Figure]]


def row(
    what: str, store: str, entrant: type[Entrant], unit: str = "s", bars: tuple[Bar, ...] = ()
) -> Figure:
    """Without values yet; only our own rows have to meet bars."""
    ours = bars if entrant.role is Role.OURS else ()
    return Figure(what, store, entrant.title, entrant.role, unit, (), bars=ours)


def rounds_on(ground: Ground, plan: Plan) -> Iterator[Round]:
    """All that two processes on one key of a store show."""

    def timed(
        what: str,
        entrant: type[Entrant],
        trials: int,
        seconds: float,
        measure: Callable[[Trials, int], list[float]],
        *bars: Bar,
        unit: str = "s",
    ) -> Round:
        blank = row(what, ground.name, entrant, unit, bars)

        def measured(done: Progress) -> Iterator[Figure]:
            of_entrant = Trials(entrant, ground.url, ground.ttl, done=done)
            yield blank.with_values(measure(of_entrant, trials))

        return Round(blank, trials, seconds, measured)

    resigned = {
        Role.OURS: plan.resigned,
        Role.FLOOR: plan.resigned_floor,
        Role.RIVAL: plan.resigned_rival,
    }
    for entrant in ground.entrants:
        yield timed(
            HAND_OVER,
            entrant,
            resigned[entrant.role],
            0.5,
            Trials.resigned,
            Bar(Of.RATIO, 1.5),
            Bar(Of.P99, 0.060),
        )
    for entrant in ground.entrants:
        # The other floors add what only a hand-over needs.
        if entrant.can_follow() and (
            entrant is ground.entrants[0] or entrant.role is not Role.FLOOR
        ):
            yield timed(
                TOLD,
                entrant,
                plan.told_rival if entrant.role is Role.RIVAL else plan.told,
                0.5,
                Trials.told,
                Bar(Of.RATIO, 1.5),
            )
    contending = [each for each in ground.entrants if each.role is not Role.FLOOR]
    for entrant in contending:
        yield _lost(ground, entrant, plan)
        yield timed(
            ASKED,
            entrant,
            plan.asked,
            0.2,
            lambda of_entrant, trials: of_entrant.asked(trials, ASKED_AT_ONCE),
            Bar(Of.MEDIAN, 1e-6),
        )


def _lost(ground: Ground, entrant: type[Entrant], plan: Plan) -> Round:
    ours = entrant is Ours
    killed = plan.killed if ours else plan.killed_rival
    slept = plan.asleep if ours else plan.asleep_rival
    fail_over = row(FAIL_OVER, ground.name, entrant, "s", (Bar(Of.P99, ground.killed),))
    asleep = row(ASLEEP, ground.name, entrant, "", (Bar(Of.P99, 0),))

    def measured(done: Progress) -> Iterator[Figure]:
        trials = Trials(entrant, ground.url, ground.ttl, done=done)
        times, answers = trials.lost(killed, slept, ground.abreast)
        yield fail_over.with_values(times)
        yield asleep.with_values([float(each) for each in answers])

    steps = killed + slept
    recovery = ground.killed if ours else ground.recovery
    waves = -(-steps // ground.abreast)
    return Round(fail_over, steps, waves * (recovery + 3) / steps, measured)
