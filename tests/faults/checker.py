"""Whether a history keeps what the library guarantees: a pure function of its records.

A process's `True` was true at *some* instant between the stamps around it. So
two terms are said to overlap only where no placing of those instants could
have kept them apart; what the checker rejects did happen.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
    Record,
    Registered,
    Remained,
    Removed,
    Setting,
    Stalled,
    Told,
    Wrote,
)

R = TypeVar("R", bound=Record)

REMOVAL_OVERLAP = 1.0
"""Seconds for which a leader may go on whose entry or session an operator took away."""

PROMPTNESS = 0.5
"""Seconds on a busy machine from the moment at which the loss is due to its being told."""

_RECORDED = 0.005
"""Seconds between what happened and its stamp, of which nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken guarantee.

    Attributes:
        at: where in the history to look.
    """

    at: float
    rule: str
    details: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.rule}: {self.details}"


@dataclass(frozen=True, slots=True)
class _Reign:
    """A term as the readings of its process show it: the first True, and the last."""

    process: str
    token: int
    first: Read
    last: Read

    def __str__(self) -> str:
        return f"{self.process} with token {self.token}"


def violations(history: Sequence[AnyRecord]) -> list[Violation]:
    """All that is wrong, in the order of time; an empty list is a proof for this history.

    Args:
        history: the records of a whole round in the order of their stamps.
    """
    found = itertools.chain.from_iterable(rule(history) for rule in _RULES)
    return sorted(found, key=lambda violation: violation.at)


def leaders(history: Iterable[AnyRecord]) -> int:
    """How many terms had a leader who knew of it."""
    return len(_reigns(history))


def _one_leader_at_a_time(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    removals = _removals(history)
    reigns = sorted(_reigns(history), key=lambda reign: reign.token)
    for older, newer in itertools.combinations(reigns, 2):
        over = older.last.began - newer.first.at
        if older.token == newer.token:
            yield Violation(newer.first.at, "tokens rise", f"both {older} and {newer}")
        elif over <= 0:
            continue
        elif older.first.began > newer.last.at:
            yield Violation(older.first.began, "tokens rise", f"{older} after {newer}")
        elif not (
            over < REMOVAL_OVERLAP
            and any(
                begun <= older.last.at and done >= older.first.began for begun, done in removals
            )
        ):
            details = f"{older} led for {over:.6f} s beside {newer}"
            yield Violation(older.last.began, "one leader at a time", details)


def _the_register_is_fenced(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    highest = -math.inf
    for write in _of(Registered, history):
        if write.accepted and write.token < highest:
            details = f"{write.token} of {write.process} accepted after {highest}"
            yield Violation(write.at, "the register is fenced", details)
        if write.accepted:
            highest = max(highest, write.token)


def _false_from_the_deadline_on(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    final = {(told.process, told.token): told.valid_until for told in _of(Told, history)}
    for read in _of(Read, history):
        until = min(read.valid_until, final.get((read.process, read.token), math.inf))
        if read.leader and read.began > until:
            details = f"{read.process} says leader {read.began - until:.6f} s after its deadline"
            yield Violation(read.began, "False from the deadline on", details)


def _false_is_for_ever(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    fallen: dict[tuple[str, int], float] = {}
    for read in _of(Read, history):
        if read.forked:
            continue
        term = (read.process, read.token)
        if not read.leader:
            fallen.setdefault(term, read.at)
        # Of two threads that ask at once, one may hear True and the other False.
        elif read.began > fallen.get(term, math.inf):
            details = f"{read.process} leads again under its old token {read.token}"
            yield Violation(read.at, "False is for ever", details)


def _a_child_never_leads(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    for read in _of(Read, history):
        if read.forked and read.leader:
            details = f"a fork of {read.process} says leader"
            yield Violation(read.at, "a fork's child never leads", details)


def _no_term_is_cut_short(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    """Nobody but an operator takes away what a valid lease holds."""
    removals = [record.at for record in _of(Injected, history) if record.removal]
    begun = {(reign.process, reign.token): reign.first.began for reign in _reigns(history)}
    for told in _of(Told, history):
        left = told.valid_until - told.at
        began = begun.get((told.process, told.token), told.at)
        removed = any(began - REMOVAL_OVERLAP <= at <= told.at for at in removals)
        if left > _RECORDED and not told.willing and not removed:
            details = f"{told.process} with token {told.token} had {left:.3f} s left: {told.reason}"
            yield Violation(told.at, "no term is cut short", details)


def _loss_is_told(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    told = {(each.process, each.token): each for each in _of(Told, history)}
    stalls = defaultdict(list)
    for stall in _of(Stalled, history):
        stalls[stall.process].append(stall)
    last_seen = _last_seen(history)
    for reign in _reigns(history):
        word = told.get((reign.process, reign.token))
        due = reign.last.valid_until if word is None else word.valid_until
        for stall in sorted(stalls[reign.process], key=lambda each: each.since):
            if stall.since <= due + PROMPTNESS:
                due = max(due, stall.at)
        at = last_seen[reign.process] if word is None else word.at
        if at > due + PROMPTNESS:
            how = "has not been told" if word is None else "was told late"
            details = f"{reign} {how}: {at - due:.3f} s after it could have been"
            yield Violation(at, "loss is told", details)


def _loss_is_heard_when_the_code_can_run(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    """The user's own code learns it as soon as it runs, not only hooks that run beside it."""
    heard = {(each.process, each.token): each.at for each in _of(Heard, history)}
    last_seen = _last_seen(history)
    still: list[Stalled | Blocked] = [*_of(Stalled, history), *_of(Blocked, history)]
    writes = defaultdict(list)
    for write in _of(Wrote, history):
        writes[write.process, write.token].append(write)
    # A term that was over before the user's code was given it is none for that.
    led = {(reign.process, reign.token) for reign in _reigns(history)}
    for told in _of(Told, history):
        term = (told.process, told.token)
        if term not in led:
            continue
        standing = [(each.since, each.at) for each in still if each.process == told.process]
        # What it was about to write it writes, and a register may be slow: one write, no other.
        if last_write := next((each for each in writes[term] if each.at > told.at), None):
            standing.append((last_write.began, last_write.at))
        due = told.at
        for since, until in sorted(standing):
            if since <= due + PROMPTNESS:
                due = max(due, until)
        at = heard.get((told.process, told.token), last_seen[told.process])
        if at > due + PROMPTNESS:
            details = f"{told.process} with token {told.token} ran for {at - due:.3f} s before"
            yield Violation(at, "loss is heard when the code can run", details)


def _a_leader_again_in_bounded_time(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    if not history or not isinstance(history[0], Setting):
        return
    bound, since = history[0].bound, history[0].since
    end = next(_of(Closing, history), history[-1]).at
    for began, ended in _leaderless(history, since, end):
        for calm, disturbed in _calm(history, since, end):
            first, last = max(began, calm), min(ended, disturbed)
            alone = last - first
            if alone > bound and alone - _starved(history, first, last) > bound:
                details = f"no leader for {alone:.1f} s without a fault, of {bound:g} at most"
                yield Violation(first, "a leader again in bounded time", details)


def _leaderless(
    history: Sequence[AnyRecord], began: float, end: float
) -> Iterator[tuple[float, float]]:
    led_until = began
    for reign in sorted(_reigns(history), key=lambda reign: reign.first.began):
        if reign.first.began > led_until:
            yield led_until, reign.first.began
        led_until = max(led_until, reign.last.at)
    if end > led_until:
        yield led_until, end


def _starved(history: Sequence[AnyRecord], began: float, end: float) -> float:
    """Seconds in which the machine let some candidate's process stand still."""
    starved, upto = 0.0, began
    for stall in sorted(_of(Stalled, history), key=lambda each: each.since):
        last = min(stall.at, end)
        starved += max(0.0, last - max(stall.since, upto))
        upto = max(upto, last)
    return starved


def _calm(history: Sequence[AnyRecord], began: float, end: float) -> Iterator[tuple[float, float]]:
    """The times without a fault, or with one that leaves the other candidates their store."""
    active: dict[int, Injected] = {}
    since = began
    calm = True
    for record in history:
        if isinstance(record, Injected):
            active[record.number] = record
        elif isinstance(record, Healed):
            active.pop(record.number, None)
        else:
            continue
        was, calm = calm, _is_calm(active.values())
        # Whatever such a fault did, its end does the others no harm.
        if was and calm and isinstance(record, Healed):
            continue
        if was:
            yield since, record.at
        since = record.at
    if calm:
        yield since, end


def _is_calm(active: Collection[Injected]) -> bool:
    return not active or (len(active) == 1 and all(fault.concerns_one for fault in active))


def _one_entry_per_candidate(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    for record in _of(Entered, history):
        if len(record.owners) > record.alive or len(set(record.owners)) < len(record.owners):
            details = f"{record.alive} candidates, and the entries {', '.join(record.owners)}"
            yield Violation(record.at, "one entry per candidate", details)


def _nothing_is_left(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    for record in _of(Remained, history):
        if record.entries:
            yield Violation(record.at, "nothing is left behind", ", ".join(record.entries))


def _who_is_told_to_stop_stops(history: Sequence[AnyRecord]) -> Iterator[Violation]:
    for record in _of(Hung, history):
        details = f"{record.process} still runs after {record.seconds:g} s"
        yield Violation(record.at, "who is told to stop stops", details)


_RULES = (
    _one_leader_at_a_time,
    _the_register_is_fenced,
    _false_from_the_deadline_on,
    _false_is_for_ever,
    _a_child_never_leads,
    _no_term_is_cut_short,
    _loss_is_told,
    _loss_is_heard_when_the_code_can_run,
    _a_leader_again_in_bounded_time,
    _one_entry_per_candidate,
    _nothing_is_left,
    _who_is_told_to_stop_stops,
)

_WITHOUT_PROCESS = (
    Setting,
    Injected,
    Removed,
    Healed,
    Entered,
    Closing,
    Remained,
    Registered,
    Hung,
)


def _removals(history: Iterable[AnyRecord]) -> list[tuple[float, float]]:
    """From when to when an operator took something away: it may be slow, and a term begin then."""
    found: list[tuple[float, float]] = []
    for record in history:
        if isinstance(record, Injected) and record.removal:
            found.append((record.at, record.at))
        elif isinstance(record, Removed) and found:
            found[-1] = (found[-1][0], record.at)
    return found


def _last_seen(history: Iterable[AnyRecord]) -> dict[str, float]:
    return {
        record.process: record.at for record in history if not isinstance(record, _WITHOUT_PROCESS)
    }


def _reigns(history: Iterable[AnyRecord]) -> list[_Reign]:
    firsts: dict[tuple[str, int], Read] = {}
    lasts: dict[tuple[str, int], Read] = {}
    for read in _of(Read, history):
        if read.leader and not read.forked:
            firsts.setdefault((read.process, read.token), read)
            lasts[read.process, read.token] = read
    return [
        _Reign(process, token, first, lasts[process, token])
        for (process, token), first in firsts.items()
    ]


def _of(kind: type[R], history: Iterable[AnyRecord]) -> Iterator[R]:
    return (record for record in history if isinstance(record, kind))
