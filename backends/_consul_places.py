"""The places of those who wait for a key on Consul: who is next, and who was just alive.

A place stands beside the election's key, held by a session whose end removes
it. A token that has no rights there does without: its owner then tries for the
key as other clients do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ..backend import Context
from ..errors import AccessDenied, SessionLost, StoreError
from ._consul_agents import Agents, Refused
from ._consul_requests import (
    ConsulEntry,
    Waiting,
    deleting,
    locking,
    places_of,
    reading_tree,
    unchanged,
)
from ._consul_session import ConsulSession
from ._consul_watch import AFTER_THE_NEWS, Target, Watches


@dataclass(frozen=True, slots=True)
class Place:
    """One who waits: where, since which index, refreshed at which, and what it needs to lead."""

    name: str
    since: int
    refreshed_at: int
    waiting: Waiting

    @property
    def rank(self) -> tuple[int, str]:
        """The lowest is next."""
        return self.since, self.name


def places_in(entries: Iterable[ConsulEntry]) -> list[Place]:
    """The places among these entries, who waits longest first; without those of the dead."""
    places = []
    for entry in entries:
        if entry.session is None:
            continue
        # Anybody may have written it.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            waiting = msgspec.json.decode(entry.data, type=Waiting)
            places.append(Place(entry.key, entry.create_index, entry.modify_index, waiting))
    return sorted(places, key=lambda place: place.rank)


class Places:
    """All places that one store takes and sees."""

    def __init__(self, agents: Agents, watches: Watches, context: Context) -> None:
        self._agents = agents
        self._watches = watches
        self._clock = context.clock
        # Keys beside which the token does not let us keep a place.
        self._denied: set[str] = set()

    async def waiters(self, key: str) -> list[Place]:
        """Who waits for `key`, the longest first; nobody where that is not to be known."""
        if key in self._denied:
            return []
        try:
            found = await self._watches.read(Target(places_of(key), tree=True))
        except AccessDenied:
            self._denied.add(key)
            return []
        return places_in(found.entries)

    async def take(
        self, session: ConsulSession, key: str, value: bytes
    ) -> tuple[Place, list[Place]] | None:
        """Wait in rank for `key`: our place, and all there are; None where there are none."""
        if key in self._denied:
            return None
        name = places_of(key) + session.id
        holding = ""
        try:
            holding = await session.waiting()
            done = await self._agents.transact(
                _holding(name, holding, Waiting(session.id, value)),
                reading_tree(places_of(key)),
                repeatable=False,
            )
        except AccessDenied:
            self._denied.add(key)
            return None
        except SessionLost:
            session.forget_waiting(holding)
            return None
        if isinstance(done, Refused):
            return None
        places = places_in(done[1:])
        own = next((place for place in places if place.name == name), None)
        return None if own is None else (own, places)

    async def refresh(self, session: ConsulSession, place: Place) -> Place | None:
        """Show that we are alive, to who might hand over; None when the place is lost."""
        waiting = msgspec.structs.replace(place.waiting, refreshed=place.waiting.refreshed + 1)
        holding = await session.waiting()
        try:
            done = await self._agents.transact(
                unchanged(place.name, place.refreshed_at),
                _holding(place.name, holding, waiting),
            )
        except SessionLost:
            session.forget_waiting(holding)
            return None
        if isinstance(done, Refused):
            return None
        return Place(place.name, place.since, done[-1].modify_index, waiting)

    async def remove(self, key: str, session: ConsulSession) -> None:
        """Give up the session's place, if it has one."""
        if key not in self._denied:
            await self._agents.transact(deleting(places_of(key) + session.id))


def _holding(name: str, session: str, waiting: Waiting) -> dict[str, object]:
    return locking(name, session, msgspec.json.encode(waiting), flags=0)


class Attendance:
    """Who waits for one key, as its leader sees it: a waiter is handed the key only while

    it has just shown that it is alive. Of a place that is there at the first sight no more is
    known than whether it was refreshed after the leader's own entry was written.
    """

    def __init__(self, watches: Watches, key: str, context: Context) -> None:
        self._watches = watches
        self._target = Target(places_of(key), tree=True)
        self._clock = context.clock
        self._seen: dict[str, tuple[Place, float]] = {}

    async def watch(self, entered: int, entered_at: float) -> None:
        """Take notice until cancelled, or until the token turns out to have no rights there.

        Args:
            entered: the index at which the leader's own entry was written.
            entered_at: seconds on the clock; not after that was done.
        """
        self._seen = {}
        await self._clock.sleep(AFTER_THE_NEWS)
        while True:
            self._seen = {}
            with contextlib.suppress(StoreError):
                try:
                    await self._follow(entered, entered_at)
                except AccessDenied:
                    return
            await self._clock.sleep(1.0)

    async def _follow(self, entered: int, entered_at: float) -> None:
        first = True
        async with contextlib.aclosing(self._watches.states(self._target)) as states:
            async for snapshot in states:
                now = self._clock.now()
                before, self._seen = self._seen, {}
                for place in places_in(snapshot.entries):
                    former = before.get(place.name)
                    same = former is not None and former[0] == place
                    at = now
                    if first:
                        at = entered_at if place.refreshed_at > entered else -math.inf
                    self._seen[place.name] = former if same and former else (place, at)
                first = False

    def successor(self, within: float) -> Place | None:
        """Who waits longest, if it was seen to be alive in the last `within` seconds."""
        if not self._seen:
            return None
        place, at = min(self._seen.values(), key=lambda each: each[0].rank)
        return place if self._clock.now() - at <= within else None
