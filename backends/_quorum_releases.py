"""Terms that this node gave up: told to all until enough know, or nobody's promise can last."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ._quorum_effects import Released
from ._quorum_mail import Mail
from ._quorum_messages import Release, ReleaseAnswer, Ticket
from ._quorum_timing import Timing


@dataclass(slots=True)
class _Pending:
    ticket: Ticket
    contender: str
    told: bool
    until: float
    next_at: float
    acknowledged: set[str] = field(default_factory=set)


class Releases:
    """One per node."""

    def __init__(self, mail: Mail, timing: Timing) -> None:
        self._mail = mail
        self._timing = timing
        self._pending: dict[tuple[str, int], _Pending] = {}

    @property
    def next_at(self) -> float:
        """When to look again."""
        return min((pending.next_at for pending in self._pending.values()), default=math.inf)

    def add(
        self, ticket: Ticket, ttl: float, now: float, *, told: bool, contender: str = ""
    ) -> None:
        """Tell all members, the successor first.

        Args:
            told: whether the driver waits for `Released`.
            contender: which one of the successor's is meant.
        """
        until = now + self._timing.outlasting(ttl)
        pending = _Pending(ticket, contender, told, until, now)
        self._pending[ticket.key, ticket.term] = pending
        self._send(pending, now)

    def tick(self, now: float) -> None:
        """Repeat what was not acknowledged; stop when all promises have ended by themselves."""
        for pending in list(self._pending.values()):
            if now >= pending.until:
                self._finish(pending)
                del self._pending[pending.ticket.key, pending.ticket.term]
            elif now >= pending.next_at:
                self._send(pending, now)

    def answered(self, answer: ReleaseAnswer) -> None:
        """Count an acknowledgement."""
        pending = self._pending.get((answer.key, answer.term))
        if pending is None:
            return
        pending.acknowledged.add(answer.header.sender)
        if self._mail.quorum.is_quorum(pending.acknowledged):
            self._finish(pending)
        if pending.acknowledged.issuperset(self._mail.receivers()):
            del self._pending[answer.key, answer.term]

    def _send(self, pending: _Pending, now: float) -> None:
        number = self._mail.next_number()
        receivers = self._mail.receivers()
        receivers.sort(key=lambda receiver: receiver != pending.ticket.successor)
        for receiver in receivers:
            if receiver not in pending.acknowledged:
                header = self._mail.header(receiver, number)
                self._mail.send(Release(header, pending.ticket, pending.contender))
        pending.next_at = min(now + self._timing.heartbeat, pending.until)

    def _finish(self, pending: _Pending) -> None:
        if pending.told:
            pending.told = False
            self._mail.emit(Released(pending.ticket.key, pending.ticket.uid))
