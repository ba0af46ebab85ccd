"""`leadership.store` for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..backend import Capability, KVPair
from ..checks import checked_key
from ..clock import Clock
from ..core import open_core
from ..events import Hook
from ..membership import AsyncMembers
from ..store import Pairs, StoreBase
from .calls import on_engine
from .streams import Stream

if TYPE_CHECKING:
    from .lock import Lock

T = TypeVar("T")


class Store(StoreBase, AsyncMembers):
    """`leadership.Store` for asyncio: the same methods, awaited. Made by `new_store`."""

    async def _run(self, act: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        self.core.check_open()
        return await on_engine(self.core, act, *args)

    async def get(self, key: str) -> KVPair | None:
        """The pair at `key`, never a stale one; None when there is none."""
        self.core.need("get", Capability.KV)
        return await self._run(self.core.backend.get, checked_key(key))

    async def exists(self, key: str) -> bool:
        """Whether there is a value at `key`."""
        return await self.get(key) is not None

    async def put(self, key: str, value: bytes | str, ttl: float | None = None) -> KVPair:
        """Write unconditionally; with `ttl` (seconds) the key vanishes unless written again."""
        return await self._run(self.core.backend.put, *self._put(key, value, ttl))

    async def delete(self, key: str) -> bool:
        """Remove the key; False when it was not there."""
        self.core.need("delete", Capability.KV)
        return await self._run(self.core.backend.delete, checked_key(key))

    async def list(self, directory: str = "") -> Pairs:
        """All descendants of `directory`, by path segment, sorted."""
        self.core.need("list", Capability.KV)
        return await self._run(self.core.backend.list, checked_key(directory, root=True))

    async def delete_tree(self, directory: str) -> None:
        """Remove `directory` itself and all its descendants, by path segment."""
        self.core.need("delete_tree", Capability.KV)
        await self._run(self.core.backend.delete_tree, checked_key(directory))

    async def atomic_put(
        self,
        key: str,
        value: bytes | str,
        previous: KVPair | None = None,
        ttl: float | None = None,
    ) -> KVPair:
        """Write if the key is as `previous` says; without it: only create.

        Raises:
            KeyExists, KeyModified: it is not.
        """
        self.core.need("atomic_put", Capability.CAS)
        path, data, seconds = self._put(key, value, ttl)
        return await self._run(self.core.backend.atomic_put, path, data, previous, seconds)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        """Remove if the key is as `previous` says; raises `KeyModified` when it is not."""
        self.core.need("atomic_delete", Capability.CAS)
        await self._run(self.core.backend.atomic_delete, checked_key(key), previous)

    def watch(self, key: str) -> Stream[KVPair | None]:
        """The present state of `key`, then each later one; see `leadership.Store.watch`."""
        return Stream(self.core, self._cursor_of_key(key))

    def watch_tree(self, directory: str = "") -> Stream[Pairs]:
        """As `watch`, of what `list(directory)` gives."""
        return Stream(self.core, self._cursor_of_tree(directory))

    def lock(self, key: str, value: bytes | str = "", ttl: float = 15.0) -> Lock:
        """A lock that lapses when its holder dies; see `leadership.Store.lock`."""
        # A lock needs the store, too.
        from .lock import Lock

        return Lock(self, key, value, ttl)

    async def connect(self) -> None:
        """Ask the store once, to see that it answers."""
        await self._run(self.core.backend.connect)

    async def close(self) -> None:
        """Withdraw all candidates and locks, end all watches, sessions and connections."""
        if not self.core.nothing_to_end():
            await on_engine(self.core, self.core.close, self._callers())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def new_store(
    address: str,
    endpoints: str | Iterable[str] | None = None,
    *,
    clock: Clock | None = None,
    hooks: Iterable[Hook] = (),
    **options: Any,
) -> Store:
    """As `leadership.new_store`, for asyncio; does no I/O, so there is nothing to await."""
    return Store(open_core(address, endpoints, clock=clock, hooks=hooks, **options))


NewStore = new_store
