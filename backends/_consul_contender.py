"""One contender on Consul: the key that it holds or waits for, and its place among the waiters."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..backend import Contender, ReleasePlan
from ..errors import AccessDenied, NotLeader, SessionLost, StoreError, StoreUnavailable
from ..lease import Claim, claim
from ..renewal import ENDED
from ..session import Slot
from ._consul_agents import Refused
from ._consul_places import Attendance, Place
from ._consul_release import release
from ._consul_requests import (
    LOCK_FLAGS,
    ConsulEntry,
    Operation,
    deleting,
    locking,
    making_anew,
    places_of,
    unchanged,
)
from ._consul_session import ConsulSession
from ._consul_watch import AFTER_THE_NEWS, Feed, Snapshot, Target

if TYPE_CHECKING:
    from ._consul_election import Election

DELETED = "the entry was deleted at the store"
REPLACED = "another holds the key at the store"

# Seconds by which each next in rank waits longer for those before it to try, up to a part of its
# ttl: whoever has gone since the ranks were read is waited for as well. Those further back spread
# over as long again.
_STEP = 0.2
_LONGEST_STEPS = 1 / 4

# Seconds, from when one asks for the key, that the others of its store leave it: where there are
# many it may need longer than a step. One that is never answered holds up nobody for longer.
_TRY = 0.4

# Seconds after which the next in rank tries again what a lock-delay, whose end is not told,
# has refused. Those behind it are refused as well: they leave it more time each time.
_LOCK_DELAYED = 0.5


class ConsulContender(Contender):
    """One candidate's part in one election."""

    def __init__(
        self,
        election: Election,
        key: str,
        value: bytes,
        ttl: float,
        own_session: bool,
        guarded: bool,
    ) -> None:
        self._election = election
        self._clock = election.context.clock
        self.key = key
        self._target = Target(key)
        self._value = value
        self._slot: Slot[ConsulSession] = election.sessions.reserve(key, ttl, own_session, guarded)
        self._session: ConsulSession | None = None
        # Our key as the store had it last; None while we know of none.
        self._held: ConsulEntry | None = None
        # Whether it was handed to us: then we do not hand it on.
        self._handed = False
        # Before our write that took it; it is not known when it was handed to us.
        self._taken_at = -math.inf
        self._place: Place | None = None
        # The sessions of those who wait before us, as far as we know.
        self._ahead: list[str] = []
        # Whether those have had their time since the key became free.
        self._passed = False
        # Whether a write may have made an entry that we have not seen.
        self._unsure = False
        # Whether a removal was asked for, and not confirmed: it may come late.
        self._leaving = False
        self._yield_until = -math.inf
        # How often a lock-delay has refused us, and until when we try no more.
        self._delays = 0
        self._delayed_until = -math.inf
        self._feed: Feed | None = None
        self._attendance = Attendance(election.watches, key, election.context)
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: Callable[[str], None] | None = None
        self._told: str | None = None
        self._closed = False

    # --- to win ---

    async def campaign(self, lost: Callable[[str], None]) -> Claim:
        # The caller may not have taken an earlier claim, as one that came too late.
        await self._stop_tasks()
        self._lost = None
        if self._leaving:
            # A key that a delayed removal may still take must not lead.
            await self.leave()
        while True:
            session = await self._slot.session()
            if session is not self._session:
                # What hung on the old session went with it, and so does what may still
                # be under way: an ended session acquires nothing.
                self._forget()
                self._unsure = False
                self._session = session
            session.holders.add(self)
            if session.end_sweep(self.key):
                self._unsure = True
            try:
                won = await self._campaign_on(session)
            except SessionLost as error:
                session.lost_by(error)
                continue
            if won is not None:
                self._lost = lost
                # It was of an earlier term: nothing is awaited between the look that found
                # the lease valid and this line.
                self._told = None
                self._tasks = [
                    asyncio.ensure_future(self._guard(session, won)),
                    asyncio.ensure_future(self._attendance.watch(won.modify_index, self._taken_at)),
                ]
                return claim(won.token, session.lease)

    async def _campaign_on(self, session: ConsulSession) -> ConsulEntry | None:
        """Wait for the lead on one session; None when that ended: a new one is needed."""
        self._told = None
        watches = self._election.watches
        seen = await watches.read(self._target)
        async with watches.following(self._target, seen) as feed:
            self._feed = feed
            try:
                free_since = self._clock.now()
                while session.lease.ended is None:
                    if self.on_answer is not None:
                        self.on_answer()
                    entry = seen.entry
                    if entry is not None and entry.flags != LOCK_FLAGS:
                        raise StoreError(
                            f"{self.key!r} is there and is no lock (its flags are {entry.flags}): "
                            "take another key for the election, or remove this one"
                        )
                    if entry is not None and entry.session == session.id:
                        won = await self._prove(session, feed)
                        if won is not None:
                            return won
                        seen = await watches.read_for(feed)
                        continue
                    if entry is not None and entry.session is not None:
                        self._held = None
                        # Whoever waits now has seen another's term.
                        self._yield_until = self._delayed_until = -math.inf
                        self._delays = 0
                        await self._wait_behind(session, entry.session)
                        free_since = math.inf
                    else:
                        free_since = min(free_since, self._clock.now())
                        turn = await self._turn(session, free_since)
                        if turn <= self._clock.now() and (self._passed or not self._ahead):
                            won = await self._take(session, entry)
                            if won is not None and session.lease.is_valid():
                                return won
                            # Lost the race, or the session may have lapsed: read what is true.
                            seen = await watches.read_for(feed)
                            continue
                        seen = await self._next(session, feed, seen, turn)
                        continue
                    seen = await self._next(session, feed, seen, math.inf)
            finally:
                self._feed = None
        return None

    async def _prove(self, session: ConsulSession, feed: Feed) -> ConsulEntry | None:
        """The key seems to be ours, by a hand-over or an earlier try: None when it is not."""
        while session.lease.ended is None:
            entry = await self._election.read(self.key)
            if entry is None or entry.session != session.id or entry.flags != LOCK_FLAGS:
                return None
            self._handed = self._held is None and not self._unsure
            self._held, self._place, self._taken_at = entry, None, -math.inf
            self._ahead = []
            if session.lease.is_valid():
                return entry
            await self._until_confirmed(session, feed)
        return None

    async def _until_confirmed(self, session: ConsulSession, feed: Feed) -> None:
        """The session may have lapsed: only its next renewal makes us leader."""
        waits = [
            asyncio.ensure_future(session.confirmed.wait()),
            asyncio.ensure_future(feed.some()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        feed.latest()

    async def _turn(self, session: ConsulSession, free_since: float) -> float:
        """When to try to take the free key: those who waited longer go first."""
        if self._place is None:
            if self._clock.now() < self._yield_until:
                return self._yield_until
            waiters = await self._election.places.waiters(self.key)
            if any(place.waiting.session != session.id for place in waiters):
                await self._enter(session)
        tried = self._election.trying.get(self.key, -math.inf)
        return max(free_since + self._steps(session), self._delayed_until, tried)

    def _steps(self, session: ConsulSession) -> float:
        """Seconds that those before us are left, since the key became free."""
        if self._passed:
            return 0.0
        steps, longest = _STEP * len(self._ahead), _LONGEST_STEPS * session.ttl
        if steps <= longest:
            return steps
        return self._election.context.random.uniform(longest, 2 * longest)

    async def _wait_behind(self, session: ConsulSession, holder: str) -> None:
        self._passed = False
        if self._place is None:
            await self._enter(session)
        elif holder in self._ahead:
            self._ahead.remove(holder)
        elif self._ahead:
            # Somebody without a place, or some before us have left without leading.
            self._rank(await self._election.places.waiters(self.key))

    async def _enter(self, session: ConsulSession) -> None:
        """Take a place among those who wait, where the token lets us."""
        self._unsure, unsure = True, self._unsure
        entered = await self._election.places.take(session, self.key, self._value)
        self._unsure = unsure
        if entered is not None:
            self._place, places = entered
            self._rank(places)

    def _rank(self, places: list[Place]) -> None:
        own = self._place
        assert own is not None
        self._ahead = [place.waiting.session for place in places if place.rank < own.rank]
        self._passed = False

    async def _take(self, session: ConsulSession, entry: ConsulEntry | None) -> ConsulEntry | None:
        """Try to acquire the free key; None when it was not to be had."""
        operations = making_anew(
            self.key, 0 if entry is None else entry.modify_index, session.id, self._value
        )
        if self._place is not None:
            operations.append(deleting(self._place.name))
        # Until it is answered it may have been done, or may still be, long after. Not
        # repeated out of sight: a try whose answer never came has to be remembered.
        self._unsure, unsure = True, self._unsure
        sent_at = self._clock.now()
        trying = self._election.trying
        until = trying[self.key] = sent_at + _TRY
        try:
            done = await self._election.agents.transact(*operations, repeatable=False)
        finally:
            if trying.get(self.key) == until:
                del trying[self.key]
        self._unsure = unsure
        if not isinstance(done, Refused):
            self._held, self._place, self._handed = done[-1], None, False
            self._ahead = []
            self._taken_at = sent_at
            self._delays = 0
            return self._held
        if done.because("lock delay"):
            await self._stand_back(session)
        elif not (done.because("check") or done.because("exist") or done.because("held")):
            raise StoreError(f"Consul does not let us acquire {self.key!r}: {done.errors[0].what}")
        return None

    async def _stand_back(self, session: ConsulSession) -> None:
        """A lock-delay refuses everybody: wait a while, the longer the more are before us."""
        if self._place is not None:
            self._rank(await self._election.places.waiters(self.key))
        self._delays += 1
        behind = _STEP * len(self._ahead) * 2 ** min(self._delays, 8)
        # By then those before us that died have lost their places.
        behind = min(behind, 2 * session.ttl)
        pause = self._election.context.random.uniform(0.5, 1) * _LOCK_DELAYED
        self._delayed_until = self._clock.now() + behind + pause

    async def _next(
        self, session: ConsulSession, feed: Feed, seen: Snapshot, until: float
    ) -> Snapshot:
        """What is there next; at `until` what is there then. Keeps our place fresh meanwhile."""
        while True:
            refresh = math.inf
            if self._place is not None and not self._ahead:
                refresh = self._clock.now() + session.ttl / 4
            if await self._clock.wait_for(feed.some(), min(until, refresh)):
                return feed.latest() or seen
            if self._clock.now() >= until:
                # Those before us had their time. Where we were slow they have led since, and
                # our try would be a write that is refused: a read tells.
                there = await self._election.watches.read_for(feed)
                self._passed = True
                return there
            if self._place is not None:
                self._place = await self._election.places.refresh(session, self._place)
                if self._place is None:
                    # By a hand-over to us, or by somebody: who leaves now has to look, too.
                    self._unsure = True
                    return await self._election.watches.read_for(feed)

    # --- while it leads ---

    async def _guard(self, session: ConsulSession, won: ConsulEntry) -> None:
        """Tell at once when the store says that our entry is over."""
        # Whoever waits for the lead is told first.
        await self._clock.sleep(AFTER_THE_NEWS)
        # So that silence is noticed, and what is true is read, within a third of the ttl.
        watches, wait = self._election.watches, session.ttl / 4
        while True:
            with contextlib.suppress(StoreError):
                async with contextlib.aclosing(watches.states(self._target, wait)) as states:
                    async for seen in states:
                        entry = seen.entry
                        if not self._is(entry, won) and seen.index < won.modify_index:
                            # From a server that has not caught up with our own write, or
                            # from one that was restored to before it: a read tells which.
                            entry = await self._election.read(self.key)
                            if self._is(entry, won):
                                # To follow from what was read now.
                                break
                        if not self._is(entry, won):
                            self._tell(_what_became(entry))
                            return
            await self._clock.sleep(min(1.0, session.ttl / 10))

    def _is(self, entry: ConsulEntry | None, won: ConsulEntry) -> bool:
        return (
            entry is not None
            and entry.session == won.session
            and entry.create_index == won.create_index
        )

    def may_have_place(self) -> bool:
        # Who leads has none, unless a write of unknown outcome made one.
        return self._lost is None or self._unsure

    def sessions_changed(self) -> None:
        if self._lost is not None and self.on_new_plan is not None:
            self.on_new_plan()

    def entry_gone(self, reason: str) -> None:
        """Told by the session: it is gone, and with it all that hung on it."""
        self._tell(reason)
        if self._feed is not None:
            self._feed.wake()

    def cut_off(self, error: StoreUnavailable) -> None:
        """Told by the session, which is not renewed: whoever waits asks for itself."""
        if self._feed is not None:
            self._feed.cut(error)

    def _tell(self, reason: str) -> None:
        if self._told is not None:
            return
        self._told = reason
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(reason)

    async def proclaim(self, value: bytes) -> None:
        session, held = self._session, self._held
        if session is None or held is None or self._told is not None or self._lost is None:
            raise NotLeader(f"no entry of ours leads {self.key!r}: campaign first")
        while True:
            # It names the write before it, so that one that arrives late changes nothing.
            done = await self._election.agents.transact(
                unchanged(self.key, held.modify_index), locking(self.key, session.id, value)
            )
            if not isinstance(done, Refused):
                self._held = done[-1]
                self._value = value
                return
            present = await self._election.read(self.key)
            if present is None or not self._is(present, held):
                self._tell(_what_became(present))
                raise NotLeader(f"the entry for {self.key!r} is gone: campaign again")
            held = self._held = present

    # --- to give way ---

    def release_plan(self) -> ReleasePlan | None:
        if self._session is None:
            return None
        agents, session = self._election.agents, self._session
        freed = agents.path_of(
            f"/v1/kv/{self.key}", ("release", session.id), ("flags", str(LOCK_FLAGS))
        )
        ended = [agents.path_of(f"/v1/session/destroy/{each}") for each in session.ids]
        return ReleasePlan(release, {**agents.way(), "paths": [freed, *ended]})

    async def leave(self) -> None:
        self._lost = None
        # Nothing is to delay the release: what watched the key ends beside it.
        stopped = self._stop_tasks()
        try:
            await self._leave()
        finally:
            await stopped

    async def _leave(self) -> None:
        session = self._session
        if session is None or not (self._held or self._place or self._unsure or self._leaving):
            self._forget()
            return
        if session.lease.ended is None:
            led = self._held is not None
            self._leaving = True
            try:
                # First the place: while it stands, the key may be handed to us.
                if self._place is not None or self._unsure:
                    await self._election.places.remove(self.key, session)
                    self._place = None
                await self._release(session)
            except SessionLost as error:
                session.lost_by(error)
            if self._unsure and session.lease.ended is None:
                self._election.sweep(session, self.key, places_of(self.key) + session.id)
            if led:
                # Who waits without a place is given the time to see the key free.
                self._yield_until = self._clock.now() + min(0.5, session.ttl / 4)
        self._leaving = self._unsure = False
        self._forget()

    async def _release(self, session: ConsulSession) -> None:
        successor = self._successor(session)
        while True:
            held = self._held
            if held is None:
                held = await self._election.read(self.key)
                if held is None or held.session != session.id:
                    return
            if successor is not None:
                done = await self._hand_over(held, successor)
                successor = None
            else:
                done = await self._do(unchanged(self.key, held.modify_index), deleting(self.key))
            if done:
                self._held = None
                return
            # By what has changed since, or a try whose answer was lost: read what is true.
            self._held = None

    def _successor(self, session: ConsulSession) -> Place | None:
        """Who is handed the key. Never twice in a row: other clients have no place."""
        if self._held is None or self._handed:
            return None
        return self._attendance.successor(session.ttl / 3)

    async def _hand_over(self, held: ConsulEntry, to: Place) -> bool:
        """Give the key to the next in one commit; whether that was done."""
        try:
            return await self._do(
                *making_anew(self.key, held.modify_index, to.waiting.session, to.waiting.value),
                unchanged(to.name, to.refreshed_at),
                deleting(to.name),
            )
        except (AccessDenied, SessionLost):
            # Of the other's; or the token has no rights on places.
            return False

    async def _do(self, *operations: Operation) -> bool:
        done = await self._election.agents.transact(*operations)
        return not isinstance(done, Refused)

    def _forget(self) -> None:
        """Nothing of ours is known to stand any more."""
        if self._session is not None:
            self._session.holders.discard(self)
        self._held = self._place = None
        self._handed = False
        self._ahead = []
        self._passed = False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._stop_tasks()
        session = self._session
        left_over = bool(self._held or self._place or self._unsure)
        self._forget()
        if left_over and session is not None and session.lease.ended is None:
            # `leave` was given up, and others may keep the session alive: what it
            # holds, or may still come to hold, would block the election.
            self._election.sweep(session, self.key, places_of(self.key) + session.id)
        await self._election.sessions.give_back(self._slot, self.key)

    def _stop_tasks(self) -> asyncio.Future[Any]:
        """To be awaited: done when they have ended."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return asyncio.gather(*tasks, return_exceptions=True)


def _what_became(entry: ConsulEntry | None) -> str:
    if entry is None:
        return DELETED
    return REPLACED if entry.session else ENDED
