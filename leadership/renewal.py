"""A store's session that is renewed at its pace: what all backends with sessions have in common.

Whatever goes wrong is tried again, for who stops renewing gives the lease away. Trouble
is told once per outage, and then at every tenth try.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Protocol

from .backend import Context
from .errors import ConfigurationError, SessionLost, StoreError, StoreUnavailable
from .events import LeaseRenewed, StoreRecovered, StoreTrouble, TtlGranted
from .lease import Lease
from .session import Session

ENDED = "the store ended the session"


class Holder(Protocol):
    """Whose entry hangs on the session."""

    def entry_gone(self, reason: str) -> None: ...

    def cut_off(self, error: StoreUnavailable) -> None: ...


class RenewedSession(Session):
    """One session and its lease, renewed from `begin` on until it is lost or closed.

    Args:
        ttl: seconds, as granted.

    Attributes:
        confirmed: is set by the next renewal, and when the session is over.
    """

    def __init__(self, context: Context, ttl: float) -> None:
        self.ttl = ttl
        self.lease = Lease(context.clock, context.max_clock_drift)
        self.confirmed = asyncio.Event()
        self._context = context
        self._clock = context.clock
        self._failures = 0
        self._told_cut = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def _holders(self) -> Collection[Holder]:
        """Those whose entries hang on it."""

    @abstractmethod
    async def _renew(self) -> None:
        """One renewal.

        Raises:
            SessionLost: the session is over; whatever else is raised, it is tried again.
        """

    @abstractmethod
    def _is_cut(self, failures: int) -> bool:
        """Whether the store is out of reach, after so many failures in a row."""

    @abstractmethod
    def _stop(self) -> None:
        """It is over: give up what belongs to it, beside the entries of its holders."""

    def _pause(self, *, failed: bool) -> float:
        """Seconds until the next renewal; after one that failed it is soon."""
        return min(1.0, self.ttl / 20) if failed else self.ttl / 3

    def begin(self) -> None:
        """Renew it from now on."""
        self._task = asyncio.ensure_future(self._keep())

    async def _keep(self) -> None:
        failed = False
        while self.lease.ended is None:
            await self._clock.sleep(self._pause(failed=failed))
            try:
                await self._renew()
            except SessionLost as error:
                self.lost_by(error)
            except Exception as error:
                failed = True
                self._renewal_failed(error)
            else:
                failed = False
                self._renewal_succeeded()

    def _renewal_failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures % 10 == 1:
            now, pause = self._clock.now(), self._pause(failed=True)
            self._context.emit(StoreTrouble("", now, str(error), self._failures, pause))
        # Once per outage to who waits: that asks for itself from then on.
        if self._is_cut(self._failures) and not self._told_cut:
            self._told_cut = True
            for holder in list(self._holders()):
                holder.cut_off(StoreUnavailable(f"the session is not renewed: {error}"))

    def _renewal_succeeded(self) -> None:
        if self._failures:
            self._context.emit(StoreRecovered("", self._clock.now(), self._failures))
            self._failures = 0
            self._told_cut = False

    def _was_confirmed(self, sent_at: float) -> None:
        """The lease was: tell it, and wake those who wait for it."""
        self.confirmed.set()
        self.confirmed = asyncio.Event()
        now = self._clock.now()
        self._context.emit(LeaseRenewed("", now, now - sent_at, self.lease.valid_until))

    def lost_by(self, error: SessionLost) -> None:
        """The store says that it is over."""
        self.lose(f"{ENDED}: {error}")

    def lose(self, reason: str) -> None:
        """The session is over, and with it every entry."""
        self.lease.end(reason)
        self.confirmed.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._stop()
        for holder in list(self._holders()):
            holder.entry_gone(reason)

    async def _stopped(self) -> None:
        """Wait until it is renewed no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def until_confirmed(self, woken: asyncio.Future[StoreError | None]) -> None:
        """The lease may have lapsed, and only the next renewal makes a leader: wait for that.

        Args:
            woken: there is something else to look at, or an error to raise.
        """
        confirmed: asyncio.Future[Any] = asyncio.ensure_future(self.confirmed.wait())
        try:
            await asyncio.wait({confirmed, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            confirmed.cancel()
        if woken.done() and (error := woken.result()):
            raise error


class GrantedTtls:
    """What a store grants instead of the ttl that was asked for: told once, or refused.

    Args:
        store: how its user calls it.
    """

    def __init__(self, store: str, context: Context) -> None:
        self._store = store
        self._context = context
        self._told: set[tuple[float, float]] = set()

    def check(self, asked: float, granted: float) -> None:
        """For a new session.

        Raises:
            ConfigurationError: they differ, and the user asked to be strict.
        """
        if self._differ(asked, granted) and self._context.strict_ttl:
            raise ConfigurationError(
                f"{self._store} grants a ttl of {granted:g} s instead of {asked:g} s: "
                f"ask for {granted:g}, or leave strict_ttl out"
            )
        self.tell(asked, granted)

    def tell(self, asked: float, granted: float) -> None:
        """For a session that there is: it goes on with what is granted."""
        if self._differ(asked, granted) and (asked, granted) not in self._told:
            self._told.add((asked, granted))
            self._context.emit(TtlGranted("", self._context.clock.now(), asked, granted))

    def _differ(self, asked: float, granted: float) -> bool:
        return abs(granted - asked) > 0.001
