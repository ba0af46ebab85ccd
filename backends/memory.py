"""A store inside the process: for tests of your own code, and for programs of one process.

`memory://NAME` is shared by all stores of that name, and on the same clock,
in one process (two `ManualClock`s are two clocks: times on one mean nothing
on the other). Its keys live as long as one of these stores is open: closing
one takes nothing from the others, closing the last forgets everything. A
forked child begins with nothing. While an election runs, `get` and `list` show
its entry under the election's own key.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ..backend import Address, Backend, Capability, Context, KVPair, Pairs
from ..clock import Clock, SystemClock
from ..errors import ConfigurationError, HandleClosed, KeyExists, KeyModified

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Record:
    pair: KVPair
    expires_at: float


class _Watcher:
    """Wakes one watch, on the event loop that it runs on."""

    def __init__(self, concerns: Callable[[str], bool]) -> None:
        self.concerns = concerns
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """From any thread, and under any lock: never blocks."""
        # A loop that was closed in the middle of a watch waits for nothing.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.changed.set)


class Space:
    """The keys that all stores of one name share. Any thread may call.

    One counter numbers all writes, so that an index, and with it a token,
    never repeats, also when a key is deleted and made again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Two event loops, of two threads, may share a space.
        self._lock = threading.RLock()
        self._records: dict[str, _Record] = {}
        self._writes = 0
        # By key, so that many elections in one process do not wake each other.
        self._on_key: dict[str, set[_Watcher]] = {}
        self._on_tree: set[_Watcher] = set()

    def get(self, key: str) -> KVPair | None:
        """What stands at `key` now: a key is gone at its time, also where no timer has run yet."""
        with self._lock:
            record = self._records.get(key)
            if record is None:
                return None
            if record.expires_at <= self._clock.now():
                self._remove(key)
                return None
            return record.pair

    def below(self, directory: str) -> Pairs:
        """The descendants of `directory`, by path segment, sorted."""
        concerns = _is_below(directory)
        with self._lock:
            pairs = [self.get(key) for key in sorted(filter(concerns, self._records))]
        return [pair for pair in pairs if pair is not None]

    def put(
        self, key: str, value: bytes, ttl: float | None, condition: Callable[[KVPair | None], None]
    ) -> KVPair:
        """Write, if `condition` does not raise on what stands there."""
        with self._lock:
            condition(self.get(key))
            self._writes += 1
            pair = KVPair(key, value, self._writes)
            expires_at = math.inf if ttl is None else self._clock.now() + ttl
            self._records[key] = _Record(pair, expires_at)
            self._tell(key)
            return pair

    def delete(self, key: str, condition: Callable[[KVPair | None], None]) -> bool:
        """Remove, if `condition` does not raise; whether there was something."""
        with self._lock:
            present = self.get(key)
            condition(present)
            if present is None:
                return False
            self._remove(key)
            return True

    def delete_tree(self, directory: str) -> None:
        with self._lock:
            for key in (directory, *(pair.key for pair in self.below(directory))):
                self.delete(key, _always)

    def watch_key(self, key: str) -> _Watcher:
        with self._lock:
            watcher = _Watcher(key.__eq__)
            self._on_key.setdefault(key, set()).add(watcher)
            return watcher

    def watch_below(self, directory: str) -> _Watcher:
        with self._lock:
            watcher = _Watcher(_is_below(directory))
            self._on_tree.add(watcher)
            return watcher

    def unwatch(self, watcher: _Watcher) -> None:
        with self._lock:
            self._on_tree.discard(watcher)
            for key in [key for key in self._on_key if watcher.concerns(key)]:
                self._on_key[key].discard(watcher)
                if not self._on_key[key]:
                    del self._on_key[key]

    def expiry_of(self, key: str) -> float:
        """When the key expires, on the clock; infinity: never."""
        with self._lock:
            record = self._records.get(key)
            return math.inf if record is None else record.expires_at

    def first_expiry_below(self, directory: str) -> float:
        with self._lock:
            return min(map(self.expiry_of, filter(_is_below(directory), self._records)), default=math.inf)

    def _remove(self, key: str) -> None:
        del self._records[key]
        self._tell(key)

    def _tell(self, key: str) -> None:
        for watcher in self._on_key.get(key, ()):
            watcher.wake()
        for watcher in self._on_tree:
            if watcher.concerns(key):
                watcher.wake()
