"""A contender whose entry queues at the store: what etcd's and ZooKeeper's have in common.

It waits with one entry on one session. What watches and the session tell of it wakes who
waits for the lead, or reaches who has it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from ..backend import Contender
from ..errors import SessionLost, StoreError, StoreUnavailable
from ..lease import Claim
from ..renewal import RenewedSession
from ..session import Slot

DELETED = "the entry was deleted at the store"

S = TypeVar("S", bound=RenewedSession)


class EntryContender(Contender, Generic[S]):
    """One candidate's entry in one election.

    Args:
        slot: where its session is.
    """

    def __init__(self, key: str, value: bytes, slot: Slot[S]) -> None:
        self.key = key
        self._value = value
        self._slot = slot
        self._session: S | None = None
        # Whether a removal was asked for, and not confirmed: it may come late.
        self._leaving = False
        self._wake: asyncio.Future[StoreError | None] | None = None
        self._lost: Callable[[str], None] | None = None
        self._told: str | None = None
        self._closed = False

    @abstractmethod
    async def _campaign_on(self, session: S) -> Claim | None:
        """Wait for the lead with one entry; None when that was lost: a new one is needed."""

    @abstractmethod
    def _forget(self) -> None:
        """No entry of ours is known to stand any more."""

    async def campaign(self, lost: Callable[[str], None]) -> Claim:
        if self._leaving:
            # An entry that a delayed removal may still take must not lead.
            await self.leave()
        self._lost = None
        while True:
            session = await self._slot.session()
            try:
                won = await self._campaign_on(session)
            except SessionLost as error:
                session.lost_by(error)
                self._forget()
                continue
            if won is not None:
                self._lost = lost
                return won

    def _listen(self) -> asyncio.Future[StoreError | None]:
        """From here on, what is told wakes who awaits this: to look, or to raise an error."""
        self._wake = asyncio.get_running_loop().create_future()
        return self._wake

    def cut_off(self, error: StoreUnavailable) -> None:
        """The session is out of the store's reach: whoever waits decides what to do about it."""
        self._look_again(error)

    def _look_again(self, error: StoreError | None = None) -> None:
        """Wake who waits, to look, or to raise an error; its entry keeps its place."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(error)

    def entry_gone(self, reason: str) -> None:
        """The store says that our entry is over; told once."""
        if self._told is not None:
            return
        self._told = reason
        self._look_again()
        if self._lost is not None:
            lost, self._lost = self._lost, None
            lost(reason)


def raise_if(error: StoreError | None) -> None:
    """What who waited was woken with."""
    if error is not None:
        raise error
