"""Elections without a server: each process is a node, and a majority of the nodes elects.

The safe peers protocol (`_quorum_lease`) over HTTP, beside electio's own
surface. A node starts with the store's first use and takes part until the
store is closed; a store with `observe=1` is a client that only asks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Collection
from typing import ClassVar

from ..backend import (
    Address,
    Backend,
    Capability,
    Contender,
    Context,
    Entry,
    Membership,
    ReleasePlan,
)
from ..errors import (
    ConfigurationError,
    HandleClosed,
    NoSuccessor,
    NotLeader,
    NotSupported,
    StoreError,
    StoreUnavailable,
)
from ..events import PeerExposed, TtlGranted
from ..lease import Claim, Lease, claim
from ..page import Page
from ..standing import Standing
from ..survey import Survey
from ._peers_driver import Driver
from ._peers_members import Outcome, check, not_in_time
from ._peers_observer import Observer
from ._peers_settings import settings_of
from ._peers_survey import View, stamp, standings
from ._quorum_effects import Effect, Elected, Lost, Renewed
from ._quorum_messages import VALUE
from ._quorum_waiting import Waiter

_LOOK_AGAIN = 5.0

_REMOVED = (
    "this node was removed from the members, and never votes again: close its store, and let a "
    "new node have a new address"
)


class PeersBackend(Backend):
    """One node of a cluster that needs no server; or a client of one.

    A ttl over the cluster's `ttl_ceiling` is granted as that: each restarted
    node has to be silent for as long as the longest promise, so it is small.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.ELECTION,
            Capability.LOCK,
            Capability.FENCING,
            Capability.HANDOVER,
            Capability.SURVEY,
            Capability.MEMBERS,
        }
    )
    maximum_value_size: ClassVar[float] = VALUE
    conditions: ClassVar[str] = (
        "the token grows over a restart of a majority at once only where the nodes have a "
        "state_dir, or their wall clocks differ by less than wall_clock_skew"
    )

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        self._settings = settings_of(address, context)
        self.minimum_ttl = self._settings.shortest_ttl
        self._names = itertools.count(1)
        self._starting: asyncio.Task[Driver] | None = None
        self._observer = Observer(self._settings, context) if self._settings.observer else None
        self._closed = False
        self._told_ttl: set[float] = set()
        self._survey: Survey | None = None

    async def connect(self) -> None:
        if self._observer is not None:
            await self._observer.ask("leadership/connect")
            return
        driver = await self.driver()
        deadline = self.context.clock.now() + self.context.request_timeout
        while not (driver.node.ready and driver.knowledge.reaches_quorum()):
            if self.context.clock.now() >= deadline:
                raise StoreUnavailable(_why_not_ready(driver))
            await driver.knowledge.wait(deadline - self.context.clock.now())

    async def driver(self) -> Driver:
        """The running node, started on first use.

        Raises:
            StoreUnavailable: it cannot listen at its address; asked again, it tries again.
        """
        if self._closed:
            raise HandleClosed("the store is closed: make a new one")
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._forget_if_failed)
        return await asyncio.shield(self._starting)

    def _forget_if_failed(self, starting: asyncio.Task[Driver]) -> None:
        # By the task itself: whoever waited for it may have been cancelled before or as it ended.
        failed = starting.cancelled() or starting.exception() is not None
        if failed and self._starting is starting:
            self._starting = None

    async def _start(self) -> Driver:
        settings = self._settings
        if settings.is_exposed:
            now = self.context.clock.now()
            self.context.emit(PeerExposed("", now, settings.listen))
        driver = Driver(settings, self.context)
        try:
            await driver.start()
        except BaseException:
            await driver.close()
            raise
        if settings.ui:
            # Begun by the first who looks: a node that nobody looks at pays nothing for its page.
            self._survey = Survey(self, "")
            driver.view = View(
                driver.node,
                driver.knowledge,
                self.context.clock,
                Page(self._survey),
                settings.hosts,
            )
        return driver

    async def close(self) -> None:
        self._closed = True
        if self._survey is not None:
            await self._survey.close()
        if self._observer is not None:
            await self._observer.close()
        starting, self._starting = self._starting, None
        if starting is None:
            return
        if not starting.done():
            starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await starting.result().close()

    @property
    def heartbeat(self) -> float:
        """Seconds between two of a leader's heartbeats."""
        return self._settings.timing.heartbeat

    def granted(self, ttl: float) -> float:
        """The ttl that this cluster grants, told once where it is another.

        Raises:
            ConfigurationError: it is another, and the store is strict.
        """
        ceiling = self._settings.timing.lease_ceiling
        if ttl <= ceiling:
            return ttl
        if self.context.strict_ttl:
            raise ConfigurationError(
                f"ttl={ttl:g} is over this cluster's ceiling of {ceiling:g} s: give a ttl up to "
                f"that, or add ttl_ceiling={ttl:g} on all nodes (each restarted node is then "
                "silent for that long)"
            )
        if ttl not in self._told_ttl:
            self._told_ttl.add(ttl)
            self.context.emit(TtlGranted("", self.context.clock.now(), ttl, ceiling))
        return ceiling

    def contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        if self._observer is not None:
            raise NotSupported("this store only observes: leave out observe=1 and add listen=")
        uid = f"{next(self._names)}"
        return PeersContender(self, uid, key, value, self.granted(ttl))

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        # Each term is released by itself, so there is nothing to share or to keep apart.
        return self.contender(key, value, ttl, own_session)

    async def members(self) -> Membership:
        if self._observer is not None:
            return (await self._observer.members()).membership
        return (await self.driver()).members.told().membership

    async def change_members(
        self, add: Collection[str], remove: Collection[str], timeout: float | None
    ) -> Membership:
        if self._observer is not None:
            return (await self._observer.change_members(add, remove, timeout)).membership
        told = await (await self.driver()).members.change(add, remove, timeout)
        check(told)
        if told.outcome is Outcome.ELSEWHERE:
            raise StoreUnavailable(f"{told.reason}: ask through another node, or with observe=1")
        if told.outcome is Outcome.UNFINISHED and timeout is not None:
            raise not_in_time(timeout, told.reason)
        return told.membership

    async def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        if self._observer is not None:
            async for seen in self._observer.follow(key):
                yield seen
            return
        driver = await self.driver()
        clock, patience = self.context.clock, self.context.request_timeout
        told: list[Entry | None] = []
        cut_at: float | None = None
        while not self._closed:
            if driver.knowledge.knows(key):
                cut_at = None
                leader = driver.knowledge.leader(key)
                entry = None if leader is None else Entry(leader.value, leader.term)
                if told != [entry]:
                    told = [entry]
                    yield entry
                    continue
            else:
                cut_at = clock.now() if cut_at is None else cut_at
                # After the start it takes a while to hear of whoever leads.
                if told or clock.now() - cut_at >= patience:
                    raise StoreUnavailable(_why_not_ready(driver))
            await driver.knowledge.wait(self._settings.timing.heartbeat)
        raise HandleClosed("the store is closed: make a new one")

    async def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        if self._observer is not None:
            async for told_of in self._observer.follow_elections(directory):
                yield told_of
            return
        driver = await self.driver()
        knowledge = driver.knowledge
        clock, patience = self.context.clock, self.context.request_timeout
        told: tuple[Standing, ...] | None = None
        seen: object = None
        begun = looked_at = clock.now()
        while not self._closed:
            if knowledge.knows_all():
                # A member that no longer answers leaves no stamp, so now and then in any case.
                present = stamp(driver.node, knowledge)
                if seen != present or clock.now() - looked_at >= _LOOK_AGAIN:
                    seen, looked_at = present, clock.now()
                    now = standings(driver.node, directory, looked_at)
                    if now != told:
                        yield now
                    told = now
            elif told is not None or clock.now() - begun >= patience:
                raise StoreUnavailable(_why_not_ready(driver))
            # Who waits is heard of with heartbeats, and no change is told of that.
            await knowledge.wait(max(0.5, self.heartbeat))
        raise HandleClosed("the store is closed: make a new one")

    async def lease_left(self, lease: str) -> float | None:
        driver = await self.driver()
        until = driver.node.leaders.until(lease)
        return None if until is None else max(0.0, until - self.context.clock.now())


def _why_not_ready(driver: Driver) -> str:
    if driver.was_removed:
        return _REMOVED
    if not driver.is_member:
        return "this node is no member yet: add it, with leadership peers add"
    if driver.knowledge.reaches_quorum():
        return (
            "this node was started a moment ago, and takes part after its restart silence: "
            "wait, or lower ttl_ceiling on all nodes"
        )
    return "no majority of the members answers: see that enough of them run and can be reached"


class PeersContender(Contender):
    """One contender of this node; the node queues those for one key."""

    def __init__(self, backend: PeersBackend, uid: str, key: str, value: bytes, ttl: float) -> None:
        self._backend = backend
        self._clock = backend.context.clock
        self._uid = uid
        self._key = key
        self._value = value
        self._ttl = ttl
        self._driver: Driver | None = None
        self._planned_for: tuple[str, ...] = ()
        self._lease: Lease | None = None
        self._lost: Callable[[str], None] | None = None
        self._won: asyncio.Future[Claim] | None = None
        self._entered = False
        self._leading = False
        self._gone: asyncio.Future[None] | None = None

    async def campaign(self, lost: Callable[[str], None]) -> Claim:
        driver = self._driver = await self._backend.driver()
        if driver.was_removed:
            # No later try can come to another end.
            raise StoreError(_REMOVED)
        driver.enter(self._uid, self)
        if self._leading and self._won is None:
            # An earlier claim was not taken: another term, with another token.
            await self.leave()
        self._lost = lost
        won = self._won
        if won is None or not self._leading:
            won = self._won = asyncio.get_running_loop().create_future()
            self._entered = True
            # What a leave that was cancelled would have been told says nothing of this entry.
            self._gone = None
            driver.act(
                lambda now: driver.node.campaign(
                    self._key, self._uid, self._value, self._ttl, now, name=self._name
                )
            )
        # Else it was won when an attempt had just given up waiting: others have heard of
        # that term, which nobody here was told of yet, so it need not be given back.
        patience = self._backend.context.request_timeout
        cut_at: float | None = None
        while not won.done():
            if driver.node.ready and driver.knowledge.reaches_quorum():
                cut_at = None
                if self.on_answer is not None:
                    self.on_answer()
            else:
                cut_at = self._clock.now() if cut_at is None else cut_at
                if self._clock.now() - cut_at >= patience:
                    raise StoreUnavailable(_why_not_ready(driver))
            await self._clock.wait_for(asyncio.shield(won), self._clock.now() + patience / 4)
        self._won = None
        return won.result()

    @property
    def _name(self) -> str:
        """The candidate's id, where it is not too long to be told with each change."""
        data = self.candidate_id.encode(errors="ignore")
        return data.decode() if len(data) <= VALUE else ""

    # --- what the node decides ---

    def elected(self, effect: Elected) -> None:
        self._leading = True
        # The node has taken drift and guard off already.
        self._lease = Lease(self._clock, 0.0)
        self._lease.extend(effect.valid_until)
        if self._won is not None and not self._won.done():
            self._won.set_result(claim(effect.term, self._lease))

    def renewed(self, effect: Renewed) -> None:
        if self._lease is not None:
            self._lease.extend(effect.valid_until)
        # A node that was restarted, or a change of members, makes another plan of it.
        if (
            self.on_new_plan is not None
            and self._driver is not None
            and self._driver.node.runs() != self._planned_for
        ):
            self.on_new_plan()

    def lost(self, effect: Lost) -> None:
        self._entered = self._leading = False
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.end(effect.reason)
        lost, self._lost = self._lost, None
        if self._won is not None and not self._won.done():
            self._won.set_exception(StoreUnavailable(effect.reason))
            # Between two attempts nobody waits for it, and asyncio would complain of that.
            self._won.exception()
        elif lost is not None:
            lost(effect.reason)

    def dismissed(self, reason: str) -> None:
        """A leader is to give way, and is renewed until it has."""
        lost, self._lost = self._lost, None
        if self._leading:
            # Nor does a later attempt take what nobody was told of.
            self._won = None
            if lost is not None:
                lost(reason)

    def released(self) -> None:
        # One that comes after all patience may find us in a later term already.
        if self._gone is not None and not self._gone.done():
            self._entered = self._leading = False
            self._gone.set_result(None)

    # --- as leader, and after ---

    async def proclaim(self, value: bytes) -> None:
        driver = self._driver
        if driver is None or not self._leading:
            raise NotLeader(f"this node does not lead {self._key!r}: campaign first")
        driver.act(lambda now: driver.node.proclaim(self._key, self._uid, value, now))
        self._value = value
        # As at a store: who asks another node after our return is told the new value.
        await driver.settle()

    async def find_successor(self, name: str) -> None:
        # What is new on another node comes with its answer to the next heartbeat.
        deadline = self._clock.now() + 2 * self._backend.heartbeat
        while self._waiter(name) is None:
            if self._clock.now() >= deadline:
                raise NoSuccessor(
                    f"nobody is known to wait for {self._key!r} as {name!r}: name a candidate "
                    "that does, or resign to anybody"
                )
            await self._clock.sleep(self._backend.heartbeat / 10)

    async def hand_over(self, name: str) -> None:
        waiter = self._waiter(name)
        if waiter is None or self._driver is None or not self._leading:
            await self.leave()
            return
        node, to = self._driver.node, waiter
        await self._leave(
            lambda now: node.resign(self._key, self._uid, now, successor=to.node, contender=to.uid)
        )

    def _waiter(self, name: str) -> Waiter | None:
        if self._driver is None:
            return None
        waiting = self._driver.node.queues.waiting(self._key, self._clock.now())
        return next((each for each in waiting if each.name == name), None)

    async def leave(self) -> None:
        if self._driver is not None:
            node = self._driver.node
            await self._leave(lambda now: node.withdraw(self._key, self._uid, now))

    async def _leave(self, decide: Callable[[float], list[Effect]]) -> None:
        driver, self._lost = self._driver, None
        if driver is None or not self._entered:
            return
        self._gone = asyncio.get_running_loop().create_future()
        # What was won and never told is given back too: no later attempt may take it.
        won, self._won = self._won, None
        if won is not None and not won.done():
            won.cancel()
        driver.act(decide)
        # Told at the latest when all promises have ended by themselves.
        await self._clock.wait_for(
            asyncio.shield(self._gone), self._clock.now() + self._backend.context.request_timeout
        )
        self._lease = self._gone = None
        self._entered = self._leading = False

    def release_plan(self) -> ReleasePlan | None:
        driver = self._driver
        if driver is None:
            return None
        self._planned_for = driver.node.runs()
        return driver.release_plan(self._key, self._uid)

    async def close(self) -> None:
        driver = self._driver
        if driver is not None:
            driver.act(lambda now: driver.node.withdraw(self._key, self._uid, now))
            driver.forget(self._uid)
