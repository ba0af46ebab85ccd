"""Breaking a store on purpose: cut it off, lose an answer, have a call refused.

    store = new_store("memory://test")
    faults = FaultyBackend.under(store)
    ...
    faults.cut()                        # from here on: StoreUnavailable, and the watches break
    faults.heal()
    faults.lose_reply("atomic_put")     # carried out, and the caller does not hear of it

To do something behind a store's back, open a second one of the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from .backend import Backend, KVPair, Pairs
from .errors import ConfigurationError, StoreError, StoreUnavailable
from .store import StoreBase

T = TypeVar("T")

CALLS = ("get", "put", "delete", "list", "delete_tree", "atomic_put", "atomic_delete")
_COPIED = ("capabilities", "minimum_ttl", "maximum_value_size", "conditions", "waiting_room")


class FaultyBackend(Backend):
    """Stands between a store and its backend; does nothing until it is told to.

    For backends whose elections are made of keys, as those of `memory://`: an
    election idiom of the backend's own would go past it. Its own methods may be
    called from any thread.

    Attributes:
        calls: how often each of `CALLS`, `watch` and `watch_tree` was asked for.

    Raises:
        ConfigurationError: the backend has an election idiom of its own.
    """

    def __init__(self, inner: Backend) -> None:
        if type(inner).contender is not Backend.contender:
            raise ConfigurationError(
                f"the elections of {inner.address.scheme!r} are not made of keys, and would go "
                "past these faults: cut its network off instead"
            )
        super().__init__(inner.address, inner.context)
        for name in _COPIED:
            setattr(self, name, getattr(inner, name))
        self.calls: Counter[str] = Counter()
        self._inner = inner
        self._lock = threading.Lock()
        self._is_cut = False
        self._cuts = 0
        self._to_lose: Counter[str] = Counter()
        self._to_refuse: dict[str, list[StoreError]] = {}
        self._waiting: set[_Wait] = set()

    @classmethod
    def under(cls, store: StoreBase) -> FaultyBackend:
        """Put one under `store`, before its candidates, locks and watches are made."""
        faults = cls(store.core.backend)
        store.core.backend = faults
        return faults

    # --- the faults ---

    def cut(self) -> None:
        """From now on nothing reaches the store: every call fails, every watch breaks."""
        with self._lock:
            self._is_cut = True
            self._cuts += 1
            for wait in self._waiting:
                wait.end()

    def heal(self) -> None:
        """End the cut."""
        with self._lock:
            self._is_cut = False

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """A cut for the time of a block."""
        self.cut()
        try:
            yield
        finally:
            self.heal()

    def lose_reply(self, call: str, times: int = 1) -> None:
        """The next `times` of one of `CALLS` are carried out, but fail: the outcome is unknown."""
        with self._lock:
            self._to_lose[_checked(call)] += times

    def refuse(self, call: str, error: StoreError, times: int = 1) -> None:
        """The next `times` of one of `CALLS` fail with `error`, and change nothing."""
        with self._lock:
            self._to_refuse.setdefault(_checked(call), []).extend([error] * times)

    # --- the calls ---

    async def _call(self, call: str, act: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        with self._lock:
            self.calls[call] += 1
            self._check_reached()
            if self._to_refuse.get(call):
                raise self._to_refuse[call].pop(0)
            losing = self._to_lose[call] > 0
            self._to_lose[call] -= losing
        try:
            result = await act(*arguments)
        except StoreError:
            if not losing:
                raise
        else:
            if not losing:
                return result
        raise StoreUnavailable(f"the reply to {call} was lost on purpose")

    def _check_reached(self) -> None:
        if self._is_cut:
            raise StoreUnavailable("the store was cut off on purpose")

    async def _states(self, call: str, states: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        with self._lock:
            self.calls[call] += 1
            cuts = self._cuts
        async with contextlib.aclosing(states):
            while True:
                with self._lock:
                    self._check_reached()
                    if self._cuts != cuts:
                        raise StoreUnavailable("the watch was broken on purpose")
                    wait = _Wait()
                    self._waiting.add(wait)
                try:
                    state = await wait.until(anext(states))
                except StopAsyncIteration:
                    return
                finally:
                    with self._lock:
                        self._waiting.discard(wait)
                yield state

    async def close(self) -> None:
        await self._inner.close()

    async def get(self, key: str) -> KVPair | None:
        return await self._call("get", self._inner.get, key)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        return await self._call("put", self._inner.put, key, value, ttl)

    async def delete(self, key: str) -> bool:
        return await self._call("delete", self._inner.delete, key)

    async def list(self, directory: str) -> Pairs:
        return await self._call("list", self._inner.list, directory)

    async def delete_tree(self, directory: str) -> None:
        await self._call("delete_tree", self._inner.delete_tree, directory)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        return await self._call("atomic_put", self._inner.atomic_put, key, value, previous, ttl)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        await self._call("atomic_delete", self._inner.atomic_delete, key, previous)

    def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        return self._states("watch", self._inner.watch(key))

    def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        return self._states("watch_tree", self._inner.watch_tree(directory))


class _Wait:
    """One wait for a watch's next state, which a cut may end from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._over = False

    async def until(self, state: Awaitable[T]) -> T:
        try:
            async with self._limit:
                return await state
        except TimeoutError:
            raise StoreUnavailable("the watch was broken on purpose") from None
        finally:
            self._over = True

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._expire)

    def _expire(self) -> None:
        if not self._over:
            self._limit.reschedule(self._loop.time())


def _checked(call: str) -> str:
    if call not in CALLS:
        raise ConfigurationError(f"no call {call!r}: give one of {', '.join(CALLS)}")
    return call
