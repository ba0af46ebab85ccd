"""Every interleaving of a small world: three acceptors, two candidates, a few moments.

The acceptors are the real ones. What was sent may arrive at any later moment,
in any order, any number of times, or never: so a message, once sent, stays
deliverable, and a state need not hold what is on its way. Acceptors that have
seen the same are the same, so states are told apart up to their order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from leadership.backends._quorum_acceptor import Acceptor, Record
from leadership.backends._quorum_messages import Owner, Ticket
from leadership.backends._quorum_timing import Timing

from .quorum_mutants import (
    IgnoresPromises,
    OldTerms,
    ReleasesAnybody,
    VotesTwiceAndLeasesToAnybody,
)

KEY = "key"
LEASE = 2.0
"""How long a promise lasts, and how long, from the sending on, a leader believes in it.

Equal, which clocks without drift allow: nothing is left over to hide an error in.
"""
CANDIDATES = (Owner("a", "1", "x"), Owner("b", "1", "y"))
QUORUM = 2


class Sent(NamedTuple):
    """A request of a candidate, to all acceptors."""

    kind: str
    candidate: int
    term: int
    number: int
    at: int


class Candidate(NamedTuple):
    """What a candidate knows of itself; what it was answered is kept by acceptor."""

    term: int = 0
    number: int = 0
    requests: tuple[Sent, ...] = ()
    valid_until: float = 0.0
    leads: bool = False
    over: bool = False


class Seen(NamedTuple):
    """One acceptor: its record, the requests that it granted, the grants that arrived."""

    record: tuple[int, int, Owner | None, Owner | None, float, int]
    granted: frozenset[Sent]
    arrived: frozenset[Sent]


class State(NamedTuple):
    now: int
    candidates: tuple[Candidate, ...]
    acceptors: tuple[Seen, ...]
    highest: int


class Overlap(AssertionError):
    """Two leaders at a time, or a token that does not rise."""


class SmallWorld:
    """The steps from each state.

    Args:
        kind: of acceptors.
        moments: how far time goes.
        terms: the highest term.
        requests: how many requests each candidate may make.
    """

    def __init__(self, kind: type[Acceptor], moments: int, terms: int, requests: int) -> None:
        timing = Timing(lease_ceiling=LEASE, heartbeat=0.1)
        self.acceptor = kind(timing, lambda: 2e12, 10)
        self.moments = moments
        self.terms = terms
        self.requests = requests

    def explore(self) -> int:
        """Breadth first; the number of states."""
        nobody = (0, 0, None, None, -math.inf, 0)
        fresh = Seen(nobody, frozenset(), frozenset())
        first = State(0, (Candidate(), Candidate()), (fresh,) * 3, 0)
        known = {first}
        todo = deque(known)
        while todo:
            for state in self.steps(todo.popleft()):
                if state not in known:
                    known.add(state)
                    todo.append(state)
        return len(known)

    def steps(self, state: State) -> Iterator[State]:
        if state.now < self.moments:
            yield state._replace(now=state.now + 1)
        for who in range(2):
            yield from self._act(state, who)
        for place in range(3):
            if place and state.acceptors[place] == state.acceptors[place - 1]:
                continue
            for candidate in state.candidates:
                for sent in candidate.requests:
                    yield from self._deliver(state, place, sent)
            seen = state.acceptors[place]
            for sent in seen.granted - seen.arrived:
                yield self._answer(state, place, sent)

    # --- candidates: they follow the rules, as simply as these can be written ---

    def _act(self, state: State, who: int) -> Iterator[State]:
        me = state.candidates[who]
        if me.leads and state.now >= me.valid_until:
            me = me._replace(leads=False, over=True)
            yield self._with(state, who, me)
            return
        if len(me.requests) >= self.requests:
            return
        if not me.leads:
            for term in range(me.term + 1, self.terms + 1):
                yield self._send(state, who, me._replace(term=term, over=False), "vote")
        if me.term and not me.over:
            votes = sum(
                any(
                    s.kind == "vote" and s.candidate == who and s.term == me.term
                    for s in seen.arrived
                )
                for seen in state.acceptors
            )
            if votes >= QUORUM:
                yield self._send(state, who, me, "lease")
        if me.leads:
            yield self._send(state, who, me._replace(leads=False, over=True), "release")

    def _send(self, state: State, who: int, me: Candidate, kind: str) -> State:
        number = me.number + 1
        sent = Sent(kind, who, me.term, number, state.now)
        return self._with(state, who, me._replace(number=number, requests=(*me.requests, sent)))

    def _with(self, state: State, who: int, me: Candidate) -> State:
        candidates = (me, state.candidates[1]) if who == 0 else (state.candidates[0], me)
        return state._replace(candidates=candidates)

    def _answer(self, state: State, place: int, sent: Sent) -> State:
        seen = state.acceptors[place]
        state = self._replaced(state, place, seen._replace(arrived=seen.arrived | {sent}))
        me = state.candidates[sent.candidate]
        granted = sum(sent in seen.arrived for seen in state.acceptors)
        until = sent.at + LEASE
        if sent.kind != "lease" or granted < QUORUM or me.term != sent.term or me.over:
            return state
        if state.now >= until or (me.leads and state.now >= me.valid_until):
            return state
        other = state.candidates[1 - sent.candidate]
        if other.leads and state.now < other.valid_until:
            raise Overlap(f"two leaders: {state}")
        if not me.leads:
            if sent.term <= state.highest:
                raise Overlap(f"token {sent.term} after {state.highest}: {state}")
            state = state._replace(highest=sent.term)
        me = me._replace(leads=True, valid_until=max(until, me.valid_until))
        return self._with(state, sent.candidate, me)

    # --- acceptors: the real ones ---

    def _deliver(self, state: State, place: int, sent: Sent) -> Iterator[State]:
        seen = state.acceptors[place]
        term, led, voted, promised, until, number = seen.record
        record = Record(term, led, voted, promised, until, number)
        self.acceptor.records = {KEY: record}
        owner, now = CANDIDATES[sent.candidate], float(state.now)
        granted = False
        if sent.kind == "vote":
            granted = self.acceptor.vote(KEY, owner, sent.term, now).granted
        elif sent.kind == "lease":
            granted = self.acceptor.lease(KEY, owner, sent.term, LEASE, sent.number, now).granted
        else:
            ticket = Ticket(KEY, *owner, sent.term, "", "", "")
            self.acceptor.release(ticket, now)
        until = record.promised_until if record.promised_until > state.now else -math.inf
        after = (
            record.max_term,
            record.led_term,
            record.voted_for,
            record.promised_to if until > state.now else None,
            until,
            record.number,
        )
        grants = seen.granted | {sent} if granted else seen.granted
        if after != seen.record or grants != seen.granted:
            yield self._replaced(state, place, seen._replace(record=after, granted=grants))

    def _replaced(self, state: State, place: int, seen: Seen) -> State:
        others = [other for i, other in enumerate(state.acceptors) if i != place]
        acceptors = tuple(sorted([*others, seen], key=repr))
        return state._replace(acceptors=acceptors)


def test_no_interleaving_of_a_small_world_has_two_leaders_or_a_falling_token() -> None:
    assert SmallWorld(Acceptor, moments=2, terms=2, requests=2).explore() > 10_000


@pytest.mark.parametrize(
    "kind", [IgnoresPromises, OldTerms, ReleasesAnybody, VotesTwiceAndLeasesToAnybody]
)
def test_the_small_world_catches_an_acceptor_without_its_rules(kind: type[Acceptor]) -> None:
    with pytest.raises(Overlap):
        SmallWorld(kind, moments=2, terms=2, requests=3).explore()
