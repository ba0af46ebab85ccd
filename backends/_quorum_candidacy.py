"""One key's campaign on one node: asking whether to, collecting votes and leases, leading.

Contenders of one node queue; the first one campaigns.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ._quorum_acceptor import Acceptor
from ._quorum_ballot import Ballot
from ._quorum_effects import Elected, Lost, Released
from ._quorum_holdings import Holdings
from ._quorum_mail import Mail
from ._quorum_messages import (
    Announcement,
    Answer,
    Entry,
    Lease,
    LeaseAnswer,
    Owner,
    PreVote,
    PreVoteAnswer,
    Release,
    Ticket,
    Vote,
    VoteAnswer,
)
from ._quorum_releases import Releases
from ._quorum_timing import FAR_AHEAD, Timing, floor_term
from ._quorum_waiting import Queues, Waiter

LAPSED = "the leases were not renewed in time"
REMOVED = "this node is no longer a member"

_DOUBLINGS = 4
"""After so many failures in a row no wait grows further."""


@dataclass(slots=True)
class Contender:
    """Who wants to lead the key through this node.

    Attributes:
        uid: unique on this node.
        value: told to followers.
        ttl: seconds.
        rank: 0 campaigns first; each further rank waits one `backoff` longer.
        not_before: after it gave way, the others' turn ends then.
        name: what its user calls it.
        since: when it entered.
        proclaimed: how often it has changed its value.
    """

    uid: str
    value: bytes
    ttl: float
    rank: int = 0
    not_before: float = -math.inf
    name: str = ""
    since: float = -math.inf
    proclaimed: int = 0


class Phase(Enum):
    """How far a campaign is."""

    WAITING = "waiting"
    ASKING = "asking whether a vote would be granted"
    VOTING = "collecting votes"
    LEASING = "collecting the first leases"
    LEADING = "leading"


@dataclass(slots=True)
class Commons:
    """What the candidacies of one node share."""

    timing: Timing
    random: random.Random
    wall_clock: Callable[[], float]
    mail: Mail
    acceptor: Acceptor
    holdings: Holdings
    releases: Releases
    queues: Queues
    may_campaign: bool = False


class Candidacy:
    """The proposer of one key.

    Attributes:
        phase: how far it is.
        term: campaigned for, or led.
        valid_until: of the term that is led, on the node's clock.
    """

    def __init__(self, key: str, commons: Commons) -> None:
        self.key = key
        self.phase = Phase.WAITING
        self.term = 0
        self._commons = commons
        self._queue: deque[Contender] = deque()
        self._contender: Contender | None = None
        self._ballot: Ballot | None = None
        self._combined = False
        self._give_up_at = math.inf
        self._attempt_at = -math.inf
        # After a failure others get their turn until then, whatever they give back meanwhile.
        self._rests_until = -math.inf
        self._failures = 0
        # Votes in a row that ran out of time; other failures are over at once, on any disk.
        self._timed_out = 0
        self._seen_term = 0
        self._established_term = 0
        self._gave_way: dict[str, tuple[float, int]] = {}

    # --- what the user wants ---

    @property
    def is_idle(self) -> bool:
        """Nobody contends through this node."""
        return not self._queue and not self._gave_way

    def enter(self, contender: Contender, now: float) -> None:
        """Queue up. A contender that gave way lets others lead first, or a moment pass."""
        until, _ = self._gave_way.pop(contender.uid, (-math.inf, 0))
        contender.not_before = until
        contender.since = now
        self._queue.append(contender)
        if len(self._queue) == 1:
            self._attempt_at = now + self._delay()
            self._failures = self._timed_out = 0

    def has(self, uid: str) -> bool:
        """Whether this contender is queued, campaigns or leads."""
        return any(contender.uid == uid for contender in self._queue)

    def leads(self, uid: str) -> bool:
        """Whether this contender's term is on (valid or lapsing)."""
        return (
            self.phase is Phase.LEADING
            and self._contender is not None
            and self._contender.uid == uid
        )

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Those who contend and do not lead, in their order."""
        leader = self._contender if self.phase is Phase.LEADING else None
        return tuple(
            Waiter(self._commons.mail.id, each.uid, each.name, each.since)
            for each in self._queue
            if each is not leader
        )

    def withdraw(self, uid: str, now: float) -> None:
        """Leave, at whatever point; `Released` tells when nothing is left."""
        if self.leads(uid):
            self.resign(None, "", now)
            return
        if self._contender is not None and self._contender.uid == uid:
            asked = self._asked_for_lease()
            self._abandon(now, told=True)
            if not asked:
                self._commons.mail.emit(Released(self.key, uid))
        else:
            self._commons.mail.emit(Released(self.key, uid))
        self._drop(uid)

    def resign(self, successor: str | None, named: str, now: float) -> None:
        """Give up the term that is led.

        Args:
            successor: the node that may campaign at once, or ""; None: that of who waits longest.
            named: which contender there, or "" for its first.
        """
        contender = self._led()
        mail, timing, queues = self._commons.mail, self._commons.timing, self._commons.queues
        if successor is None:
            waiters = (each for each in queues.waiting(self.key, now) if each.not_before <= now)
            if first := next(waiters, None):
                successor, named = first.node, first.uid
                queues.named(first, self.key, now)
        incarnation = ""
        if successor:
            incarnation = (
                mail.incarnation if successor == mail.id else mail.peer(successor).incarnation
            )
        ticket = self._ticket(successor if successor and incarnation else "", incarnation)
        self._end_term(contender)
        pause = 2 * timing.backoff + timing.heartbeat
        self._gave_way[contender.uid] = (now + pause, ticket.term)
        self._attempt_at = now + self._delay()
        self._commons.releases.add(ticket, contender.ttl, now, told=True, contender=named)

    def releases(self, uid: str) -> list[Release]:
        """What would end this contender's term: for each other member one that names it."""
        mail = self._commons.mail
        others = [receiver for receiver in mail.receivers() if receiver != mail.id]
        if not self.leads(uid) or not others:
            return []
        number = mail.next_number()
        return [
            Release(mail.header(other, number), self._ticket(other, mail.peer(other).incarnation))
            for other in others
        ]

    def proclaim(self, uid: str, value: bytes) -> bool:
        """Change the value; whether this contender is there."""
        for contender in self._queue:
            if contender.uid == uid:
                contender.value = value
                contender.proclaimed += 1
                if self.leads(uid):
                    self._commons.holdings.replace(self._entry(contender))
                    self._announce(contender)
                return True
        return False

    @property
    def valid_until(self) -> float:
        """Minus infinity, unless leading."""
        if self.phase is not Phase.LEADING:
            return -math.inf
        return self._commons.holdings.held[self.key].valid_until

    # --- time ---

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do."""
        if self.phase is Phase.LEADING:
            return self.valid_until
        if self._ballot is not None:
            return self._ballot.deadline
        if self._queue and self._commons.may_campaign:
            return max(self._attempt_at, min(c.not_before for c in self._queue))
        if self._gave_way:
            return min(until for until, _ in self._gave_way.values())
        return math.inf

    def tick(self, now: float) -> None:
        """Do what is due."""
        if now < self.wake_at:
            return
        if self.phase is Phase.LEADING:
            self.lapse(now)
        elif self.phase is Phase.LEASING and now < self._give_up_at:
            self._ask_leases(now)
        elif self._ballot is not None:
            self._fail(now)
        elif self._queue and self._commons.may_campaign:
            self._begin(now)
        for uid in [uid for uid, (until, _) in self._gave_way.items() if until <= now]:
            del self._gave_way[uid]

    # --- a campaign ---

    def _begin(self, now: float) -> None:
        mail = self._commons.mail
        promised = self._commons.acceptor.promise_to_another(self.key, mail.id, now)
        if promised > now:
            self._attempt_at = promised + self._delay()
            return
        eligible = [contender for contender in self._queue if contender.not_before <= now]
        if not eligible:
            return
        self._contender = eligible[0]
        self.phase = Phase.ASKING
        self.term = self._next_term()
        number = self._open_ballot(now, self._commons.timing.heartbeat)
        for receiver in mail.receivers():
            header = mail.header(receiver, number)
            mail.send(PreVote(header, self.key, self._uid, self.term, self._is_established))

    def pre_vote_answered(self, answer: PreVoteAnswer, now: float) -> None:
        """Count an answer to the question."""
        if self.phase is not Phase.ASKING:
            return
        ballot = self._count(answer, answer.granted, 0.0, answer.reason, answer.remaining)
        self._learn(answer.term)
        if ballot is None:
            return
        ballot.terms[answer.header.sender] = answer.term
        ballot.rival |= answer.rival
        if self._commons.mail.quorum.is_quorum(ballot.granted):
            self._ask_votes(now, None)
        elif self._is_hopeless(ballot):
            self._fail(now)

    def take_over(self, ticket: Ticket, named: str, now: float) -> bool:
        """The leader named us, or one of us: campaign without asking first; whether we do."""
        if self.phase not in (Phase.WAITING, Phase.ASKING) or not self._commons.may_campaign:
            return False
        # Who is named by itself need not wait for others to have their turn.
        eligible = [
            contender
            for contender in self._queue
            if (contender.uid == named if named else contender.not_before <= now)
        ]
        if not eligible:
            return False
        self._contender = eligible[0]
        self._learn(ticket.term)
        self._ask_votes(now, ticket)
        return True

    def _ask_votes(self, now: float, ticket: Ticket | None) -> None:
        timing, mail = self._commons.timing, self._commons.mail
        # With nobody else asking, votes and leases in one step; with others,
        # a lease that comes to no majority would hold them up.
        self._combined = ticket is not None or not (self._ballot is not None and self._ballot.rival)
        self.phase = Phase.VOTING
        # Who takes over follows a term that is known: no need of the clock, which
        # nobody was asked about, and whose error this node's own vote would keep.
        self.term = self._known_term() + 1 if ticket is not None else self._next_term()
        self._commons.acceptor.note_campaign(self.key, self.term, now)
        contender = self._active()
        ttl = contender.ttl if self._combined else 0.0
        # Short at first, for lost messages; then time for disks on which a vote takes longer.
        patience = 2 * timing.heartbeat * _doubled(self._timed_out)
        number = self._open_ballot(now, min(timing.vote_window, patience))
        for receiver in mail.receivers():
            header = mail.header(receiver, number)
            mail.send(
                Vote(header, self.key, contender.uid, self.term, ttl, self._is_established, ticket)
            )

    def vote_answered(self, answer: VoteAnswer, now: float) -> None:
        """Count a vote."""
        self._learn(answer.term)
        if self.phase is not Phase.VOTING:
            return
        ballot = self._count(
            answer, answer.granted, answer.promised, answer.reason, answer.remaining
        )
        # A vote that comes later may be from before its acceptor's restart, and forgotten.
        if ballot is None or now > ballot.sent_at + self._commons.timing.vote_window:
            return
        if not self._commons.mail.quorum.is_quorum(ballot.granted):
            if self._is_hopeless(ballot):
                self._fail(now)
        elif self._combined:
            self._lead(ballot, now)
        else:
            self.phase = Phase.LEASING
            self._give_up_at = now + self._commons.timing.validity(self._active().ttl)
            self._ask_leases(now)

    def _ask_leases(self, now: float) -> None:
        # Repeating is safe until the first validity, never after a lapse: only
        # the answers to the latest request count, from its own sending on.
        contender = self._active()
        mail = self._commons.mail
        number = self._open_ballot(now, self._commons.timing.heartbeat)
        for receiver in mail.receivers():
            header = mail.header(receiver, number)
            mail.send(Lease(header, self.key, contender.uid, self.term, contender.ttl))

    def lease_answered(self, answer: LeaseAnswer, now: float) -> None:
        """Count a first lease."""
        self._learn(answer.term)
        if self.phase is not Phase.LEASING:
            return
        ballot = self._count(answer, answer.granted, answer.promised, answer.reason, 0.0)
        if ballot is None:
            return
        if self._commons.mail.quorum.is_quorum(ballot.granted):
            self._lead(ballot, now)
        elif self._is_hopeless(ballot):
            self._fail(now)

    def _lead(self, ballot: Ballot, now: float) -> None:
        contender = self._active()
        # From the sending of the requests: each promise began after it.
        valid_until = ballot.sent_at + self._commons.timing.validity(min(ballot.granted.values()))
        if now >= valid_until:
            self._fail(now)
            return
        self.phase = Phase.LEADING
        self._ballot = None
        self._failures = self._timed_out = 0
        self._gave_way.clear()
        self._commons.holdings.add(self._entry(contender), valid_until, now)
        self._commons.mail.emit(Elected(self.key, contender.uid, self.term, valid_until))
        self._announce(contender)

    def _fail(self, now: float) -> None:
        ballot = self._ballot
        asked = self._asked_for_lease()
        earliest = 0.0
        if ballot is not None:
            hope = ballot.earliest_hope(self._commons.mail.quorum)
            earliest = self._commons.timing.outlasting(hope)
            self._look_for_established(ballot)
            if self.phase is Phase.VOTING and now >= ballot.deadline:
                self._timed_out += 1
        self._abandon(now, told=False)
        widened = _doubled(self._failures) if asked else 1
        self._failures += 1
        rest = self._delay(widened)
        self._rests_until = now + rest
        self._attempt_at = now + earliest + rest

    def _abandon(self, now: float, *, told: bool) -> None:
        """Stop campaigning; take back what may have been promised."""
        contender = self._active()
        if self._asked_for_lease():
            ticket = self._ticket("", "")
            self._commons.releases.add(ticket, contender.ttl, now, told=told)
        self._stand_by(now)

    def _stand_by(self, now: float) -> None:
        self.phase = Phase.WAITING
        self._contender = None
        self._ballot = None
        self._give_up_at = math.inf
        self._attempt_at = now + self._delay()

    # --- the end of a term ---

    def lapse(self, now: float, reason: str = LAPSED) -> None:
        """The term is over without our will. It never comes back: a new one needs new votes."""
        contender = self._led()
        ticket = self._ticket("", "")
        self._end_term(contender)
        self._attempt_at = now + self._delay()
        self._commons.mail.emit(Lost(self.key, contender.uid, reason))
        # Nobody believes in the term any more, so what is left of its promises only hinders.
        self._commons.releases.add(ticket, contender.ttl, now, told=False)

    def _end_term(self, contender: Contender) -> None:
        # From here on no lease is asked for in this term, and no grant on its way
        # counts: otherwise a late one would revive a term that others were released from.
        self._commons.holdings.remove(self.key)
        self.phase = Phase.WAITING
        self._contender = None
        self._queue.remove(contender)

    def abort(self, now: float) -> None:
        """The membership changed: what was collected under the old one does not count."""
        if self._ballot is not None:
            self._abandon(now, told=False)

    def remove_all(self, now: float) -> None:
        """This node is no member any more."""
        if self.phase is Phase.LEADING:
            self.lapse(now, REMOVED)
        elif self._contender is not None:
            self._abandon(now, told=False)
        for contender in self._queue:
            self._commons.mail.emit(Lost(self.key, contender.uid, REMOVED))
        self._queue.clear()

    # --- what is seen of others ---

    def released(self, ticket: Ticket, now: float) -> None:
        """The key is free: campaign soon, or a moment later where another was named."""
        if self.phase is not Phase.WAITING:
            return
        # Time for the successor's 1.5 round trips, and no more: it may be dead.
        reserved = self._commons.timing.backoff / 2 if ticket.successor else 0.0
        self._failures = 0
        self._attempt_at = now + reserved + self._delay()

    def promise_returned(self, now: float) -> None:
        """Another node may be free of a promise that this one waits for the end of."""
        if self.phase is Phase.WAITING:
            soon = max(now + self._delay(), self._rests_until)
            self._attempt_at = min(self._attempt_at, soon)

    def another_leads(self, term: int) -> None:
        """Those who gave way have let another lead, and votes are answered again."""
        self._timed_out = 0
        for uid in [uid for uid, (_, before) in self._gave_way.items() if before < term]:
            del self._gave_way[uid]
        for contender in self._queue:
            contender.not_before = -math.inf

    def become_ready(self, now: float) -> None:
        """The node takes part from now on."""
        self._attempt_at = now + self._delay()

    # --- small means ---

    @property
    def _uid(self) -> str:
        return self._active().uid

    def _active(self) -> Contender:
        assert self._contender is not None
        return self._contender

    def _led(self) -> Contender:
        assert self.phase is Phase.LEADING
        return self._active()

    def _drop(self, uid: str) -> None:
        self._queue = deque(contender for contender in self._queue if contender.uid != uid)

    def _delay(self, widened: int = 1) -> float:
        rank = self._queue[0].rank if self._queue else 0
        backoff = self._commons.timing.backoff
        return self._commons.random.uniform(0, widened * backoff) + rank * backoff

    def _open_ballot(self, now: float, patience: float) -> int:
        mail = self._commons.mail
        number = mail.next_number()
        self._ballot = Ballot(number, now, now + patience)
        return number

    def _count(
        self, answer: Answer, granted: bool, promised: float, reason: str, remaining: float
    ) -> Ballot | None:
        ballot = self._ballot
        if ballot is None or not ballot.count(answer, granted, promised, reason, remaining):
            return None
        return ballot

    def _is_hopeless(self, ballot: Ballot) -> bool:
        return ballot.is_hopeless(self._commons.mail.quorum)

    def _asked_for_lease(self) -> bool:
        return self.phase is Phase.LEASING or (self.phase is Phase.VOTING and self._combined)

    def _learn(self, term: int) -> None:
        if term <= self._established_term or not self._commons.acceptor.is_far_ahead(term):
            self._seen_term = max(self._seen_term, term)

    def _look_for_established(self, ballot: Ballot) -> None:
        """Take over terms that are far ahead, when no majority can be had without them.

        Wall clocks were wrong on so many nodes, then, that these terms were
        voted for. Those that stand at them can vote for successors only.
        """
        is_quorum = self._commons.mail.quorum.is_quorum
        is_far_ahead = self._commons.acceptor.is_far_ahead
        near = [node for node, term in ballot.terms.items() if not is_far_ahead(term)]
        if is_quorum(ballot.terms) and not is_quorum(near):
            self._established_term = max(self._established_term, *ballot.terms.values())
            self._learn(self._established_term)

    @property
    def _is_established(self) -> bool:
        return self.term <= self._established_term + FAR_AHEAD

    def _known_term(self) -> int:
        return max(self._seen_term, self._commons.acceptor.term_to_exceed(self.key))

    def _next_term(self) -> int:
        # Where everybody forgot, real time still tells a later term from an earlier one.
        return max(self._known_term() + 1, floor_term(self._commons.wall_clock()))

    def _ticket(self, successor: str, incarnation: str) -> Ticket:
        mail = self._commons.mail
        return Ticket(
            self.key,
            mail.id,
            mail.incarnation,
            self._uid,
            self.term,
            successor,
            incarnation,
            mail.quorum.configuration,
        )

    def _entry(self, contender: Contender) -> Entry:
        return Entry(
            self.key,
            contender.uid,
            self.term,
            contender.ttl,
            contender.value,
            contender.proclaimed,
        )

    def _announce(self, contender: Contender) -> None:
        mail = self._commons.mail
        number = mail.next_number()
        for receiver in mail.receivers():
            header = mail.header(receiver, number)
            mail.send(Announcement(header, self._entry(contender)))


def _doubled(failures: int) -> int:
    return 1 << min(failures, _DOUBLINGS)


def owner_of(answerable: PreVote | Vote | Lease) -> Owner:
    """Whom a request is for."""
    header = answerable.header
    return Owner(header.sender, header.incarnation, answerable.uid)
