"""The store, for threads: keys, watches and locks on any backend."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import inside
from .backend import Capability, KVPair
from .checks import checked_key, checked_ttl, checked_value
from .clock import Clock
from .core import Core, open_core
from .events import Hook
from .membership import Members
from .observation import Cursor, Observation, states
from .retry import DEFAULT_RETRY
from .streams import Stream

if TYPE_CHECKING:
    from .election import Candidacy
    from .lock import Lock

T = TypeVar("T")
Pairs = builtins.list[KVPair]
"""Inside the class `list` is a method."""


class StoreBase:
    """What the sync and the async store have in common; see `new_store`."""

    def __init__(self, core: Core) -> None:
        self.core = core

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store's backend offers."""
        return self.core.backend.capabilities

    @property
    def clock(self) -> Clock:
        """The clock that all of this store's times are seconds on."""
        return self.core.context.clock

    def add_hook(self, hook: Hook) -> None:
        """Have `hook` told each later event, as if it had been given to `new_store`."""
        self.core.hooks = (*self.core.hooks, hook)

    def _cursor_of_key(self, key: str) -> Cursor[KVPair | None, KVPair | None]:
        self.core.need("watch", Capability.WATCH)
        self.core.check_open()
        path = checked_key(key)
        core, backend = self.core, self.core.backend
        return Cursor(
            lambda: Observation(core, path, lambda: backend.watch(path), DEFAULT_RETRY),
            states,
            store=self,
        )

    def _cursor_of_tree(self, directory: str) -> Cursor[Pairs, Pairs]:
        self.core.need("watch_tree", Capability.WATCH)
        self.core.check_open()
        path = checked_key(directory, root=True)
        core, backend = self.core, self.core.backend
        return Cursor(
            lambda: Observation(core, path, lambda: backend.watch_tree(path), DEFAULT_RETRY),
            states,
            store=self,
        )

    def _callers(self) -> builtins.list[tuple[Candidacy, inside.Caller]]:
        """Who closes, as each run has to see it."""
        return [(run, inside.caller(run)) for run in list(self.core.runs)]

    def _put(
        self, key: str, value: bytes | str, ttl: float | None
    ) -> tuple[str, bytes, float | None]:
        """The arguments of a put, checked."""
        backend = self.core.backend
        self.core.need("put", Capability.KV)
        if ttl is not None:
            self.core.need("put with a ttl", Capability.TTL)
            ttl = checked_ttl(ttl, backend)
        return checked_key(key), checked_value(value, backend), ttl

    def __repr__(self) -> str:
        where = self.core.backend.address
        state = " closed" if self.core.closed else ""
        return f"<{type(self).__name__} {where.scheme}://{','.join(where.endpoints)}{state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a store cannot be pickled: its connections and leases belong to one process; "
            "make a new store in the other one"
        )

    def __del__(self) -> None:
        core = getattr(self, "core", None)
        if core is not None:
            core.close_soon()


class Store(StoreBase, Members):
    """A key-value store with TTL keys, compare-and-swap, watches and locks.

    Keys are relative paths such as `service/swarm/leader`; one leading and a
    trailing `/` are dropped. Values are bytes (a str is encoded as UTF-8).
    All methods may be called from any thread and are interruptible by Ctrl-C.
    Besides what each names they raise `StoreUnavailable` when the store did
    not answer (after a write the outcome is then unknown), `AccessDenied`,
    `NotSupported` and `HandleClosed`. Made by `new_store`.
    """

    def _run(self, act: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        self.core.check_open()
        return self.core.call(act, *args)

    def get(self, key: str) -> KVPair | None:
        """The pair at `key`, never a stale one; None when there is none."""
        self.core.need("get", Capability.KV)
        return self._run(self.core.backend.get, checked_key(key))

    def exists(self, key: str) -> bool:
        """Whether there is a value at `key`."""
        return self.get(key) is not None

    def put(self, key: str, value: bytes | str, ttl: float | None = None) -> KVPair:
        """Write unconditionally, and return what now stands there.

        Args:
            ttl: seconds after which the key vanishes unless it is written again;
                nothing renews it. None: it stays (also if it had a ttl).

        Raises:
            ValueTooLarge: over the store's limit.
        """
        return self._run(self.core.backend.put, *self._put(key, value, ttl))

    def delete(self, key: str) -> bool:
        """Remove the key; False when it was not there."""
        self.core.need("delete", Capability.KV)
        return self._run(self.core.backend.delete, checked_key(key))

    def list(self, directory: str = "") -> Pairs:
        """All descendants of `directory`, with full keys, sorted; "" lists the whole store.

        By path segment: `list("dir")` never shows `dirX`, nor `dir` itself.
        """
        self.core.need("list", Capability.KV)
        return self._run(self.core.backend.list, checked_key(directory, root=True))

    def delete_tree(self, directory: str) -> None:
        """Remove `directory` itself and all its descendants, by path segment."""
        self.core.need("delete_tree", Capability.KV)
        self._run(self.core.backend.delete_tree, checked_key(directory))

    def atomic_put(
        self,
        key: str,
        value: bytes | str,
        previous: KVPair | None = None,
        ttl: float | None = None,
    ) -> KVPair:
        """Write if the key is as `previous` says; without `previous`: only create.

        Raises:
            KeyExists: there was no `previous`, and the key is there.
            KeyModified: the key changed or went since `previous` was read.
            ValueTooLarge: over the store's limit.
        """
        self.core.need("atomic_put", Capability.CAS)
        path, data, seconds = self._put(key, value, ttl)
        return self._run(self.core.backend.atomic_put, path, data, previous, seconds)

    def atomic_delete(self, key: str, previous: KVPair) -> None:
        """Remove if the key is as `previous` says.

        Raises:
            KeyModified: the key changed or went since `previous` was read.
        """
        self.core.need("atomic_delete", Capability.CAS)
        self._run(self.core.backend.atomic_delete, checked_key(key), previous)

    def watch(self, key: str) -> Stream[KVPair | None]:
        """The present state of `key`, then each later one; None while it is not there.

        States may be coalesced; the last is never missed, also after an
        outage of the store. Returns an iterator that is a context manager.
        """
        return Stream(self.core, self._cursor_of_key(key))

    def watch_tree(self, directory: str = "") -> Stream[Pairs]:
        """As `watch`, of what `list(directory)` gives."""
        return Stream(self.core, self._cursor_of_tree(directory))

    def lock(self, key: str, value: bytes | str = "", ttl: float = 15.0) -> Lock:
        """A lock that lapses when its holder dies; nothing is sent before `acquire`.

        A lock and the candidates of the same key contend with each other.

        Args:
            value: what followers of the key are told while it is held.
            ttl: seconds after the holder's death until another may hold it.
        """
        from .lock import Lock

        return Lock(self, key, value, ttl)

    def connect(self) -> None:
        """Ask the store once, to see that it answers.

        Raises:
            StoreUnavailable, AccessDenied: it does not.
        """
        self._run(self.core.backend.connect)

    def close(self) -> None:
        """Withdraw all candidates and locks, end all watches, sessions and connections.

        Idempotent, from any thread; bounded by the time that running work may
        take until its deadline and by one request.
        """
        if not self.core.nothing_to_end():
            self.core.call(self.core.close, self._callers())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def new_store(
    address: str,
    endpoints: str | Iterable[str] | None = None,
    *,
    clock: Clock | None = None,
    hooks: Iterable[Hook] = (),
    **options: Any,
) -> Store:
    """Open a store: by URL, or by a backend's name and its endpoints.

    `new_store("etcd://127.0.0.1:2379")`, or `new_store("etcd", ["127.0.0.1:2379"])`.
    Does no I/O: an unreachable store shows at the first call.

    Args:
        address: a URL, whose query may hold options, or a backend's name.
        endpoints: `host:port`, one or several, when `address` is a name.
        clock: another clock than the machine's, for tests (`leadership.testing.ManualClock`).
        hooks: callables that are told each event of this store.
        options: `max_clock_drift` (0.01), `request_timeout` (5 seconds),
            `strict_ttl` (False), and those of the backend.

    Raises:
        UnknownBackend: no installed backend has that name; the message names the nearest.
        MissingExtra: its packages are not installed; the message says which to install.
        ConfigurationError: an option or endpoint can never work.
    """
    return Store(open_core(address, endpoints, clock=clock, hooks=hooks, **options))


NewStore = new_store
"""`new_store`, under the name that people who come from Go look for."""
