"""A store inside the process: for tests of your own code, and for programs of one process.

`memory://NAME` is shared, inside one process, by all stores of that name on
the same clock (each `ManualClock` is a clock of its own). Its keys live while
one of these stores is open: closing one takes nothing from the others,
closing the last forgets everything. A forked child begins with nothing.

An election's entry stands at the election's own key, in an envelope: `get` and
`list` show it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ..backend import Address, Backend, Capability, Contender, Context, Entry, KVPair, Pairs
from ..clock import Clock, SystemClock
from ..contention import WaitingRoom, token_of, unseal
from ..errors import ConfigurationError, HandleClosed, KeyExists, KeyModified
from ..standing import Standing

T = TypeVar("T")

Condition = Callable[[KVPair | None], None]
"""Raises where what stands at a key is not what the caller took it for."""


@dataclass(frozen=True, slots=True)
class _Record:
    pair: KVPair
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Place:
    """A key, or with `tree` all that is below a directory."""

    path: str
    tree: bool

    def holds(self, key: str) -> bool:
        if not self.tree:
            return key == self.path
        return not self.path or key.startswith(f"{self.path}/")


class _Watcher:
    """Wakes one watch, on the event loop that it runs on."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """From any thread, under any lock: never blocks."""
        # A loop that was closed in the middle of a watch has nobody to wake.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.changed.set)


class Space:
    """The keys that all stores of one name share. Any thread may call.

    One counter numbers all writes, so that an index, and with it a token,
    never repeats, also when a key is deleted and made again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The engine is one thread; tests with event loops of their own are others.
        self._lock = threading.RLock()
        self._records: dict[str, _Record] = {}
        self._writes = 0
        # By place, so that many elections in one process do not wake each other.
        self._watchers: dict[_Place, set[_Watcher]] = {}
        # Weakly: a space that holds itself would outlive its stores.
        tell_trees = weakref.WeakMethod(self._tell_trees)

        def changed(key: str) -> None:
            tell = tell_trees()
            if tell is not None:
                tell(key)

        self.waiting_room = WaitingRoom(changed)

    def get(self, key: str) -> KVPair | None:
        """What stands at `key`: nothing from its expiry on, whether or not a timer has run."""
        with self._lock:
            record = self._records.get(key)
            if record is None:
                return None
            if record.expires_at <= self._clock.now():
                self._remove(key)
                return None
            return record.pair

    def below(self, directory: str) -> Pairs:
        """The descendants of `directory`, sorted."""
        place = _Place(directory, tree=True)
        with self._lock:
            pairs = [self.get(key) for key in sorted(self._records) if place.holds(key)]
        return [pair for pair in pairs if pair is not None]

    def put(self, key: str, value: bytes, ttl: float | None, condition: Condition) -> KVPair:
        with self._lock:
            condition(self.get(key))
            self._writes += 1
            pair = KVPair(key, value, self._writes)
            expires_at = math.inf if ttl is None else self._clock.now() + ttl
            self._records[key] = _Record(pair, expires_at)
            self._tell(key)
            return pair

    def delete(self, key: str, condition: Condition) -> bool:
        """Whether there was something to remove."""
        with self._lock:
            present = self.get(key)
            condition(present)
            if present is not None:
                self._remove(key)
            return present is not None

    def delete_tree(self, directory: str) -> None:
        with self._lock:
            for key in (directory, *(pair.key for pair in self.below(directory))):
                if self.get(key) is not None:
                    self._remove(key)

    @contextlib.contextmanager
    def watched(self, place: _Place) -> Iterator[_Watcher]:
        """Wake the watcher at each change of the place, until the block ends."""
        watcher = _Watcher()
        with self._lock:
            self._watchers.setdefault(place, set()).add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers[place].discard(watcher)
                if not self._watchers[place]:
                    del self._watchers[place]

    def next_expiry(self, place: _Place) -> float:
        """When the first key of the place expires, on the clock; infinity: never."""
        with self._lock:
            keys = filter(place.holds, self._records) if place.tree else (place.path,)
            expiries = (self._records[key].expires_at for key in keys if key in self._records)
            return min(expiries, default=math.inf)

    def _remove(self, key: str) -> None:
        del self._records[key]
        self._tell(key)

    def lapses_at(self, key: str) -> float | None:
        """When the key expires, on the clock; None: it is not there."""
        with self._lock:
            record = self._records.get(key)
            return None if record is None else record.expires_at

    def _tell(self, key: str) -> None:
        for watcher in self._watchers.get(_Place(key, tree=False), ()):
            watcher.wake()
        self._tell_trees(key)

    def _tell_trees(self, key: str) -> None:
        places = [_Place("", tree=True)]
        directory = key
        while "/" in directory:
            directory = directory.rpartition("/")[0]
            places.append(_Place(directory, tree=True))
        with self._lock:
            for place in places:
                for watcher in self._watchers.get(place, ()):
                    watcher.wake()


class _Registry:
    """The spaces of this process. It keeps none alive: their stores do."""

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # In a forked child nobody may be left to release the parent's lock.
        self._lock = threading.Lock()
        self._spaces: weakref.WeakValueDictionary[tuple[str, int], Space] = (
            weakref.WeakValueDictionary()
        )

    def find(self, name: str, clock: Clock) -> Space:
        # The space keeps its clock, so that the number is not given to another one.
        which = 0 if isinstance(clock, SystemClock) else id(clock)
        with self._lock:
            space = self._spaces.get((name, which))
            if space is None:
                space = self._spaces[name, which] = Space(clock)
            return space


class MemoryBackend(Backend):
    """`memory://NAME`: all that a real store promises, but to queue, and to outlive the process.

    It takes no options. A ttl is counted on the store's clock, so a test with
    a `ManualClock` decides itself when keys and leases expire.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {
        Capability.FIFO,
        Capability.MEMBERS,
    }
    conditions: ClassVar[str] = "the token grows while one store of that name is open"

    _registry: ClassVar[_Registry] = _Registry()

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        if address.options:
            raise ConfigurationError(
                f"memory:// takes no options, and has {', '.join(sorted(address.options))}: "
                "leave them out"
            )
        if len(address.endpoints) > 1:
            raise ConfigurationError(
                f"memory:// takes one name, and has {len(address.endpoints)}: write memory://NAME"
            )
        self.name = "/".join((*address.endpoints, address.path)).strip("/")
        if not self.name:
            raise ConfigurationError("the memory store has no name: write memory://NAME")
        self._space: Space | None = self._registry.find(self.name, context.clock)
        self.waiting_room = self._space.waiting_room
        self._watching: set[_Watcher] = set()

    @property
    def space(self) -> Space:
        """What the stores of this name share.

        Raises:
            HandleClosed: this backend was closed.
        """
        if self._space is None:
            raise HandleClosed("this memory store is closed: make a new one")
        return self._space

    async def close(self) -> None:
        # Let go of here, and not when this object is collected: after the last
        # close the keys are gone.
        self._space = None
        for watcher in self._watching:
            watcher.wake()

    async def get(self, key: str) -> KVPair | None:
        return self.space.get(key)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        return self.space.put(key, value, ttl, _whatever)

    async def delete(self, key: str) -> bool:
        return self.space.delete(key, _whatever)

    async def list(self, directory: str) -> Pairs:
        return self.space.below(directory)

    async def delete_tree(self, directory: str) -> None:
        self.space.delete_tree(directory)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        condition = _absent(key) if previous is None else _unchanged(key, previous)
        return self.space.put(key, value, ttl, condition)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        self.space.delete(key, _unchanged(key, previous))

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        # What is in this process dies with it: there is nothing to release.
        return self.contender(key, value, ttl, own_session)

    def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        return self._states(_Place(key, tree=False), lambda: self.space.get(key))

    def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        return self._states(_Place(directory, tree=True), lambda: self.space.below(directory))

    def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        def read() -> tuple[Standing, ...]:
            opened = [(pair, unseal(pair)) for pair in self.space.below(directory)]
            return tuple(
                Standing(
                    pair.key,
                    Entry(envelope.value, token_of(pair, envelope)),
                    self.space.waiting_room.values(pair.key),
                    lease=pair.key,
                )
                for pair, envelope in opened
                if envelope is not None
            )

        return self._states(_Place(directory, tree=True), read)

    async def lease_left(self, lease: str) -> float | None:
        lapses_at = self.space.lapses_at(lease)
        return None if lapses_at is None else max(0.0, lapses_at - self.context.clock.now())

    async def _states(self, place: _Place, read: Callable[[], T]) -> AsyncGenerator[T, None]:
        space = self.space
        told: T | None = None
        first = True
        with space.watched(place) as watcher:
            self._watching.add(watcher)
            try:
                while True:
                    # Cleared before the read: what is written after it is told again.
                    watcher.changed.clear()
                    state = read()
                    if first or state != told:
                        yield state
                    first, told = False, state
                    # Nobody calls when a key expires, so each watch looks by itself.
                    await self.context.clock.wait_for(
                        watcher.changed.wait(), space.next_expiry(place)
                    )
            finally:
                self._watching.discard(watcher)


def _whatever(present: KVPair | None) -> None:
    pass


def _absent(key: str) -> Condition:
    def check(present: KVPair | None) -> None:
        if present is not None:
            raise KeyExists(f"{key!r} is there already: read it and give it as previous")

    return check


def _unchanged(key: str, previous: KVPair) -> Condition:
    def check(present: KVPair | None) -> None:
        if present is None or present.index != previous.index:
            raise KeyModified(f"{key!r} changed or went since it was read: read it again")

    return check
