"""Sessions shared by all candidates and locks of one store, kept apart where they must be.

Renewals must not grow with the number of elections, so every contender with
the same ttl shares one session; but two contenders for *one key* need two
sessions, because a store takes a second entry by the same session for the
first one. So the k-th contender for a key uses the k-th session of its ttl.
A session ends with its last user, never with one that merely resigns.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import HandleClosed
from .lease import Lease


class Session(ABC):
    """One lease or session at the server, kept alive by its own task until closed.

    One whose lease has ended has stopped all that by itself: it may be closed
    or just dropped.
    """

    lease: Lease

    @abstractmethod
    async def close(self) -> None:
        """Stop renewing and end it at the server, bounded in time. Does not raise."""


S = TypeVar("S", bound=Session)


class Slot(Generic[S]):
    """One place in the pool: an open session, or the means to open one."""

    def __init__(self, open_session: Callable[[], asyncio.Future[S]]) -> None:
        self._open = open_session
        self._opening: asyncio.Future[S] | None = None
        self._session: S | None = None
        self._closed = False
        self.users: set[str | None] = set()

    async def session(self) -> S:
        """The open session; a lost one is replaced by a new one, for all its users at once.

        Raises:
            StoreError: as the opening does.
            HandleClosed: the slot was given back by its last user, or the pool closed.
        """
        if self._closed:
            raise HandleClosed("the store's sessions are closed: make a new store")
        if self._session is not None and self._session.lease.ended is None:
            return self._session
        if self._opening is None:
            self._opening = self._open()
            self._opening.add_done_callback(self._opened)
        # One user's cancellation must not take the session from the others.
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Future[S]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._session = opening.result()

    async def close(self) -> None:
        # From here on nobody would end a session that is opened.
        self._closed = True
        opening = self._opening
        if opening is not None:
            # Let it finish: a request under way may make a session at the
            # server, which only its answer lets us end. It is bounded in time.
            await asyncio.wait([opening])
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class SessionPool(Generic[S]):
    """All sessions of one store.

    Args:
        open_session: opens one with the given ttl (seconds), bounded in time.
    """

    def __init__(self, open_session: Callable[[float], asyncio.Future[S]]) -> None:
        self._open_session = open_session
        self._slots: dict[tuple[float, bool], list[Slot[S]]] = {}

    def reserve(self, key: str, ttl: float, own: bool = False, guarded: bool = False) -> Slot[S]:
        """A slot in which no other contender for `key` is; no I/O yet.

        Args:
            own: a slot that is shared with nobody.
            guarded: a guardian ends its session when this process is dead; shared with
                none that it may not end so.
        """
        slots = self._slots.setdefault((ttl, guarded), [])
        for slot in slots:
            if None not in slot.users and key not in slot.users and not own:
                break
        else:
            slot = Slot(lambda: self._open_session(ttl))
            slots.append(slot)
        slot.users.add(None if own else key)
        return slot

    async def give_back(self, slot: Slot[S], key: str) -> None:
        """The contender for `key` is done; the session is ended with its last user."""
        slot.users.discard(None if None in slot.users else key)
        if not slot.users:
            self._forget(slot)
            await slot.close()

    async def close(self) -> None:
        """End all sessions."""
        slots = [slot for group in self._slots.values() for slot in group]
        self._slots.clear()
        await asyncio.gather(*(slot.close() for slot in slots))

    def _forget(self, slot: Slot[S]) -> None:
        for kind, group in list(self._slots.items()):
            if slot in group:
                group.remove(slot)
                if not group:
                    del self._slots[kind]
