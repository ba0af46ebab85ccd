"""What a node answers to those who ask for its votes, its promises and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._quorum_acceptor import ANOTHER_RUN, NOT_STORED, RECOVERING, Acceptor, Verdict
from ._quorum_candidacy import owner_of
from ._quorum_holdings import KeySet
from ._quorum_leaders import Leaders
from ._quorum_mail import Mail
from ._quorum_messages import (
    Heartbeat,
    HeartbeatAnswer,
    Lease,
    LeaseAnswer,
    Message,
    Owner,
    PreVote,
    PreVoteAnswer,
    Recovery,
    RecoveryAnswer,
    Ticket,
    Vote,
    VoteAnswer,
)
from ._quorum_storage import Storage
from ._quorum_timing import Timing
from ._quorum_waiting import Queues

NOT_A_MEMBER = "this node is no member"


class Granting:
    """The acceptor's side of the correspondence.

    Args:
        keys_limit: how many keys a member may say that it leads.
        is_ready: whether the node takes part.
    """

    def __init__(
        self,
        mail: Mail,
        timing: Timing,
        acceptor: Acceptor,
        storage: Storage,
        leaders: Leaders,
        queues: Queues,
        keys_limit: int,
        is_ready: Callable[[], bool],
    ) -> None:
        self._mail = mail
        self._timing = timing
        self._acceptor = acceptor
        self._storage = storage
        self._leaders = leaders
        self._queues = queues
        self._keys_limit = keys_limit
        self._is_ready = is_ready
        self._key_sets: dict[str, KeySet] = {}

    @property
    def handlers(self) -> dict[type[Message], Callable[[Any, float], None]]:
        """Of the requests that are answered here."""
        return {
            PreVote: self._on_pre_vote,
            Vote: self._on_vote,
            Lease: self._on_lease,
            Heartbeat: self._on_heartbeat,
            Recovery: self._on_recovery,
        }

    def _refusal(self, message: Message) -> str:
        """Why this node grants nothing to it, whatever it asks for."""
        header = message.header
        if not self._is_ready():
            return RECOVERING
        everyone = self._mail.quorum.everyone
        if self._mail.id not in everyone or header.sender not in everyone:
            return NOT_A_MEMBER
        if header.receiver_incarnation != self._mail.incarnation:
            # A recording of what an earlier run was asked must not bind this one.
            return ANOTHER_RUN
        return ""

    def _on_pre_vote(self, message: PreVote, now: float) -> None:
        key = message.key
        refusal = self._refusal(message)
        if refusal and refusal != ANOTHER_RUN:
            verdict = Verdict(False, refusal, self._acceptor.term(key))
        else:
            verdict = self._acceptor.pre_vote(
                key, owner_of(message), message.term, now, established=message.established
            )
        self._mail.send(
            PreVoteAnswer(
                self._mail.reply_header(message.header),
                key,
                verdict.granted,
                verdict.reason,
                verdict.term,
                verdict.remaining,
                verdict.rival,
            )
        )

    def _on_vote(self, message: Vote, now: float) -> None:
        key, owner, term = message.key, owner_of(message), message.term
        refusal = self._refusal(message)
        if refusal:
            self._answer_vote(message, Verdict(False, refusal, self._acceptor.term(key)))
            return
        ticket = message.ticket
        if ticket is not None and self.names(ticket, message.header.sender, owner.incarnation):
            # It came before the release itself did.
            self.release(ticket, now)
        verdict = self._acceptor.vote(key, owner, term, now, established=message.established)
        if not verdict.granted:
            self._answer_vote(message, verdict)
            return
        if message.ttl:
            number = message.header.number
            verdict = self._acceptor.lease(key, owner, term, message.ttl, number, now)
        self._storage.keep_term(
            term,
            lambda now: self._answer_vote(message, verdict),
            lambda now: self._answer_vote(message, Verdict(False, NOT_STORED, term)),
            now,
        )

    def _answer_vote(self, message: Vote, verdict: Verdict) -> None:
        self._mail.send(
            VoteAnswer(
                self._mail.reply_header(message.header),
                message.key,
                verdict.granted,
                verdict.reason,
                verdict.term,
                verdict.remaining,
                verdict.promised,
            )
        )

    def _on_lease(self, message: Lease, now: float) -> None:
        key, number = message.key, message.header.number
        refusal = self._refusal(message)
        if refusal:
            verdict = Verdict(False, refusal, self._acceptor.term(key))
        else:
            owner = owner_of(message)
            verdict = self._acceptor.lease(key, owner, message.term, message.ttl, number, now)
        self._mail.send(
            LeaseAnswer(
                self._mail.reply_header(message.header),
                key,
                verdict.granted,
                verdict.reason,
                verdict.term,
                verdict.promised,
            )
        )

    def _on_heartbeat(self, message: Heartbeat, now: float) -> None:
        header = message.header
        keys = self._key_sets.get(header.sender)
        if keys is None or keys.incarnation != header.incarnation:
            keys = self._key_sets[header.sender] = KeySet(header.incarnation, self._keys_limit)
        if keys.is_overtaken(header.number):
            return
        gone = keys.apply(message)
        for entry in gone or ():
            self._leaders.clear(entry.key, header.sender, entry.term)
        for entry in keys.entries.values():
            self._leaders.note(header.sender, entry, now)
        refusal = self._refusal(message)
        refused: list[str] = []
        if not refusal:
            lease, number = self._acceptor.lease, header.number
            for key, entry in keys.entries.items():
                owner = Owner(header.sender, header.incarnation, entry.uid)
                if not lease(key, owner, entry.term, entry.ttl, number, now).granted:
                    refused.append(key)
        self._mail.send(
            HeartbeatAnswer(
                self._mail.reply_header(header),
                0 if gone is None else keys.version,
                self._timing.lease_ceiling,
                tuple(refused),
                not refusal,
                self._storage.durable,
                *self._queues.news_for(message, now),
            )
        )

    def _on_recovery(self, message: Recovery, now: float) -> None:
        header, ready = message.header, self._is_ready()
        peer = self._mail.peer(header.sender)
        if not ready:
            peer.run_before = header.incarnation
        self._mail.send(
            RecoveryAnswer(
                self._mail.reply_header(header),
                ready,
                self._acceptor.floor,
                self._acceptor.terms(),
                peer.run_before == header.incarnation,
            )
        )

    def release(self, ticket: Ticket, now: float) -> bool:
        """A term has ended by its leader's will; whether that changed anything here."""
        self._leaders.clear(ticket.key, ticket.node, ticket.term)
        return self._acceptor.release(ticket, now)

    def names(self, ticket: Ticket, node: str, incarnation: str) -> bool:
        """Whether the ticket names this run of this node, under the present configuration."""
        return (ticket.successor, ticket.successor_incarnation, ticket.configuration) == (
            node,
            incarnation,
            self._mail.quorum.configuration,
        )
