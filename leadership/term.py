"""A term: one leader's time in office, and how its work learns that it is over."""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING, NoReturn

from .errors import LeadershipLost
from .lease import Claim
from .small_event import SmallEvent

if TYPE_CHECKING:
    from .clock import Clock
    from .election import Candidacy


# Bound once, for it is on the path of every `is_leader()`.
_this_process = os.getpid


class TermBase:
    """What the sync and the async `Term` have in common: it never blocks.

    Attributes:
        key: the election.
        id: the candidate's name, for logs.
        value: what followers were told when the term began.
        token: the fencing token; greater than that of every earlier term of
            this key. Hand it to the resource that you write to.
        elected_at: seconds on the store's clock.
    """

    __slots__ = (
        "__weakref__",
        "_claim",
        "_clock",
        "_deadline",
        "_generation",
        "_lease",
        "_now",
        "_pid",
        "_reason",
        "_standing",
        "candidacy",
        "elected_at",
        "id",
        "key",
        "over",
        "released",
        "token",
        "touched_at",
        "value",
    )

    def __init__(
        self, candidacy: Candidacy, key: str, id: str, value: str, claim: Claim, clock: Clock
    ) -> None:
        self.candidacy = candidacy
        self.key = key
        self.id = id
        self.value = value
        self.token = claim.token
        self.elected_at = clock.now()
        self.touched_at = self.elected_at
        self._claim = claim
        self._lease = claim.lease
        self._generation = claim.generation
        self._clock = clock
        self._now = clock.now
        self._pid = os.getpid()
        self._reason: str | None = None
        self._standing = True
        self._deadline = 0.0
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.released = SmallEvent()

    def is_valid(self) -> bool:
        """Whether this term still holds: the clock is compared at this very call.

        Costs less than a microsecond and no I/O. Never True again after it
        was False. A process that slept through its lease gets False at once.
        """
        # The comparison itself is the guarantee; no thread has to have run
        # in between to set a flag. A fork's child shares no lease.
        if self._standing:
            generation, until = self._lease.state
            if (
                generation == self._generation
                and self._now() < until
                and _this_process() == self._pid
            ):
                return True
            # A renewal that was confirmed in time may be stored only now, by a
            # thread that was held up: whoever was told False must not be told True.
            self._standing = False
            self.candidacy.saw_lapse(self)
        return False

    @property
    def valid_until(self) -> float:
        """Seconds on the store's clock; moves on with each renewal, fixed once the term is over."""
        return self._claim.valid_until if self._reason is None else self._deadline

    @property
    def reason(self) -> str | None:
        """Why the term is over; None while nobody has said so."""
        return self._reason

    def remaining(self) -> float:
        """Seconds until `valid_until`, never below zero."""
        return max(0.0, self.valid_until - self._clock.now())

    def is_overdue(self) -> bool:
        """Whether this term should have been renewed by now, and was not.

        Renewals are made every third of the ttl at the least, so it is when more than half
        of what the last one gave has passed. False once the term is over.
        """
        overdue = self._reason is None and self.remaining() < self._lease.span / 2
        return overdue and os.getpid() == self._pid

    def is_outlived(self) -> bool:
        """Whether the leader's code still works, though the deadline has passed."""
        # What is told at the deadline needs a moment to be heard.
        moment = self.candidacy.wish.ttl / 20
        late = self._clock.now() > self.valid_until + moment
        return late and self.candidacy.overrun and os.getpid() == self._pid

    def check(self) -> None:
        """Return if the term holds; also tells the watchdog that the work is alive.

        Raises:
            LeadershipLost: it does not.
        """
        self.touched_at = self._clock.now()
        if not self.is_valid():
            self._raise_lost()

    def _raise_lost(self) -> NoReturn:
        if os.getpid() != self._pid:
            why = "this is a forked child, and leadership stays with the parent"
        else:
            why = self._reason or "the lease was not renewed in time"
        raise LeadershipLost(
            f"term {self.token} of {self.key!r} is over: {why}; stop what only a leader may do"
        )

    def end(self, reason: str) -> None:
        """The engine's word that it is over; the first reason stands."""
        if self._reason is not None:
            return
        # Fixed before anybody is told: a renewal of the shared session must
        # not give ended work more time.
        until = self._claim.valid_until
        # A lease that has ended, or lapsed and come back, has no deadline any more.
        self._deadline = self._clock.now() if until == -math.inf else until
        self._reason = reason
        self._standing = False
        self.over.set_result(reason)

    def __repr__(self) -> str:
        state = self._reason or f"{self.remaining():.3f} s left"
        return f"<{type(self).__name__} {self.key!r} id={self.id!r} token={self.token} ({state})>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a term cannot be pickled: leadership belongs to one process; send its token"
        )
