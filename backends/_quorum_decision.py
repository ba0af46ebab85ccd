"""Which member list comes next: one answer per epoch, whoever asks, however many at a time.

Two changes that begin at different nodes must not both get under way. So the
old members first decide between them, by the single-decree synod of Paxos:
a proposal that a majority accepted is the only one that can be chosen ever
after, and a node enters the joint stage only for a proposal that was chosen.
What is promised and accepted is stored before it is said.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from ._quorum_effects import Proposal
from ._quorum_mail import Mail
from ._quorum_messages import (
    Answer,
    MembersAccept,
    MembersAccepted,
    MembersPrepare,
    MembersPromise,
)
from ._quorum_storage import Storage
from ._quorum_timing import Timing

_DOUBLINGS = 5
"""After so many hindered ballots the pause between two grows no further."""

Choose = Callable[[tuple[str, ...], float], None]
"""Called with the member list that was chosen, and the time."""


class Decision:
    """A node's part in it, as acceptor and, when its operator wishes a change, as proposer.

    Attributes:
        next_at: when to try again.
    """

    def __init__(
        self,
        mail: Mail,
        timing: Timing,
        storage: Storage,
        chance: random.Random,
        chosen: Choose,
    ) -> None:
        self.next_at = math.inf
        self._mail = mail
        self._timing = timing
        self._storage = storage
        self._random = chance
        self._chosen = chosen
        self._wish: tuple[str, ...] = ()
        self._number = 0
        self._ballot = (0, "")
        self._highest = 0
        # Whether an answer of late was a refusal, or to an earlier ballot; and in how many it was.
        self._hindered = False
        self._hindrances = 0
        self._first_number = 0
        self._promises: dict[str, MembersPromise] = {}
        self._accepted: set[str] = set()
        self._value: tuple[str, ...] = ()

    def propose(self, members: tuple[str, ...], now: float) -> None:
        """Try until this list, or another one, is chosen."""
        self._wish = members
        self._prepare(now)

    def give_up(self) -> None:
        """Try no more."""
        self.next_at = math.inf

    def tick(self, now: float) -> None:
        """Try again, in a higher ballot."""
        if now >= self.next_at:
            self._prepare(now)

    def _prepare(self, now: float) -> None:
        self._highest = max(self._highest, self._storage.proposal.promised[0]) + 1
        self._ballot = (self._highest, self._mail.id)
        self._promises.clear()
        self._accepted.clear()
        self._value = ()
        self._number = self._first_number = self._mail.next_number()
        for receiver in self._mail.receivers():
            header = self._mail.header(receiver, self._number)
            self._mail.send(MembersPrepare(header, self._ballot))
        # A ballot is two writes of each member: with a pause that does not grow, none would ever
        # end where disks are slower than it. Silence is a matter of the network, and no reason.
        if self._hindered:
            self._hindrances += 1
            self._hindered = False
        pause = self._timing.heartbeat * 2 ** min(self._hindrances, _DOUBLINGS)
        self.next_at = now + pause * self._random.uniform(2, 4)

    # --- the acceptor ---

    def on_prepare(self, message: MembersPrepare, now: float) -> None:
        """Promise to accept nothing in lower ballots, and tell what was accepted."""
        latest = self._storage.latest_proposal
        granted = message.ballot > latest.promised

        def answer(now: float) -> None:
            self._mail.send(
                MembersPromise(
                    self._mail.reply_header(message.header),
                    granted,
                    max(message.ballot, latest.promised),
                    latest.accepted_in,
                    latest.joining,
                )
            )

        if granted:
            promise = Proposal(message.ballot, latest.accepted_in, latest.joining)
            self._storage.keep_proposal(promise, answer)
        else:
            answer(now)

    def on_accept(self, message: MembersAccept, now: float) -> None:
        """Accept, unless a higher ballot was promised something."""
        granted = message.ballot >= self._storage.latest_proposal.promised

        def answer(now: float) -> None:
            self._mail.send(MembersAccepted(self._mail.reply_header(message.header), granted))

        if granted:
            proposal = Proposal(message.ballot, message.ballot, message.joining)
            self._storage.keep_proposal(proposal, answer)
        else:
            answer(now)

    # --- the proposer ---

    def on_promise(self, answer: MembersPromise, now: float) -> None:
        """Count a promise; with a majority, ask to accept."""
        self._highest = max(self._highest, answer.promised[0])
        self._note_hindrance(answer, answer.granted)
        if answer.header.number != self._number or self._value or not answer.granted:
            return
        self._promises[answer.header.sender] = answer
        if not self._mail.quorum.is_quorum(self._promises):
            return
        # What may have been chosen already is the only thing that may be chosen.
        latest = max(self._promises.values(), key=lambda promise: promise.accepted_in)
        self._value = latest.joining or self._wish
        self._number = self._mail.next_number()
        for receiver in self._mail.receivers():
            header = self._mail.header(receiver, self._number)
            self._mail.send(MembersAccept(header, self._ballot, self._value))

    def on_accepted(self, answer: MembersAccepted, now: float) -> None:
        """Count an acceptance; with a majority, the change begins."""
        self._note_hindrance(answer, answer.granted)
        if answer.header.number != self._number or not self._value or not answer.granted:
            return
        self._accepted.add(answer.header.sender)
        if self._mail.quorum.is_quorum(self._accepted):
            self._chosen(self._value, now)

    def _note_hindrance(self, answer: Answer, granted: bool) -> None:
        if not granted or answer.header.number < self._first_number:
            self._hindered = True
