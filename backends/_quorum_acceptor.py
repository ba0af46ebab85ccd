"""One node's votes and promises: what makes two leaders at a time impossible.

Any two majorities share an acceptor, and no acceptor promises to two owners at
a time (`_promised_to_another`), nor votes twice in a term, nor promises in a
term below one that it voted in. The first gives one leader at a time, the
others give tokens that rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ._quorum_messages import Owner, Ticket
from ._quorum_timing import FAR_AHEAD, Timing, floor_term

RECOVERING = "recovering"
PROMISED = "promised to another"
OLD_TERM = "the term is not new"
FAR_TERM = "the term is too far ahead of the wall clock"
FULL = "too many keys"
ANOTHER_RUN = "meant for another run of this node"
NOT_STORED = "the state cannot be stored"
STALE = "a later request was answered already"

_NOBODY = Owner("", "", "")
"""Has the vote of a term that was released: it is given to nobody any more."""


@dataclass(slots=True)
class Record:
    """What an acceptor knows of one key.

    Attributes:
        max_term: no lower one gets a vote or a lease.
        led_term: the highest that may have had a leader.
        voted_for: who got the vote of `max_term`; None: not known, or nobody yet.
        promised_to, promised_until: the promise.
        number: of the request that it answered.
        asked_by, asked_at: a contender, lately.
        campaigned_in: the highest term that this node itself asked for votes in.
        touched_at: when anybody asked for the key.
    """

    max_term: int
    led_term: int
    voted_for: Owner | None = None
    promised_to: Owner | None = None
    promised_until: float = -math.inf
    number: int = 0
    asked_by: Owner | None = None
    asked_at: float = -math.inf
    campaigned_in: int = 0
    touched_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class Verdict:
    """An acceptor's answer.

    Attributes:
        granted: whether.
        reason: why not, or "".
        term: the highest term known.
        remaining: seconds that a promise to another still lasts.
        promised: seconds of lease granted.
        rival: another contender asked lately.
    """

    granted: bool
    reason: str
    term: int
    remaining: float = 0.0
    promised: float = 0.0
    rival: bool = False


class Acceptor:
    """Grants and refuses.

    Args:
        timing: the durations.
        wall_clock: milliseconds since 1970.
        keys_limit: how many keys it keeps; a vote for one more is refused.
        floor: the highest term of the keys that it has no record of.
    """

    def __init__(
        self, timing: Timing, wall_clock: Callable[[], float], keys_limit: int, floor: int = 0
    ) -> None:
        self._timing = timing
        self._wall_clock = wall_clock
        self._keys_limit = keys_limit
        self.floor = floor
        self.records: dict[str, Record] = {}

    # --- what is asked of it ---

    def pre_vote(
        self, key: str, owner: Owner, term: int, now: float, *, established: bool = False
    ) -> Verdict:
        """Whether `vote` would grant. Remembers only that `owner` asked (a hint)."""
        record = self._record(key, now)
        if record is None:
            return Verdict(False, FULL, self.floor)
        rival = (
            record.asked_by is not None
            and record.asked_by != owner
            and now - record.asked_at < self._timing.vote_window
        )
        if not rival:
            record.asked_by, record.asked_at = owner, now
        refusal = self._refusal_to_vote(record, owner, term, now, established)
        return self._verdict(record, refusal, owner, now, rival=rival)

    def vote(
        self, key: str, owner: Owner, term: int, now: float, *, established: bool = False
    ) -> Verdict:
        """Grant at most one vote per term, and none while a promise to another lasts.

        Args:
            established: the term may be far ahead of the wall clock: it follows
                one that no majority can be had without.
        """
        record = self._record(key, now)
        if record is None:
            return Verdict(False, FULL, self.floor)
        refusal = self._refusal_to_vote(record, owner, term, now, established)
        if not refusal:
            record.max_term = term
            record.voted_for = owner
        return self._verdict(record, refusal, owner, now)

    def lease(
        self, key: str, owner: Owner, term: int, ttl: float, number: int, now: float
    ) -> Verdict:
        """Promise to vote for nobody else for `ttl` seconds from now.

        Args:
            number: of the request. A repeated or overtaken request extends
                nothing, or a recording of it would keep a dead leader's promise up.
        """
        record = self._record(key, now)
        if record is None:
            return Verdict(False, FULL, self.floor)
        refusal = self._refusal_to_lease(record, owner, term, number, now)
        if refusal:
            return self._verdict(record, refusal, owner, now)
        record.max_term = record.led_term = term
        record.voted_for = owner
        promised = min(ttl, self._timing.lease_ceiling)
        until = now + promised
        # Never shortened: the owner may count on an earlier, longer one.
        record.promised_until = (
            max(record.promised_until, until) if record.promised_to == owner else until
        )
        record.promised_to = owner
        record.number = number
        return self._verdict(record, "", owner, now, promised=promised)

    def release(self, ticket: Ticket, now: float) -> bool:
        """Clear the promise of the ticket's term and close the term; whether anything changed.

        A lease request of that term which is still on its way is refused then.
        """
        record = self._record(ticket.key, now)
        if record is None or self._promised_to_another(record, ticket.owner, now):
            return False
        if ticket.term < record.max_term or self._too_far(record, ticket.term):
            return False
        if ticket.term == record.max_term and record.voted_for not in (None, ticket.owner):
            return False
        record.max_term = ticket.term
        record.voted_for = _NOBODY
        record.promised_to = None
        record.promised_until = -math.inf
        return True

    def note_campaign(self, key: str, term: int, now: float) -> None:
        """This node asks for votes in the term, whoever grants them, and never will again.

        Else what is late of a campaign that failed, its release above all, would
        be taken for one of the next campaign's, and end a term that is led.
        """
        record = self._record(key, now)
        if record is None:
            self.floor = max(self.floor, term)
        else:
            record.campaigned_in = max(record.campaigned_in, term)

    # --- what it knows ---

    def term(self, key: str) -> int:
        """The highest term known for the key."""
        record = self.records.get(key)
        return self.floor if record is None else record.max_term

    def term_to_exceed(self, key: str) -> int:
        """The highest term known for the key, this node's own failed campaigns included."""
        record = self.records.get(key)
        return self.floor if record is None else max(record.max_term, record.campaigned_in)

    def promise_to_another(self, key: str, node: str, now: float) -> float:
        """When a live promise to another node's contender ends; minus infinity: there is none."""
        record = self.records.get(key)
        if record is None or record.promised_to is None or record.promised_to.node == node:
            return -math.inf
        return record.promised_until if now < record.promised_until else -math.inf

    def is_far_ahead(self, term: int) -> bool:
        """Whether the term comes from a wall clock that is badly wrong, there or here."""
        limit = self._wall_clock() + self._timing.wall_clock_limit * 1000
        return term > floor_term(limit)

    def terms(self) -> dict[str, int]:
        """The highest term of each key that it keeps."""
        return {key: record.max_term for key, record in self.records.items()}

    def led_terms(self) -> dict[str, int]:
        """Of each key that it keeps, the highest term that may have had a leader.

        The terms of campaigns that failed, in which votes were given for nothing, are
        not among them: taken over by all, they would depose who leads in a lower one.
        """
        return {key: record.led_term for key, record in self.records.items()}

    def merge(self, floor: int, terms: Mapping[str, int], now: float) -> None:
        """Take over what another knows: the highest term of each key, `floor` if not named."""
        for key, known in self.records.items():
            if key not in terms:
                self._raise(known, floor)
        for key, term in terms.items():
            record = self._record(key, now)
            if record is None:
                floor = max(floor, term)
            else:
                self._raise(record, term)
        self.floor = max(self.floor, floor)

    def raise_all(self, term: int) -> None:
        """Make this the least highest term of all keys: any of them may have had it."""
        self.floor = max(self.floor, term)
        for record in self.records.values():
            self._raise(record, term)

    def _raise(self, record: Record, term: int) -> None:
        record.led_term = max(record.led_term, term)
        if record.max_term < term:
            record.max_term = term
            record.voted_for = None

    def forget_idle(self, before: float, now: float) -> None:
        """Drop keys that nobody asked for since `before`; the floor keeps their terms rising."""
        idle = [
            key
            for key, record in self.records.items()
            if record.touched_at < before and record.promised_until <= now
        ]
        for key in idle:
            self.floor = max(self.floor, self.term_to_exceed(key))
            del self.records[key]

    # --- the rules ---

    def _refusal_to_vote(
        self, record: Record, owner: Owner, term: int, now: float, established: bool
    ) -> str:
        if self._promised_to_another(record, owner, now):
            return PROMISED
        if term <= record.max_term:
            return OLD_TERM
        if self._too_far(record, term) and not established:
            return FAR_TERM
        return ""

    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        # Each vote for this term was already weighed against `_too_far` by a
        # majority, so it is history here, however wrong the clocks were then.
        if self._promised_to_another(record, owner, now):
            return PROMISED
        if term < record.max_term:
            return OLD_TERM
        if term == record.max_term and record.voted_for not in (None, owner):
            return OLD_TERM
        if record.promised_to == owner and number <= record.number:
            return STALE
        return ""

    def _promised_to_another(self, record: Record, owner: Owner, now: float) -> bool:
        return (
            record.promised_to is not None
            and record.promised_to != owner
            and now < record.promised_until
        )

    def _too_far(self, record: Record, term: int) -> bool:
        # A node that stands at such a term already accepts its successors.
        return term > record.max_term + FAR_AHEAD and self.is_far_ahead(term)

    def _record(self, key: str, now: float) -> Record | None:
        record = self.records.get(key)
        if record is None:
            if len(self.records) >= self._keys_limit:
                return None
            record = self.records[key] = Record(self.floor, self.floor)
        record.touched_at = now
        return record

    def _verdict(
        self,
        record: Record,
        refusal: str,
        owner: Owner,
        now: float,
        *,
        promised: float = 0.0,
        rival: bool = False,
    ) -> Verdict:
        remaining = 0.0
        if self._promised_to_another(record, owner, now):
            remaining = record.promised_until - now
        return Verdict(not refusal, refusal, record.max_term, remaining, promised, rival)
