"""A change of the member list, from its joint stage on: told to all until it may be completed."""

from __future__ import annotations

import math

from ._quorum_mail import Mail
from ._quorum_members import progress
from ._quorum_messages import MembersAnswer, MembersNotice
from ._quorum_timing import Timing


class Change:
    """One node's view of the change under way. Any member that sees enough completes it.

    Attributes:
        next_at: when to tell again.
        floor, terms: the highest terms that the members of the joint stage told.
    """

    def __init__(self, mail: Mail, timing: Timing, now: float) -> None:
        self.next_at = now
        self.floor = 0
        self.terms: dict[str, int] = {}
        self._mail = mail
        self._timing = timing
        self._joined: set[str] = set()
        self._complete_at = math.inf

    def tick(self, now: float) -> bool:
        """Tell all; whether the change may be completed."""
        if now >= self._complete_at:
            # It may have to wait for a disk, and to be tried again.
            self.next_at = now + self._timing.heartbeat
            return True
        if now >= self.next_at:
            number = self._mail.next_number()
            for receiver in self._mail.receivers():
                header = self._mail.header(receiver, number)
                self._mail.send(MembersNotice(header, self._mail.quorum.stage, 0, {}))
            self.next_at = min(now + self._timing.heartbeat, self._complete_at)
        return False

    def answered(self, answer: MembersAnswer, now: float) -> None:
        """Count a node that has come this far."""
        quorum = self._mail.quorum
        if answer.stage != quorum.stage and progress(answer.stage) <= progress(quorum.stage):
            return
        self._joined.add(answer.header.sender)
        # The floor of each is for the keys that it does not name.
        self.terms = {
            key: max(self.terms.get(key, self.floor), answer.terms.get(key, answer.floor))
            for key in {*self.terms, *answer.terms}
        }
        self.floor = max(self.floor, answer.floor)
        if self._complete_at == math.inf and quorum.is_quorum(self._joined):
            # Who led under the old list had a promise of one of these, given before
            # it came this far. It ends within this time, and is not renewed.
            wait = self._timing.outlasting(self._timing.lease_ceiling + self._timing.vote_window)
            self._complete_at = now + wait
            self.next_at = min(self.next_at, self._complete_at)
