"""A store inside the process: for tests of your own code, and for programs of one process.

`memory://NAME` is shared by all stores of that name in one process, and lives
as long as one of them is open. Nothing survives the process.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ..backend import Address, Backend, Capability, Context, KVPair, Pairs
from ..errors import ConfigurationError, KeyExists, KeyModified, StoreUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Record:
    pair: KVPair
    expires_at: float | None


class Space:
    """The keys that all stores of one name share. Any thread may call.

    `index` counts all writes, so that an index, and a token, never repeats,
    also when a key is deleted and made again.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._records: dict[str, _Record] = {}
        self._index = 0
        self._watchers: set[_Watcher] = set()

    def read(self, now: float) -> dict[str, KVPair]:
        """All living pairs, after the expired ones have been dropped, and their watchers told."""
        with self.lock:
            expired = [
                key
                for key, record in self._records.items()
                if record.expires_at is not None and record.expires_at <= now
            ]
            for key in expired:
                del self._records[key]
                self._tell(key)
            return {key: record.pair for key, record in self._records.items()}

    def write(self, key: str, value: bytes, expires_at: float | None) -> KVPair:
        with self.lock:
            self._index += 1
            pair = KVPair(key, value, self._index)
            self._records[key] = _Record(pair, expires_at)
            self._tell(key)
            return pair

    def remove(self, key: str) -> None:
        with self.lock:
            self._index += 1
            del self._records[key]
            self._tell(key)

    def watch(self, watcher: _Watcher) -> None:
        with self.lock:
            self._watchers.add(watcher)

    def unwatch(self, watcher: _Watcher) -> None:
        with self.lock:
            self._watchers.discard(watcher)

    def next_expiry(self, concerns: Callable[[str], bool]) -> float:
        """When the first of the keys that are asked about expires; infinity: never."""
        with self.lock:
            return min(
                (
                    record.expires_at
                    for key, record in self._records.items()
                    if record.expires_at is not None and concerns(key)
                ),
                default=math.inf,
            )

    def _tell(self, key: str) -> None:
        for watcher in self._watchers:
            if watcher.concerns(key):
                watcher.wake()


class _Watcher:
    """Wakes one watch, on the loop that it runs on."""

    def __init__(self, concerns: Callable[[str], bool]) -> None:
        self.concerns = concerns
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.changed.set)


def _is_below(directory: str) -> Callable[[str], bool]:
    """Whether a key is a descendant, by path segment."""
    prefix = f"{directory}/" if directory else ""
    return lambda key: key.startswith(prefix)


class MemoryBackend(Backend):
    """`memory://NAME`; the same promises as a real store, on the store's own clock."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.FIFO}
    conditions: ClassVar[str] = "the token grows for as long as one store of that name is open"

    _spaces: ClassVar[weakref.WeakValueDictionary[str, Space]] = weakref.WeakValueDictionary()
    _finding: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        if address.options:
            raise ConfigurationError(
                f"memory:// has no option {', '.join(sorted(address.options))}: leave it out"
            )
        self.name = "/".join((*address.endpoints, address.path)).strip("/")
        with self._finding:
            self.space = self._spaces.setdefault(self.name, Space())
        self._closed = False
        self._watches: set[_Watcher] = set()

    async def close(self) -> None:
        self._closed = True
        for watcher in list(self._watches):
            watcher.wake()

    def _read(self) -> dict[str, KVPair]:
        """What stands in the store now; every call begins here."""
        if self._closed:
            raise StoreUnavailable("this memory store is closed: make a new one")
        return self.space.read(self.context.clock.now())

    def _write(self, key: str, value: bytes, ttl: float | None) -> KVPair:
        expires_at = None if ttl is None else self.context.clock.now() + ttl
        return self.space.write(key, value, expires_at)

    async def get(self, key: str) -> KVPair | None:
        return self._read().get(key)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        with self.space.lock:
            self._read()
            return self._write(key, value, ttl)

    async def delete(self, key: str) -> bool:
        with self.space.lock:
            if key not in self._read():
                return False
            self.space.remove(key)
            return True

    async def list(self, directory: str) -> Pairs:
        below = _is_below(directory)
        return sorted(
            (pair for key, pair in self._read().items() if below(key)), key=lambda pair: pair.key
        )

    async def delete_tree(self, directory: str) -> None:
        below = _is_below(directory)
        with self.space.lock:
            for key in list(self._read()):
                if key == directory or below(key):
                    self.space.remove(key)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        with self.space.lock:
            present = self._read().get(key)
            if previous is None and present is not None:
                raise KeyExists(f"{key!r} is there already: read it and give it as previous")
            if previous is not None:
                self._compare(key, previous, present)
            return self._write(key, value, ttl)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        with self.space.lock:
            self._compare(key, previous, self._read().get(key))
            self.space.remove(key)

    def _compare(self, key: str, previous: KVPair, present: KVPair | None) -> None:
        if present is None or present.index != previous.index:
            raise KeyModified(f"{key!r} changed or went since it was read: read it again")

    def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        return self._states(lambda each: each == key, lambda: self._read().get(key))

    def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        below = _is_below(directory)

        def read() -> Pairs:
            pairs = (pair for key, pair in self._read().items() if below(key))
            return sorted(pairs, key=lambda pair: pair.key)

        return self._states(below, read)

    async def _states(
        self, concerns: Callable[[str], bool], read: Callable[[], T]
    ) -> AsyncGenerator[T, None]:
        watcher = _Watcher(concerns)
        self.space.watch(watcher)
        self._watches.add(watcher)
        try:
            while True:
                watcher.changed.clear()
                yield read()
                # Nobody writes when a key expires: each watch looks by itself.
                await self.context.clock.wait_for(
                    watcher.changed.wait(), self.space.next_expiry(concerns)
                )
        finally:
            self._watches.discard(watcher)
            self.space.unwatch(watcher)
