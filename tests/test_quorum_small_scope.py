"""Every interleaving of a small world: three acceptors, two candidates, a few moments.

The acceptors are the real ones. What was sent may arrive at any later moment,
in any order, any number of times, or never: so a request, once sent, stays
deliverable. An answer matters only when it makes a majority, and may take its
time: so a candidate counts a majority of grants at any moment after they were
given, or never.

Acceptors do not hear of each other. So the search goes over what candidates
do, and holds beside it the set of all that one acceptor may have come to by
then. What candidates counted can have happened if three acceptors can be
chosen out of that set, of which two granted each request that was counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import NamedTuple

import pytest

from leadership.backends._quorum_acceptor import _NOBODY, Acceptor, Record
from leadership.backends._quorum_messages import Owner, Ticket
from leadership.backends._quorum_timing import Timing

from .quorum_mutants import (
    IgnoresPromises,
    OldTerms,
    ReleasesAnybody,
    VotesTwiceAndLeasesToAnybody,
)

KEY = "key"
LEASE = 2
"""How many moments a promise lasts, and how long, from the sending on, a leader believes in it.

Equal, which clocks without drift allow: nothing is left over to hide an error in.
"""
OWNERS = (Owner("a", "1", "x"), Owner("b", "1", "y"), _NOBODY, None)
UNKNOWN = 3


class Sent(NamedTuple):
    """A request of a candidate, to all acceptors.

    Attributes:
        kind: "vote", "lease", "both" in one message, or "release".
        candidate: whose.
        term: asked for, or given up.
        number: of the request.
        at: when it was sent.
    """

    kind: str
    candidate: int
    term: int
    number: int
    at: int


class Candidate(NamedTuple):
    """What a candidate knows of itself. `over`: it asks for nothing more in its term."""

    term: int = 0
    requests: tuple[Sent, ...] = ()
    valid_until: int = 0
    leads: bool = False
    over: bool = True


class Kept(NamedTuple):
    """An acceptor's record; owners by their place in `OWNERS`."""

    max_term: int = 0
    voted_for: int = UNKNOWN
    promised_to: int = UNKNOWN
    promised_until: int = 0
    number: int = 0


class Seen(NamedTuple):
    """What one acceptor may have come to. Requests are the bits of their places.

    Attributes:
        kept: its record, by number.
        granted: what it granted and may still be counted.
        counted: what it had granted when it was counted.
    """

    kept: int
    granted: int
    counted: int


class State(NamedTuple):
    now: int = 0
    candidates: tuple[Candidate, Candidate] = (Candidate(), Candidate())
    acceptors: frozenset[Seen] = frozenset({Seen(0, 0, 0)})
    counted: int = 0
    highest: int = 0


class Overlap(AssertionError):
    """Two leaders at a time, or a token that does not rise."""


class SmallWorld:
    """The steps from each state.

    Args:
        kind: of acceptors.
        moments: how far time goes.
        terms: the highest term.
        requests: how many each of the candidates may make.
    """

    def __init__(
        self, kind: type[Acceptor], moments: int, terms: int, requests: tuple[int, int]
    ) -> None:
        timing = Timing(lease_ceiling=LEASE, heartbeat=0.1)
        self.acceptor = kind(timing, lambda: 2e12, 10)
        self.moments = moments
        self.terms = terms
        self.requests = requests
        self.records = [Kept()]
        self.numbers = {Kept(): 0}
        self.answers: dict[tuple[int, Sent, int], tuple[int, bool]] = {}

    def explore(self) -> int:
        """Depth first; the number of states.

        Raises:
            Overlap: a state is reached that must not be.
        """
        known = {State()}
        todo = [State()]
        while todo:
            for state in self.steps(todo.pop()):
                if state not in known:
                    known.add(state)
                    todo.append(state)
        return len(known)

    def steps(self, state: State) -> Iterator[State]:
        if state.now < self.moments:
            yield self._later(state)
        for who in range(2):
            yield from self._count(state, who)
            yield from self._act(state, who)

    def _later(self, state: State) -> State:
        now = state.now + 1
        # A term that is not renewed in time is over, whatever still comes.
        a, b = (
            one._replace(leads=False, over=True) if one.leads and now >= one.valid_until else one
            for one in state.candidates
        )
        return self._delivered(state._replace(now=now, candidates=(a, b)))

    # --- candidates: they follow the rules, as simply as these can be written ---

    def _act(self, state: State, who: int) -> Iterator[State]:
        me = state.candidates[who]
        if len(me.requests) == self.requests[who]:
            return
        if not me.leads:
            for term in range(me.term + 1, self.terms + 1):
                begun = me._replace(term=term, over=False)
                yield self._send(state, who, begun, "vote")
                yield self._send(state, who, begun, "both")
        if not me.over:
            if any(state.counted & bit(sent) for sent in me.requests if sent.term == me.term):
                yield self._send(state, who, me, "lease")
            yield self._send(state, who, me._replace(leads=False, over=True), "release")

    def _send(self, state: State, who: int, me: Candidate, kind: str) -> State:
        sent = Sent(kind, who, me.term, len(me.requests) + 1, state.now)
        after = self._with(state, who, me._replace(requests=(*me.requests, sent)))
        return self._delivered(after)

    def _with(self, state: State, who: int, me: Candidate) -> State:
        candidates = (me, state.candidates[1]) if who == 0 else (state.candidates[0], me)
        return state._replace(candidates=candidates)

    def _count(self, state: State, who: int) -> Iterator[State]:
        """Take a majority's grants of a request to have come."""
        me = state.candidates[who]
        for sent in me.requests:
            if state.counted & bit(sent) or not self._is_countable(state, sent):
                continue
            acceptors = frozenset(
                Seen(
                    seen.kept, seen.granted & ~bit(sent), seen.counted | (seen.granted & bit(sent))
                )
                for seen in state.acceptors
            )
            counted = state.counted | bit(sent)
            if is_possible({seen.counted for seen in acceptors}, counted):
                after = state._replace(acceptors=acceptors, counted=counted)
                yield after if sent.kind == "vote" else self._lead(after, who, sent)

    def _is_countable(self, state: State, sent: Sent) -> bool:
        me = state.candidates[sent.candidate]
        if me.over or sent.term != me.term:
            return False
        if sent.kind == "vote":
            return True
        return sent.kind != "release" and state.now < sent.at + LEASE > me.valid_until

    def _lead(self, state: State, who: int, sent: Sent) -> State:
        me, other = state.candidates[who], state.candidates[1 - who]
        if other.leads:
            raise Overlap(f"two leaders: {state.candidates}")
        if not me.leads and sent.term <= state.highest:
            raise Overlap(f"token {sent.term} after {state.highest}: {state.candidates}")
        until = sent.at + LEASE
        after = self._with(state, who, me._replace(leads=True, valid_until=until))
        return after._replace(highest=sent.term)

    # --- acceptors: the real ones ---

    def _delivered(self, state: State) -> State:
        """All that an acceptor may have come to by now."""
        requests = [sent for candidate in state.candidates for sent in candidate.requests]
        useful = sum(
            bit(sent)
            for sent in requests
            if self._is_countable(state, sent) and not state.counted & bit(sent)
        )
        reached = {Seen(kept, granted & useful, to) for kept, granted, to in state.acceptors}
        todo = list(reached)
        while todo:
            kept, granted, counted = todo.pop()
            for sent in requests:
                asked = (kept, sent, state.now)
                if asked not in self.answers:
                    self.answers[asked] = self._ask(*asked)
                later, grants = self.answers[asked]
                after = Seen(later, granted | (bit(sent) & useful) if grants else granted, counted)
                if after not in reached:
                    reached.add(after)
                    todo.append(after)
        return state._replace(acceptors=frozenset(reached))

    def _ask(self, number: int, sent: Sent, now: int) -> tuple[int, bool]:
        kept = self.records[number]
        record = Record(
            kept.max_term,
            0,
            OWNERS[kept.voted_for],
            OWNERS[kept.promised_to],
            kept.promised_until,
            kept.number,
        )
        acceptor, owner = self.acceptor, OWNERS[sent.candidate]
        assert owner is not None
        acceptor.records = {KEY: record}
        granted = False
        if sent.kind in ("vote", "both"):
            granted = acceptor.vote(KEY, owner, sent.term, now).granted
        if sent.kind == "lease" or (sent.kind == "both" and granted):
            granted = acceptor.lease(KEY, owner, sent.term, LEASE, sent.number, now).granted
        if sent.kind == "release":
            acceptor.release(Ticket(KEY, *owner, sent.term, "", "", ""), now)
        # A promise that has ended is the same whenever it ended.
        until = record.promised_until if record.promised_until > now else 0
        after = Kept(
            record.max_term,
            OWNERS.index(record.voted_for),
            OWNERS.index(record.promised_to),
            int(until),
            record.number,
        )
        if after not in self.numbers:
            self.numbers[after] = len(self.records)
            self.records.append(after)
        return self.numbers[after], granted


def bit(sent: Sent) -> int:
    """The place of a request in the sets that acceptors hold."""
    return 1 << (4 * sent.candidate + sent.number - 1)


def is_possible(sets: set[int], counted: int) -> bool:
    """Whether three acceptors can have done so: two of them granted each request that counted."""
    largest = [
        one for one in sets if not any(one != other and one & other == one for other in sets)
    ]
    return any(
        (a & b) | (a & c) | (b & c) == counted
        for a, b, c in combinations_with_replacement(largest, 3)
    )


@pytest.mark.parametrize("requests", [(2, 2), (1, 3)])
def test_no_interleaving_of_a_small_world_has_two_leaders_or_a_falling_token(
    requests: tuple[int, int],
) -> None:
    assert SmallWorld(Acceptor, moments=2, terms=2, requests=requests).explore() > 10_000


@pytest.mark.parametrize(
    "kind",
    [IgnoresPromises, OldTerms, ReleasesAnybody, VotesTwiceAndLeasesToAnybody],
)
def test_the_small_world_catches_an_acceptor_without_its_rules(kind: type[Acceptor]) -> None:
    with pytest.raises(Overlap):
        SmallWorld(kind, moments=2, terms=2, requests=(1, 3)).explore()
