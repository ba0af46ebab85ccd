"""What is measured between two processes, each entrant on the same server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.entrants import Entrant, Role
from bench.figures import Bar, Figure, Of
from bench.grounds import Ground
from bench.ours import Ours
from bench.plan import Plan
from bench.trials import Trials, in_turns

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

    own = [each for each in ground.entrants if each.role is not Role.RIVAL]
    rivals = [each for each in ground.entrants if each.role is Role.RIVAL]
    hand_over = (Bar(Of.RATIO, 1.5), Bar(Of.P99, 0.060))
    for together in (own, *([each] for each in rivals)):
        number = plan.resigned if together is own else plan.resigned_rival
        yield _in_turns(HAND_OVER, ground, together, number, Trials.resigned, *hand_over)
    # The other floors add what only a hand-over needs.
    told: list[type[Entrant]] = [ground.entrants[0], Ours]
    for together in (told, *([each] for each in rivals if each.can_follow())):
        number = plan.told if together is told else plan.told_rival
        yield _in_turns(TOLD, ground, together, number, Trials.told, Bar(Of.RATIO, 1.5))
    contending = [each for each in ground.entrants if each.role is not Role.FLOOR]
    for entrant in contending:
        yield _lost(ground, entrant, plan)
        yield _asked(ground, entrant, plan)


def _in_turns(
    what: str,
    ground: Ground,
    entrants: Sequence[type[Entrant]],
    number: int,
    measure: Callable[[Trials], Generator[float]],
    *bars: Bar,
) -> Round:
    """Entrants that are compared take turns, for the machine is not as fast at all times."""
    blanks = [row(what, ground.name, entrant, bars=bars) for entrant in entrants]

    def measured(done: Progress) -> Iterator[Figure]:
        with contextlib.ExitStack() as stack:
            sources = [
                stack.enter_context(
                    contextlib.closing(measure(Trials(each, ground.url, ground.ttl, done=done)))
                )
                for each in entrants
            ]
            values = in_turns(sources, number)
        for blank, drawn in zip(blanks, values, strict=True):
            yield blank.with_values(drawn)

    return Round(blanks[-1], number * len(entrants), 0.5, measured)


def _asked(ground: Ground, entrant: type[Entrant], plan: Plan) -> Round:
    blank = row(ASKED, ground.name, entrant, bars=(Bar(Of.MEDIAN, 1e-6),))

    def measured(done: Progress) -> Iterator[Figure]:
        trials = Trials(entrant, ground.url, ground.ttl, done=done)
        yield blank.with_values(trials.asked(plan.asked, ASKED_AT_ONCE))

    return Round(blank, plan.asked, 0.2, measured)


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
