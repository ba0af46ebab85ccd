"""What must be on disk before a node acts on it; without a disk, acted on at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from ._quorum_effects import Persist, Proposal, StoredState
from ._quorum_mail import Mail
from ._quorum_members import progress
from ._quorum_messages import Members

Act = Callable[[float], None]
"""Called with the time."""


@dataclass(frozen=True, slots=True)
class _Write:
    number: int
    state: StoredState
    then: Act
    otherwise: Act


class Storage:
    """Orders acts after the writes that they need.

    Args:
        mail: where `Persist` goes.
        state: what is stored, or would be.
        durable: whether there is a disk.
    """

    def __init__(self, mail: Mail, state: StoredState, *, durable: bool) -> None:
        self.durable = durable
        self._mail = mail
        self._stored = state
        self._latest = state
        self._number = 0
        self._writes: deque[_Write] = deque()

    def keep_term(self, term: int, then: Act, otherwise: Act, now: float) -> None:
        """Act once no restart can make this node forget that it voted in `term`."""
        if not self.durable or term <= self._stored.highest_term:
            then(now)
        else:
            highest = max(term, self._latest.highest_term)
            self._write(replace(self._latest, highest_term=highest), then, otherwise)

    def keep_stage(self, stage: Members, term: int, then: Act, now: float) -> None:
        """Act once this node will find itself in `stage` after a restart.

        Args:
            term: the highest that is carried into the stage. Of those who voted in
                it, a majority of the new members may know nothing but this.
        """
        if progress(stage) < progress(self._latest.stage):
            # A later one is on its way to the disk, which must not go back.
            return
        if not self.durable:
            then(now)
        else:
            # Proposals are for the list that follows the present one.
            proposal = self._latest.proposal if stage == self._latest.stage else Proposal()
            highest = max(term, self._latest.highest_term)
            state = replace(self._latest, highest_term=highest, stage=stage, proposal=proposal)
            self._write(state, then, lambda now: None)

    def keep_proposal(self, proposal: Proposal, then: Act) -> None:
        """Act once this node cannot forget what it promised or accepted."""
        self._write(replace(self._latest, proposal=proposal), then, lambda now: None)

    @property
    def proposal(self) -> Proposal:
        """What is stored."""
        return self._stored.proposal

    @property
    def latest_stage(self) -> Members:
        """What is stored, or about to be, also where that failed and a later write did not."""
        return self._latest.stage

    @property
    def latest_proposal(self) -> Proposal:
        """What is stored, or about to be."""
        return self._latest.proposal

    def keep_ceiling(self, lease_ceiling: float, then: Act, otherwise: Act, now: float) -> None:
        """Act once a restarted node will stay silent for promises of this length."""
        if not self.durable:
            then(now)
        else:
            self._write(replace(self._latest, lease_ceiling=lease_ceiling), then, otherwise)

    def persisted(self, number: int, succeeded: bool, now: float) -> None:
        """The driver's answer to `Persist`."""
        done = []
        while self._writes and self._writes[0].number <= number:
            done.append(self._writes.popleft())
        if not done:
            return
        if succeeded:
            self._stored = done[-1].state
        elif not self._writes:
            self._latest = self._stored
        for write in done:
            (write.then if succeeded else write.otherwise)(now)

    def _write(self, state: StoredState, then: Act, otherwise: Act) -> None:
        self._number += 1
        self._latest = state
        self._writes.append(_Write(self._number, state, then, otherwise))
        self._mail.emit(Persist(self._number, state))
