"""Histories made by hand: what the checker must reject, and what only looks like it."""

from __future__ import annotations

from collections.abc import Sequence

from .history import (
    AnyRecord,
    Blocked,
    Closing,
    Entered,
    Healed,
    Heard,
    Hung,
    Injected,
    Read,
    Registered,
    Remained,
    Removed,
    Setting,
    Stalled,
    Told,
    Wrote,
)

BOUND = 5.0
FOR_EVER = 1e9

SETTING = Setting(0.0, "planted", ttl=1.0, bound=BOUND, since=0.0)


def reads(
    process: str,
    token: int,
    *times: float,
    leader: bool = True,
    valid_until: float = FOR_EVER,
    took: float = 0.001,
    forked: bool = False,
) -> list[Read]:
    """Readings that ended at these times."""
    return [Read(at, process, token, at - took, leader, valid_until, forked) for at in times]


def told(process: str, token: int, at: float, valid_until: float, *, willing: bool = True) -> Told:
    return Told(at, process, token, valid_until, "planted", willing)


def in_order(*records: AnyRecord | Sequence[AnyRecord]) -> list[AnyRecord]:
    """A whole history, with its setting."""
    flat: list[AnyRecord] = [SETTING]
    for each in records:
        flat.extend(each if isinstance(each, (list, tuple)) else [each])  # type: ignore[list-item]
    return sorted(flat, key=lambda record: record.at)


def removal(at: float, until: float | None = None) -> list[AnyRecord]:
    removed = Removed(at if until is None else until)
    return [Injected(at, 1, "entry removed", "a", removal=True), removed, Healed(at + 2, 1)]


def pause(at: float, until: float) -> list[AnyRecord]:
    return [Injected(at, 1, "paused", "a"), Healed(until, 1)]


def trouble(number: int, process: str, at: float, until: float) -> list[AnyRecord]:
    """Of one candidate alone."""
    return [Injected(at, number, "cut", process, concerns_one=True), Healed(until, number)]


def a_term_of_a(*, last: float = 3.0, valid_until: float = 3.5) -> list[AnyRecord]:
    """Process a leads from 1 s on, and is told of its end."""
    return [
        *reads("a", 7, 1.0, 2.0, last, valid_until=valid_until),
        told("a", 7, valid_until, valid_until),
    ]


REJECTED: dict[str, tuple[str, list[AnyRecord]]] = {
    "two lead at once": (
        "one leader at a time",
        in_order(a_term_of_a(), reads("b", 8, 2.5, 2.9)),
    ),
    "one says True once while another leads": (
        "one leader at a time",
        in_order(a_term_of_a(), reads("b", 8, 2.5)),
    ),
    "a removed leader goes on for longer than a watch takes": (
        "one leader at a time",
        in_order(a_term_of_a(), removal(1.5), reads("b", 8, 1.6)),
    ),
    "a removal that was done before the term excuses nothing": (
        "one leader at a time",
        in_order(removal(0.5, 0.9), a_term_of_a(last=2.4), reads("b", 8, 1.6, valid_until=9)),
    ),
    "a removal long before excuses nothing": (
        "one leader at a time",
        in_order(removal(0.5), a_term_of_a(), reads("b", 8, 2.9)),
    ),
    "a later leader has a smaller token": (
        "tokens rise",
        in_order(a_term_of_a(), reads("b", 6, 4.0, 5.0)),
    ),
    "two leaders have the same token": (
        "tokens rise",
        in_order(a_term_of_a(), reads("b", 7, 4.0, 5.0)),
    ),
    "the register takes an older token": (
        "the register is fenced",
        in_order(
            Registered(1.0, "b", 8, accepted=True),
            Registered(2.0, "a", 7, accepted=True),
        ),
    ),
    "True after the deadline": (
        "False from the deadline on",
        in_order(reads("a", 7, 1.0, 2.0, valid_until=1.5), told("a", 7, 1.5, 1.5)),
    ),
    "True after a deadline that was told later": (
        "False from the deadline on",
        in_order(reads("a", 7, 1.0, 1.8, valid_until=2.5), told("a", 7, 1.9, 1.5)),
    ),
    "True after False": (
        "False is for ever",
        in_order(
            reads("a", 7, 1.0, valid_until=3.0),
            reads("a", 7, 1.1, leader=False, valid_until=3.0),
            reads("a", 7, 1.2, valid_until=3.0),
            told("a", 7, 1.3, 3.0),
        ),
    ),
    "a valid leader's entry is taken away": (
        "no term is cut short",
        in_order(reads("a", 7, 1.0, 2.0, valid_until=2.5), told("a", 7, 2.1, 2.5, willing=False)),
    ),
    "a removal in another's term excuses nothing": (
        "no term is cut short",
        in_order(
            reads("b", 6, 0.1, 0.2, valid_until=1.0),
            removal(0.3),
            reads("a", 7, 1.5, 2.0, valid_until=2.5),
            told("a", 7, 2.1, 2.5, willing=False),
        ),
    ),
    "a fork's child leads": (
        "a fork's child never leads",
        in_order(a_term_of_a(), reads("a", 7, 1.5, forked=True)),
    ),
    "loss is told late": (
        "loss is told",
        in_order(reads("a", 7, 1.0, 2.0, valid_until=2.5), told("a", 7, 3.5, 2.5)),
    ),
    "loss is told late, and the process could run again long before": (
        "loss is told",
        in_order(
            reads("a", 7, 1.0, 2.0, valid_until=2.5),
            Stalled(3.0, "a", since=2.1),
            told("a", 7, 3.8, 2.5),
        ),
    ),
    "another process's stall excuses nothing": (
        "loss is told",
        in_order(
            reads("a", 7, 1.0, 2.0, valid_until=2.5),
            Stalled(3.5, "b", since=2.1),
            told("a", 7, 3.6, 2.5),
        ),
    ),
    "loss is never told": (
        "loss is told",
        in_order(
            reads("a", 7, 1.0, 2.0, valid_until=2.5),
            reads("a", 7, 3.5, leader=False, valid_until=2.5),
        ),
    ),
    "loss is heard long after it was told": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Heard(4.5, "a", 7)),
    ),
    "loss is never heard": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), reads("a", 7, 4.5, leader=False, valid_until=3.5)),
    ),
    "the end of another term was heard": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Heard(3.6, "a", 6), Heard(3.6, "b", 7), Heard(4.5, "a", 8)),
    ),
    "loss is heard long after the user's code could run": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Blocked(5.0, "a", since=3.0), Heard(5.7, "a", 7)),
    ),
    "the user's code stood still long before, and that excuses nothing": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Blocked(2.5, "a", since=1.0), Heard(4.2, "a", 7)),
    ),
    "loss is heard long after the last write": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Wrote(4.5, "a", 7, 3.6, accepted=False), Heard(5.1, "a", 7)),
    ),
    "the user's code goes on writing": (
        "loss is heard when the code can run",
        in_order(
            a_term_of_a(),
            *(Wrote(3.6 + n / 10, "a", 7, 3.5 + n / 10, accepted=False) for n in range(9)),
            Heard(4.5, "a", 7),
        ),
    ),
    "the user's code goes on writing, and the last write is slow": (
        "loss is heard when the code can run",
        in_order(
            a_term_of_a(),
            Wrote(3.7, "a", 7, 3.6, accepted=False),
            Wrote(4.5, "a", 7, 3.8, accepted=False),
            Heard(4.6, "a", 7),
        ),
    ),
    "a write of the next term is slow, and that excuses nothing": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Wrote(4.5, "a", 9, 3.6, accepted=True), Heard(4.6, "a", 7)),
    ),
    "another's code stood still, and that excuses nothing": (
        "loss is heard when the code can run",
        in_order(a_term_of_a(), Blocked(4.5, "b", since=3.0), Heard(4.6, "a", 7)),
    ),
    "the user's code stands still, and the library tells nobody": (
        "loss is told",
        in_order(
            reads("a", 7, 1.0, 2.0, valid_until=2.5),
            Blocked(4.0, "a", since=2.1),
            told("a", 7, 4.0, 2.5),
            Heard(4.1, "a", 7),
        ),
    ),
    "the user's code stands still, and another of its threads hears True too long": (
        "False from the deadline on",
        in_order(a_term_of_a(), reads("a", 7, 3.6, valid_until=3.5), Blocked(5.0, "a", since=3.0)),
    ),
    "one candidate's trouble keeps all from leading": (
        "a leader again in bounded time",
        in_order(
            a_term_of_a(),
            trouble(1, "a", 2.0, 9.0),
            reads("b", 8, 3.0 + BOUND + 0.1),
            Closing(9.5),
        ),
    ),
    "one candidate's trouble is over, and nobody has led since long before": (
        "a leader again in bounded time",
        in_order(
            a_term_of_a(),
            trouble(1, "a", 2.0, 7.0),
            reads("b", 8, 3.0 + BOUND + 0.1),
            Closing(9.5),
        ),
    ),
    "nobody leads for long without a fault": (
        "a leader again in bounded time",
        in_order(a_term_of_a(), reads("b", 8, 3.0 + BOUND + 0.1), Closing(9.0)),
    ),
    "nobody leads for long after a fault": (
        "a leader again in bounded time",
        in_order(a_term_of_a(), pause(2.0, 6.0), reads("b", 8, 6.0 + BOUND + 0.1), Closing(12.0)),
    ),
    "nobody leads for long, and the processes stood still for too little of it": (
        "a leader again in bounded time",
        in_order(
            a_term_of_a(),
            Stalled(5.0, "b", since=4.0),
            Stalled(5.0, "c", since=4.0),
            reads("b", 8, 4.0 + BOUND + 0.1),
            Closing(12.0),
        ),
    ),
    "nobody leads until the end": (
        "a leader again in bounded time",
        in_order(a_term_of_a(), Closing(3.0 + BOUND + 0.1)),
    ),
    "a candidate has two entries": (
        "one entry per candidate",
        in_order(a_term_of_a(), Entered(2.0, ("a", "a"), alive=3)),
    ),
    "there are more entries than candidates": (
        "one entry per candidate",
        in_order(a_term_of_a(), Entered(2.0, ("a", "b", "c"), alive=2)),
    ),
    "an entry is left behind": (
        "nothing is left behind",
        in_order(a_term_of_a(), Closing(4.0), Remained(5.0, ("lease 1",))),
    ),
    "a process does not stop": (
        "who is told to stop stops",
        in_order(a_term_of_a(), Closing(4.0), Hung(5.0, "a", 1.0)),
    ),
}
"""By what is wrong: the rule that must say so, and the history."""

ACCEPTED: dict[str, list[AnyRecord]] = {
    "nothing happened": [],
    "one leader after the other": in_order(
        a_term_of_a(), reads("b", 8, 3.6, 4.0, valid_until=9), told("b", 8, 4.1, 9)
    ),
    "a True that may have been before the other's": in_order(
        # Asked at 1.9 and answered at 3.0: it was true at some instant between.
        reads("a", 7, 1.0, valid_until=2.0),
        reads("a", 7, 3.0, valid_until=2.0, took=1.1),
        told("a", 7, 3.1, 2.0),
        Stalled(3.1, "a", since=1.9),
        reads("b", 8, 2.1, 2.9, valid_until=9),
    ),
    "a removed leader goes on for as long as a watch takes": in_order(
        a_term_of_a(last=2.4), removal(1.5), reads("b", 8, 1.6, 2.5, valid_until=9)
    ),
    "a removal is slow, and done in a term that began meanwhile": in_order(
        removal(0.9, 1.5), a_term_of_a(last=2.4), reads("b", 8, 1.6, 2.5, valid_until=9)
    ),
    "the register turns an older token away": in_order(
        Registered(1.0, "b", 8, accepted=True),
        Registered(2.0, "a", 7, accepted=False),
        Registered(3.0, "b", 8, accepted=True),
    ),
    "a False with the deadline still to come": in_order(
        reads("a", 7, 1.0, valid_until=3.0),
        reads("a", 7, 1.1, leader=False, valid_until=3.0),
        told("a", 7, 1.1, 3.0),
    ),
    "one thread hears False, and another that asked before it True": in_order(
        reads("a", 7, 1.0, valid_until=3.0),
        reads("a", 7, 1.1, leader=False, valid_until=3.0),
        reads("a", 7, 1.2, valid_until=3.0, took=0.15),
        told("a", 7, 1.2, 3.0),
    ),
    "the same process leads again by a newer token": in_order(
        a_term_of_a(), Heard(3.6, "a", 7), reads("a", 9, 4.0, valid_until=9), told("a", 9, 4.1, 9)
    ),
    "an operator takes a leader's entry away": in_order(
        reads("a", 7, 1.0, 2.0, valid_until=2.5),
        removal(2.05),
        told("a", 7, 2.1, 2.5, willing=False),
    ),
    "a term ends at its deadline against our will": in_order(
        reads("a", 7, 1.0, 2.0, valid_until=2.5), told("a", 7, 2.5, 2.5, willing=False)
    ),
    "a fork's child does not lead": in_order(
        a_term_of_a(), reads("a", 7, 1.5, leader=False, forked=True)
    ),
    "loss is told as soon as the process could run": in_order(
        reads("a", 7, 1.0, 2.0, valid_until=2.5),
        Stalled(4.0, "a", since=2.1),
        told("a", 7, 4.1, 2.5),
    ),
    "loss is told after stall upon stall": in_order(
        reads("a", 7, 1.0, 2.0, valid_until=2.5),
        Stalled(3.0, "a", since=2.1),
        Stalled(4.0, "a", since=3.1),
        told("a", 7, 4.1, 2.5),
    ),
    "who was killed is told nothing": in_order(reads("a", 7, 1.0, 2.0, valid_until=2.5)),
    "loss is heard as soon as the user's code can run": in_order(
        a_term_of_a(), Blocked(5.0, "a", since=3.0), Heard(5.4, "a", 7)
    ),
    "loss is heard as soon as a slow register has answered": in_order(
        a_term_of_a(), Wrote(4.5, "a", 7, 3.6, accepted=False), Heard(4.6, "a", 7)
    ),
    "loss is heard after the process stood still, and then its user's code": in_order(
        a_term_of_a(), Stalled(4.5, "a", since=3.6), Blocked(6.0, "a", 4.6), Heard(6.1, "a", 7)
    ),
    "a term was over before the user's code was given it": in_order(
        told("a", 7, 3.0, 2.9, willing=False), reads("a", 9, 5.0, valid_until=9)
    ),
    "the process was killed before its code could hear": in_order(
        a_term_of_a(), Blocked(3.9, "a", since=3.0)
    ),
    "two candidates are in trouble, and nobody leads for long": in_order(
        a_term_of_a(),
        trouble(1, "a", 2.0, 9.0),
        trouble(2, "b", 3.5, 9.0),
        reads("b", 8, 9.1),
        Closing(9.5),
    ),
    "one candidate is in trouble, then another": in_order(
        a_term_of_a(),
        trouble(1, "a", 2.0, 7.0),
        trouble(2, "b", 7.5, 9.0),
        reads("b", 8, 9.1),
        Closing(9.5),
    ),
    "nobody leads for long, in a fault's time": in_order(
        a_term_of_a(), pause(2.0, 9.0), reads("b", 8, 9.5, valid_until=20), Closing(10.0)
    ),
    "nobody leads for long, but in two calm times": in_order(
        a_term_of_a(), pause(6.0, 6.5), reads("b", 8, 9.0, valid_until=20), Closing(10.0)
    ),
    "nobody leads for long, while the machine lets nobody run": in_order(
        a_term_of_a(),
        Stalled(5.0, "b", since=4.0),
        Stalled(7.0, "c", since=4.5),
        reads("b", 8, 6.0 + BOUND - 0.1),
        Closing(12.0),
    ),
    "nobody leads once all were told to stop": in_order(
        a_term_of_a(), Closing(4.0), Remained(20.0, ())
    ),
    "each candidate has an entry": in_order(a_term_of_a(), Entered(2.0, ("a", "b"), alive=2)),
}
"""Near misses, in which nothing is wrong."""
