"""How a restarted node, which forgot its promises and votes, comes to take part again.

1. It is silent: it grants nothing and does not count itself, until each promise
   that it may have given has ended, and each vote round that may have counted
   its vote is over.
2. It asks the others for the terms that they know. Answers from nodes with
   memory, so many that every majority has one of them: a term that was won with
   our forgotten vote is among theirs.
3. Where a majority forgot (the whole cluster was restarted), it waits for as
   long as wall clocks may differ, takes the highest term of a majority that is
   there, and relies on the clock floor of the terms (`floor_term`).

A node that stored its terms need not wait for the third step: it forgot none.
"""

from __future__ import annotations

import math

from ._quorum_acceptor import Acceptor
from ._quorum_effects import StoredState
from ._quorum_mail import Mail
from ._quorum_messages import Recovery, RecoveryAnswer
from ._quorum_timing import Timing


class Recovering:
    """One restart's way back.

    Args:
        stored: what this node stored, or None.
        is_first: the cluster never ran before: there is nothing to remember.
    """

    def __init__(
        self,
        mail: Mail,
        acceptor: Acceptor,
        timing: Timing,
        stored: StoredState | None,
        now: float,
        *,
        is_first: bool,
    ) -> None:
        self._mail = mail
        self._acceptor = acceptor
        self._timing = timing
        self._stored_term = stored.highest_term if stored is not None else None
        self._is_first = is_first
        self.silent_until = now + timing.silence(stored.lease_ceiling if stored else None)
        if stored is None:
            self._forgetting_until = self.silent_until + timing.wall_clock_skew
        else:
            # The others' terms, key by key, are better than one for all keys,
            # below which no living leader would be supported: give them a moment.
            self._forgetting_until = self.silent_until + 2 * timing.heartbeat
        self._first_number = math.inf
        self._answers: dict[str, RecoveryAnswer] = {}
        self._answered_at: dict[str, float] = {}
        self.next_at = now if is_first else self.silent_until

    def tick(self, now: float) -> bool:
        """Ask again; whether the node knows enough now."""
        if now < self.next_at:
            return False
        if self._has_enough(now):
            # What is left to do may have to wait for a disk, and to be tried again.
            self.next_at = now + self._timing.heartbeat
            return True
        number = self._mail.next_number()
        # An answer to a question from before the silence's end says nothing of votes since.
        self._first_number = min(self._first_number, number)
        for receiver in self._mail.receivers():
            if receiver != self._mail.id:
                self._mail.send(Recovery(self._mail.header(receiver, number)))
        self.next_at = now + self._timing.heartbeat
        if now < self._forgetting_until:
            self.next_at = min(self.next_at, self._forgetting_until)
        return self._has_enough(now)

    def answered(self, answer: RecoveryAnswer, now: float) -> bool:
        """Count one answer; whether the node knows enough now."""
        if answer.header.number < self._first_number:
            return False
        self._answers[answer.header.sender] = answer
        self._answered_at[answer.header.sender] = now
        return self._has_enough(now)

    def finish(self, now: float) -> None:
        """Take over what the answers say, and, where all may have forgotten, what was stored."""
        # Not weighed against the wall clock: these terms were voted for, and
        # without them this node would vote for smaller ones.
        for answer in self._answers.values():
            self._acceptor.merge(answer.floor, answer.terms, now)
        if not self._memory_suffices() and self._stored_term is not None:
            self._acceptor.raise_all(self._stored_term)

    def _has_enough(self, now: float) -> bool:
        if self._is_first:
            return True
        if now < self.silent_until:
            return False
        if self._memory_suffices():
            return True
        if now < self._forgetting_until:
            return False
        if self._stored_term is not None:
            return True
        lately = now - 4 * self._timing.heartbeat
        present = {node for node, at in self._answered_at.items() if at >= lately}
        return self._mail.quorum.is_quorum({self._mail.id, *present})

    def _memory_suffices(self) -> bool:
        with_memory = [node for node, answer in self._answers.items() if answer.ready]
        return self._mail.quorum.meets_every_quorum(with_memory)
