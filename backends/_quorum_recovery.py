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

With `bootstrap` a node that starts together with all others need not be silent.
It asks at once, and where each other member says that its run took no part before
it heard from ours, no leader is left that counts on a promise of our earlier run:

- An earlier run of any node of this cluster is over: its address is another run's
  now. This is what whoever says `bootstrap` answers for, and all that is taken on
  trust. It is not so where a node was taken off a list by hand and still runs, or
  where a run whose address was moved goes on elsewhere: silence outlasts those.
- The present run of a member began to campaign after ours began, and so after our
  earlier run, and its promises, had ended.

The terms that our earlier run voted for were campaigned for before that, too. We
vote when each vote that still counts was asked for with a wall clock that is past
those of then, so the terms go on rising. Where anybody is missing, took part before,
or acts under another configuration, the three steps above are gone through: only
time can tell, then.
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
        bootstrap: no earlier run of any member is left where another one answers.
    """

    def __init__(
        self,
        mail: Mail,
        acceptor: Acceptor,
        timing: Timing,
        stored: StoredState | None,
        now: float,
        *,
        bootstrap: bool,
    ) -> None:
        self._mail = mail
        self._acceptor = acceptor
        self._timing = timing
        self._stored_term = stored.highest_term if stored is not None else None
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
        self._bootstrap = bootstrap
        self._began_after_us: set[str] = set()
        self._begin_at = math.inf
        self.next_at = now if bootstrap else self.silent_until

    def tick(self, now: float) -> bool:
        """Ask again; whether the node knows enough now."""
        if now < self.next_at:
            return False
        if self._has_enough(now):
            # What is left to do may have to wait for a disk, and to be tried again.
            self.next_at = now + self._timing.heartbeat
            return True
        number = self._mail.next_number()
        if now >= self.silent_until:
            # An answer to a question from before the silence's end says nothing of votes since.
            self._first_number = min(self._first_number, number)
        for receiver in self._mail.receivers():
            if receiver != self._mail.id:
                self._mail.send(Recovery(self._mail.header(receiver, number)))
        self.next_at = now + self._timing.heartbeat
        for until in (self.silent_until, self._forgetting_until, self._begin_at):
            if now < until:
                self.next_at = min(self.next_at, until)
        self._look_whether_all_begin(now)
        return self._has_enough(now)

    def answered(self, answer: RecoveryAnswer, now: float) -> bool:
        """Count one answer; whether the node knows enough now."""
        self._mail.peer(answer.header.sender).run_before = answer.header.incarnation
        if answer.after_you:
            self._began_after_us.add(answer.header.sender)
            self._look_whether_all_begin(now)
            if self._has_enough(now):
                return True
        if answer.header.number < self._first_number:
            return False
        self._answers[answer.header.sender] = answer
        self._answered_at[answer.header.sender] = now
        return self._has_enough(now)

    def another_configuration(self) -> None:
        """Somebody runs under another one: an earlier run, perhaps. Only time can tell, then."""
        self._bootstrap = False
        self._begin_at = math.inf

    def finish(self, now: float) -> None:
        """Take over what the answers say, and, where all may have forgotten, what was stored."""
        # Not weighed against the wall clock: these terms were voted for, and
        # without them this node would vote for smaller ones.
        for answer in self._answers.values():
            self._acceptor.merge(answer.floor, answer.terms, now)
        if not self._memory_suffices() and self._stored_term is not None:
            self._acceptor.raise_all(self._stored_term)

    def _has_enough(self, now: float) -> bool:
        if now >= self._begin_at:
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

    def _look_whether_all_begin(self, now: float) -> None:
        mail = self._mail
        others = {*mail.quorum.everyone} - {mail.id}
        if not self._bootstrap or self._begin_at < math.inf or mail.id not in mail.quorum.everyone:
            return
        if others <= self._began_after_us:
            skew, window = self._timing.wall_clock_skew, self._timing.vote_window
            # With one wall clock for all, a vote that is asked for from now on is late enough.
            self._begin_at = now + (self._timing.outlasting(skew + window) if skew else 0.0)
            self.next_at = min(self.next_at, self._begin_at)

    def _memory_suffices(self) -> bool:
        with_memory = [node for node, answer in self._answers.items() if answer.ready]
        return self._mail.quorum.meets_every_quorum(with_memory)
