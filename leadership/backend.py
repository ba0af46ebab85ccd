"""What a store must be able to do: write a subclass of `Backend` and elections work on it.

Everything here is asynchronous and runs on the engine's event loop. Keys are
already checked and normalised (`service/swarm/leader`: no leading or trailing
slash), values are bytes, times are seconds.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from .clock import Clock, SystemClock
from .errors import NotSupported
from .events import Event
from .lease import Claim

if TYPE_CHECKING:
    from .contention import WaitingRoom
    from .standing import Standing


class Capability(StrEnum):
    """What a backend may offer; a call outside them raises `NotSupported`."""

    KV = "kv"
    """get, put, delete, exists, list, delete_tree."""
    TTL = "ttl"
    """`put` and `atomic_put` with a time to live."""
    CAS = "cas"
    """atomic_put and atomic_delete."""
    WATCH = "watch"
    """watch and watch_tree."""
    LOCK = "lock"
    """Locks that lapse when their holder dies."""
    ELECTION = "election"
    """Candidates and followers."""
    FENCING = "fencing"
    """Tokens grow from term to term, over restarts of the store too."""
    FIFO = "fifo"
    """Who waits longest leads next, and a change of leader wakes one waiter."""
    MEMBERS = "members"
    """The nodes that make up the store can be listed and changed while it runs."""
    HANDOVER = "handover"
    """`resign(to=...)`: the leader names the one that leads next."""
    SURVEY = "survey"
    """All elections below a prefix, for who only looks: the live page, `leadership top`."""


@dataclass(frozen=True, slots=True)
class KVPair:
    """One key of the store.

    Attributes:
        key: the full key.
        value: its bytes.
        index: grows with every change of the key; what `atomic_put` and `atomic_delete` compare.
    """

    key: str
    value: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Who leads an election, as the store tells it."""

    value: bytes
    token: int


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """What it takes to release an entry when the process that holds it is dead.

    Attributes:
        release: a function at the top level of a module that imports the standard library alone
            (and `leadership._guardian_wire`): that module is loaded by itself, in the guardian.
        arguments: its one argument: plain data (str, bytes, numbers, None, and tuples,
            lists and dicts of them). They may hold secrets: they go by a private socket.
    """

    release: Callable[[Mapping[str, Any]], None]
    arguments: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Membership:
    """The nodes that make up a store.

    Attributes:
        members: their addresses, sorted.
        joining: the list that follows, while a change to it is under way; else empty.
        retired: addresses that were removed: none of them can be added again.
        epoch: rises by one with each change.
    """

    members: tuple[str, ...]
    joining: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """A store's address, taken apart. Secrets in it are never shown.

    `scheme://user:password@endpoint,endpoint/path?option=value`
    """

    scheme: str
    endpoints: tuple[str, ...]
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Context:
    """What the library lends to a backend.

    Attributes:
        clock: the only source of time.
        random: the only source of chance.
        emit: tells the store's hooks of an event; never blocks.
        max_clock_drift: how far two clocks' rates may differ (0.01 is 1 %).
        request_timeout: seconds that one request may take.
        strict_ttl: raise, where the server grants another ttl than was asked for.
    """

    clock: Clock = field(default_factory=SystemClock)
    random: random.Random = field(default_factory=random.Random)
    emit: Callable[[Event], None] = lambda event: None
    max_clock_drift: float = 0.01
    request_timeout: float = 5.0
    strict_ttl: bool = False


class Contender(ABC):
    """One candidate's part in one election: at most one entry at any time.

    Made without I/O. Every method may be called again after it raised
    `StoreUnavailable`, and finds by the unique id of its own entry what an
    earlier attempt of unknown outcome did. Cancelling a call leaves at most an
    entry that `leave` removes.

    Attributes:
        on_answer: set by the caller, if at all: to be called in `campaign` each
            time that the store has answered and the wait for the lead goes on.
        on_new_plan: likewise: to be called when `release_plan` would say something else than
            before, while our entry leads.
        candidate_id: set by the caller; by it a leader may name who is next. May repeat.
    """

    on_answer: Callable[[], None] | None = None
    on_new_plan: Callable[[], None] | None = None
    candidate_id: str = ""

    @abstractmethod
    async def campaign(self, lost: Callable[[str], None]) -> Claim:
        """Enter (or find) our entry, wait until it leads, prove it by reading it, return the claim.

        After the return `lost(reason)` is called, once, from the event loop,
        as soon as the store says that this entry is over (deleted, session
        ended). The deadline is not its matter: the caller watches the lease.

        A lease or session lost while waiting means a new entry, here, not an error.

        Raises:
            StoreUnavailable: try again later; also when the store went out of
                reach while we waited. Called again it keeps the entry's place.
            StoreError: the store refuses.
        """

    @abstractmethod
    async def proclaim(self, value: bytes) -> None:
        """Change the value of our leading entry, and of those entered later.

        Raises:
            NotLeader: the entry no longer leads.
        """

    @abstractmethod
    async def leave(self) -> None:
        """Remove our entry, if it is there and ours; return when the store confirmed.

        Once called, that entry never leads again: `campaign` finishes an
        unconfirmed removal first. Idempotent. Never ends a session that others use.

        Raises:
            StoreUnavailable: the outcome is unknown; call again.
        """

    def release_plan(self) -> ReleasePlan | None:
        """How to release our leading entry when this process is dead; None: that needs nothing.

        Asked of a `guarded_contender`, whenever it has won, and after `on_new_plan`.
        """
        return None

    async def find_successor(self, name: str) -> None:
        """Return if a contender of that name, other than ours, is known to wait for the key.

        Changes nothing. With `hand_over`, of backends with `Capability.HANDOVER`.

        Raises:
            NoSuccessor: none is, also not in the moment that news of one may take.
        """
        raise NotSupported("this backend's leaders cannot name who leads next: resign to anybody")

    async def hand_over(self, name: str) -> None:
        """As `leave`, and if a contender of that name still waits, it leads next and nobody else.

        Raises:
            StoreUnavailable: the outcome is unknown; call again.
        """
        raise NotSupported("this backend's leaders cannot name who leads next: resign to anybody")

    @abstractmethod
    async def close(self) -> None:
        """Give back the session (ended with its last user) and stop all watching.

        Called last, after `leave` succeeded or was given up. Does not raise.
        """


Pairs = list[KVPair]
"""`list` is a method of every backend, so inside the class the type needs another name."""


class Backend(ABC):
    """A store. Subclasses name their capabilities and implement what these promise.

    `contend` and `observe` have a default implementation over TTL keys,
    compare-and-swap and watch; a store with an election idiom of its own
    overrides them.

    The constructor does no I/O: it checks its options and raises
    `ConfigurationError` for what can never work.

    Attributes:
        capabilities: what this backend offers.
        minimum_ttl: the shortest ttl, in seconds, that the store documents.
        maximum_value_size: bytes; larger values are refused before they are sent.
        conditions: what the fencing token's growth rests on, in words, or "".
        waiting_room: for the default contenders of a store that is all in one process,
            so that they can hand over; else None.
    """

    capabilities: ClassVar[frozenset[Capability]]
    minimum_ttl: float = 0.0
    maximum_value_size: ClassVar[float] = math.inf
    conditions: ClassVar[str] = ""
    waiting_room: WaitingRoom | None = None

    def __init__(self, address: Address, context: Context) -> None:
        self.address = address
        self.context = context

    async def connect(self) -> None:
        """Make sure that the store answers, once.

        Raises:
            StoreUnavailable, AccessDenied: it does not.
        """
        await self.get("leadership/connect")

    @abstractmethod
    async def close(self) -> None:
        """End all sessions, watches and connections. Idempotent, bounded, never raises."""

    # --- keys: Capability.KV ---

    async def get(self, key: str) -> KVPair | None:
        """The pair at `key` as of now (never a stale read), or None."""
        raise self._lacks("get", Capability.KV)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        """Write unconditionally; with `ttl` the key vanishes unless written again in time."""
        raise self._lacks("put", Capability.KV)

    async def delete(self, key: str) -> bool:
        """Remove the key; False when it was not there."""
        raise self._lacks("delete", Capability.KV)

    async def list(self, directory: str) -> Pairs:
        """All descendants of `directory` ("" is the root), by path segment, sorted by key."""
        raise self._lacks("list", Capability.KV)

    async def delete_tree(self, directory: str) -> None:
        """Remove `directory` itself and all its descendants."""
        raise self._lacks("delete_tree", Capability.KV)

    # --- compare-and-swap: Capability.CAS ---

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        """Write if the key's index is still that of `previous`; None: only create.

        Raises:
            KeyExists: `previous` is None and the key is there.
            KeyModified: the key changed or went since `previous`.
        """
        raise self._lacks("atomic_put", Capability.CAS)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        """Remove if the key's index is still that of `previous`.

        Raises:
            KeyModified: the key changed or went since `previous`.
        """
        raise self._lacks("atomic_delete", Capability.CAS)

    # --- watches: Capability.WATCH ---

    def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        """The present state first, then each later one; None where the key is not there.

        States may be coalesced, the last is never missed. Raises
        `StoreUnavailable` when cut off: the caller opens a new one. An async
        generator; closing it ends the watch at the store.
        """
        raise self._lacks("watch", Capability.WATCH)

    def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        """As `watch`, of what `list(directory)` gives."""
        raise self._lacks("watch_tree", Capability.WATCH)

    # --- elections: Capability.ELECTION and Capability.LOCK ---

    def contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        """A part in the election at `key`; no I/O yet.

        Args:
            own_session: do not share a session with other candidates and locks.
        """
        from .contention import CompareAndSwapContender

        self._need(Capability.KV, Capability.CAS, Capability.TTL, Capability.WATCH)
        return CompareAndSwapContender(self, key, value, ttl)

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        """As `contender`, one whose entry a guardian can release when this process is dead.

        It shares no session with others than such: who asked for no guardian may have
        work outside of this process, and keeps the ttl.

        Raises:
            NotSupported: that cannot be, with this store or these settings of it.
        """
        raise NotSupported(
            f"the backend {self.address.scheme!r} has no release for the guardian: after a crash "
            "the key lapses by its ttl"
        )

    def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        """Who leads at `key`: the present state first, then each later one; None: nobody.

        The same promises as `watch`.
        """
        from .contention import observe_by_watch

        self._need(Capability.KV, Capability.WATCH)
        return observe_by_watch(self, key)

    # --- elections, for who only looks: Capability.SURVEY ---

    def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        """All elections below `directory` ("" is the root), sorted by key, now and at each change.

        An election that nobody leads may be left out. Writes nothing; one watch
        where the store can. The same promises as `watch`.
        """
        from .standing import standings_by_watch

        self._need(Capability.KV, Capability.WATCH)
        return standings_by_watch(self, directory)

    async def lease_left(self, lease: str) -> float | None:
        """Seconds that a leader's lease lasts if it is not renewed; None: nobody can tell.

        Args:
            lease: of a `Standing`, not empty.

        Raises:
            StoreError: it could not be asked.
        """
        return None

    # --- nodes: Capability.MEMBERS ---

    async def members(self) -> Membership:
        """The nodes that make up the store, as one that is reached goes by them."""
        raise self._lacks("members", Capability.MEMBERS)

    async def change_members(
        self, add: Collection[str], remove: Collection[str], timeout: float | None
    ) -> Membership:
        """See `Store.change_members`."""
        raise self._lacks("change_members", Capability.MEMBERS)

    # --- means ---

    def _need(self, *needed: Capability) -> None:
        missing = [c for c in needed if c not in self.capabilities]
        if missing:
            raise self._lacks("an election", *missing)

    def _lacks(self, what: str, *capabilities: Capability) -> NotSupported:
        names = ", ".join(capabilities)
        return NotSupported(
            f"{what} needs the capability {names}, which the backend "
            f"{self.address.scheme!r} does not have; choose another backend"
        )
