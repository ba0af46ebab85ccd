"""All elections below a prefix, followed for people who look: who leads, and who led before.

A store keeps no past. So what is told of earlier terms is what was seen from
the survey's start on, and where it was not seen (at the start, or while the
store could not be reached) that is told too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, replace

from .backend import Backend, Entry
from .errors import StoreError, StoreUnavailable
from .events import StoreRecovered, StoreTrouble
from .retry import DEFAULT_RETRY, riding_out
from .standing import Standing

PAST_TERMS = 30
"""Terms that are remembered of each election."""

ELECTIONS = 1000
"""Elections that are shown; of more only their number is told."""

FORGOTTEN_AFTER = 3600.0
"""Seconds after which an election that nobody leads is no longer shown."""

# How often leases are asked for while somebody looks, and how many of them at once:
# what watching costs the store does not grow with the elections.
_ROUND = 1.0
_LEASES_A_ROUND = 32

# Between two looks at a store in which everything changes at once; the more there is to look
# at, the longer, so that looking takes a small part of the loop that leases are renewed on.
_PACE = 0.1
_PACE_EACH = 0.0005
_PACE_EACH_UNSEEN = 0.005


@dataclass(frozen=True, slots=True)
class SeenTerm:
    """A term, as it was seen.

    Attributes:
        value: what its leader led with, at last.
        token: its fencing token.
        began: seconds on the store's clock, when it was first seen.
        began_exactly: whether its beginning was seen, or it may be older.
        ended: when it was first seen that it is over; None: it is not.
        ended_exactly: whether its end was seen, or it may have been earlier.
    """

    value: str
    token: int
    began: float
    began_exactly: bool
    ended: float | None = None
    ended_exactly: bool = True


@dataclass(frozen=True, slots=True)
class SeenElection:
    """One election.

    Attributes:
        key: the election.
        term: the present leader's; None: nobody leads.
        waiting: who waits, first come first; None: the store does not tell.
        past: earlier terms, the last one first.
        lease: names the leader's lease; "" where the store has nothing to tell of it.
    """

    key: str
    term: SeenTerm | None
    waiting: tuple[str, ...] | None
    past: tuple[SeenTerm, ...] = ()
    lease: str = ""


class Record:
    """What has been seen so far; without input, output or a clock of its own."""

    def __init__(self) -> None:
        self.elections: dict[str, SeenElection] = {}
        self.left_out = 0
        self._kept: dict[str, SeenElection] = {}
        self._standing: dict[str, Standing] = {}

    def take(self, standings: tuple[Standing, ...], now: float, gap: bool) -> None:
        """The elections as they stand now.

        Args:
            gap: whether there was a time before this in which changes were not seen.
        """
        shown = standings[:ELECTIONS]
        self.left_out = len(standings) - len(shown)
        present = {standing.key: standing for standing in shown}
        for key, standing in present.items():
            if key in self._kept and self._standing.get(key) == standing:
                continue
            before = self._kept.get(key) or SeenElection(key, None, None)
            self._kept[key] = _after(before, standing, now, gap)
        for key, before in list(self._kept.items()):
            if key in present:
                continue
            nobody = () if before.waiting is not None else None
            self._kept[key] = _after(before, Standing(key, None, nobody), now, gap)
            if not self._kept[key].past:
                # Some waited for a while, and nobody led.
                del self._kept[key]
        self._standing = present
        self.forget(now)

    def forget(self, now: float) -> None:
        """Leave out what nobody has led for long, and of that the oldest where it is too much."""
        idle = sorted((_idle_since(e), e.key) for e in self._kept.values() if e.term is None)
        too_many = len(self._kept) - ELECTIONS
        for number, (since, key) in enumerate(idle):
            if number < too_many or since <= now - FORGOTTEN_AFTER:
                del self._kept[key]
        self.elections = dict(sorted(self._kept.items()))


def _idle_since(election: SeenElection) -> float:
    return (election.past[0].ended or 0.0) if election.past else float("inf")


def _after(before: SeenElection, standing: Standing, now: float, gap: bool) -> SeenElection:
    term, past, leader = before.term, before.past, standing.leader
    if term is not None and (leader is None or leader.token != term.token):
        past = (replace(term, ended=now, ended_exactly=not gap), *past)[:PAST_TERMS]
        term = None
    if leader is not None:
        term = _term(term, leader, now, gap)
    waiting = None if standing.waiting is None else tuple(map(_text, standing.waiting))
    return SeenElection(standing.key, term, waiting, past, standing.lease)


def _term(term: SeenTerm | None, leader: Entry, now: float, gap: bool) -> SeenTerm:
    value = _text(leader.value)
    if term is None:
        return SeenTerm(value, leader.token, now, not gap)
    # Proclaimed anew: the same term.
    return term if term.value == value else replace(term, value=value)


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Look:
    """What is known at one moment.

    Attributes:
        at: seconds on the store's clock.
        since: when the survey began.
        elections: sorted by key.
        left_out: how many more elections there are.
        lease_ends: by lease: when it ends if it is not renewed, on the store's clock.
        cut_since: since when the store cannot be asked; None: it can.
        trouble: why not.
    """

    at: float
    since: float
    elections: tuple[SeenElection, ...]
    left_out: int
    lease_ends: Mapping[str, float]
    cut_since: float | None
    trouble: str


class Survey:
    """Follows a store's elections from `start` to `close`; lives on the engine's loop.

    It only reads: one watch of the prefix for as long as it lives, and while
    somebody looks some leases' remaining time once a second.

    Args:
        backend: with `Capability.SURVEY`.
        prefix: a checked key, or "" for all.
    """

    def __init__(self, backend: Backend, prefix: str) -> None:
        self.prefix = prefix
        self.address = backend.address
        self.clock = backend.context.clock
        self._backend = backend
        self._context = backend.context
        self._record = Record()
        self._began = self.clock.now()
        self._seen = False
        self._cut_since: float | None = self._began
        self._trouble = ""
        self._error: Exception | None = None
        self._failures = 0
        self._following: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._viewers = 0
        self._looked_at_now = asyncio.Event()
        self._lease_ends: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def start(self) -> None:
        """Begin to follow. Idempotent."""
        if self._following is None and not self._closed:
            self._began = self.clock.now()
            self._following = asyncio.ensure_future(self._follow())

    async def close(self) -> None:
        """Stop following; who looks comes to the end. Idempotent."""
        self._closed = True
        self._tell()
        tasks = [task for task in (self._following, self._measuring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look(self) -> Look:
        """What is known now."""
        return Look(
            self.clock.now(),
            self._began,
            tuple(self._record.elections.values()),
            self._record.left_out,
            dict(self._lease_ends),
            self._cut_since,
            self._trouble,
        )

    async def first_look(self) -> Look:
        """What the store told first, waiting for it as long as it takes.

        Raises:
            StoreError, NotSupported: it refuses.
        """
        self.start()
        while not self._seen:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        return self.look()

    @property
    def trouble(self) -> str:
        """Why nothing is known, or nothing new; "" where there is no reason."""
        return self._trouble

    async def looks(self, at_least: float) -> AsyncGenerator[Look, None]:
        """What is known now and at each change, and again after `at_least` seconds without one."""
        with self._looked_at():
            while not self._closed:
                changed = self._changed
                yield self.look()
                await self.clock.sleep(_PACE)
                await self.clock.wait_for(changed.wait(), self.clock.now() + at_least)

    def _tell(self) -> None:
        # Each change has an event of its own: nobody clears it for another.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- who leads, and who waits ---

    async def _follow(self) -> None:
        try:
            await riding_out(
                self._read,
                retry=DEFAULT_RETRY,
                clock=self.clock,
                chance=self._context.random,
                trouble=self._told_trouble,
            )
        except Exception as error:
            self._error = error
            self._cut(str(error))

    async def _read(self) -> None:
        gap = True
        try:
            async with contextlib.aclosing(self._backend.elections(self.prefix)) as states:
                async for standings in states:
                    self._record.take(standings, self.clock.now(), gap)
                    gap = False
                    self._seen = True
                    self._reached()
                    self._tell()
                    await self._pause(len(standings))
            raise StoreUnavailable("the watch ended; it is opened again")
        except Exception as error:
            self._cut(str(error))
            raise

    async def _pause(self, elections: int) -> None:
        now = self.clock.now()
        await self.clock.sleep_until(now + _PACE + elections * _PACE_EACH)
        # Where nobody looks there is less haste; who comes ends the pause.
        await self.clock.wait_for(
            self._looked_at_now.wait(), now + _PACE + elections * _PACE_EACH_UNSEEN
        )

    def _reached(self) -> None:
        self._cut_since, self._trouble = None, ""
        if self._failures:
            now = self.clock.now()
            self._context.emit(StoreRecovered(self.prefix, now, self._failures))
            self._failures = 0

    def _cut(self, why: str) -> None:
        if self._cut_since is None:
            self._cut_since = self.clock.now()
        self._trouble = why
        self._tell()

    def _told_trouble(self, error: StoreUnavailable, attempt: int, retry_in: float) -> None:
        self._failures = attempt
        now = self.clock.now()
        self._context.emit(StoreTrouble(self.prefix, now, str(error), attempt, retry_in))

    # --- how long leases still last ---

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[None]:
        self._viewers += 1
        self._looked_at_now.set()
        if self._measuring is None and not self._closed:
            self._measuring = asyncio.ensure_future(self._measure())
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._looked_at_now.clear()
            if not self._viewers and self._measuring is not None:
                self._measuring.cancel()
                self._measuring = None
                self._lease_ends.clear()

    async def _measure(self) -> None:
        while True:
            leases = {e.lease for e in self._record.elections.values() if e.term and e.lease}
            for known in (self._lease_ends, self._asked):
                for gone in known.keys() - leases:
                    del known[gone]
            longest_ago = sorted(leases, key=lambda lease: self._asked.get(lease, float("-inf")))
            await asyncio.gather(*map(self._ask, longest_ago[:_LEASES_A_ROUND]))
            self._record.forget(self.clock.now())
            self._tell()
            await self.clock.sleep(_ROUND)

    async def _ask(self, lease: str) -> None:
        self._asked[lease] = self.clock.now()
        try:
            left = await self._backend.lease_left(lease)
        except StoreError:
            left = None
        if left is None:
            self._lease_ends.pop(lease, None)
            return
        ends, before = self.clock.now() + left, self._lease_ends.get(lease, float("-inf"))
        # An answer in whole seconds is up to one short: that is no news.
        if not before - 1.1 < ends < before:
            self._lease_ends[lease] = ends
