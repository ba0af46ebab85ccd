"""Consul 1.8 and later, over HTTP: `consul://host:8500,host:8500?token=...&ca=...`.

An election at `service/leader` is that key itself, held by the leader's
session: `get` shows the leader's value, `list` the key. Those who wait have a
place each at `service/leader.waiting/<session>`. When the leader has gone in
good order the key is removed; when it died, the key may stay, held by nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

import msgspec

from ..backend import Address, Backend, Capability, Contender, Context, Entry, KVPair, Pairs
from ..errors import ConfigurationError
from ..options import check_tls_files, read_endpoint, read_options
from ..standing import Standing
from ._consul_agents import Access, Agents, NoRights
from ._consul_election import Election
from ._consul_keys import Keys
from ._consul_requests import LOCK_FLAGS, ConsulEntry
from ._consul_session import SessionOptions
from ._consul_watch import Snapshot, Target, Watches

_ROOM_FOR_THE_REST = 16 * 1024


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in the address or be given by keyword; times in seconds.

    `ca`, `cert` and `key` are paths of PEM files; any of them, or `tls=true`,
    switches TLS on. `session_ttl_min` is what the agents are configured with.
    """

    token: str | None = None
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    datacenter: str | None = None
    namespace: str | None = None
    consistency: Literal["default", "consistent", "stale"] = "default"
    lock_delay: float = 0.0
    node_health: bool = False
    session_ttl_min: float = 10.0


class ConsulBackend(Backend):
    """Consul's own lock idiom, interoperable with Go's `api.Lock` and `consul lock`.

    Consul lets a session lapse after twice its ttl, so another leads up to two
    ttl after the last renewal of one that died. A server under load may raise
    the ttl; what it granted is obeyed.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {
        Capability.FIFO,
        Capability.HANDOVER,
        Capability.MEMBERS,
    }
    minimum_ttl = 10.0
    # A transaction's body may have 512 KiB by default, and values in it are Base64.
    maximum_value_size: ClassVar[float] = (512 * 1024 - _ROOM_FOR_THE_REST) * 3 / 4
    conditions: ClassVar[str] = (
        "the token grows unless the datacenter is restored from an older snapshot"
    )

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        options = _checked_options(address)
        if not address.endpoints:
            raise ConfigurationError("give at least one agent: consul://127.0.0.1:8500")
        if address.path:
            raise ConfigurationError(
                f"consul:// takes no path, and has {address.path!r}: write it into the keys"
            )
        # The agents' own setting decides, which only their owner knows.
        self.minimum_ttl = options.session_ttl_min
        access = Access(
            token=options.token,
            tls=options.tls or any((options.ca, options.cert, options.key)),
            ca=options.ca,
            certificate=options.cert,
            key=options.key,
            datacenter=options.datacenter,
            namespace=options.namespace,
        )
        sessions = SessionOptions(options.lock_delay, options.node_health)
        self._agents = Agents(
            tuple(read_endpoint(each, 8500) for each in address.endpoints),
            access,
            context.request_timeout,
            context.clock,
        )
        self._watches = Watches(self._agents, context, options.consistency)
        self._keys = Keys(self._agents, context, sessions)
        self._election = Election(self._agents, self._watches, context, sessions)

    async def connect(self) -> None:
        # A token that may only work below a prefix gets an answer all the same.
        with contextlib.suppress(NoRights):
            await self.get("leadership/connect")

    async def close(self) -> None:
        await self._election.close()
        await self._watches.close()
        await self._agents.close()

    # --- keys ---

    async def get(self, key: str) -> KVPair | None:
        return _pair((await self._watches.read(Target(key))).entry)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        return await self._keys.put(key, value, ttl)

    async def delete(self, key: str) -> bool:
        return await self._keys.delete(key)

    async def list(self, directory: str) -> Pairs:
        return _pairs(await self._watches.read(_below(directory)))

    async def delete_tree(self, directory: str) -> None:
        await self._keys.delete_tree(directory)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        return await self._keys.atomic_put(key, value, previous, ttl)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        await self._keys.atomic_delete(key, previous)

    # --- watches ---

    async def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        async with contextlib.aclosing(self._watches.states(Target(key))) as states:
            async for seen in states:
                yield _pair(seen.entry)

    async def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        async with contextlib.aclosing(self._watches.states(_below(directory))) as states:
            async for seen in states:
                yield _pairs(seen)

    # --- elections ---

    def contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        return self._election.contender(key, value, ttl, own_session, guarded=False)

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        return self._election.contender(key, value, ttl, own_session, guarded=True)

    async def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        told: Entry | None = None
        first = True
        async with contextlib.aclosing(self._watches.states(Target(key))) as states:
            async for seen in states:
                leader = _leader(seen.entry)
                if first or leader != told:
                    yield leader
                first, told = False, leader

    async def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        told: tuple[Standing, ...] | None = None
        async with contextlib.aclosing(self._watches.states(_below(directory))) as states:
            async for seen in states:
                leaders = {entry.key: _leader(entry) for entry in seen.entries}
                # Who waits has a session, and nothing that names the key.
                now = tuple(
                    Standing(key, leader) for key, leader in sorted(leaders.items()) if leader
                )
                if now != told:
                    yield now
                told = now


def _leader(entry: ConsulEntry | None) -> Entry | None:
    """Who holds the key; one held by nobody, or used for something else, has no leader."""
    if entry is None or entry.session is None or entry.flags != LOCK_FLAGS:
        return None
    return Entry(entry.data, entry.token)


def _pair(entry: ConsulEntry | None) -> KVPair | None:
    return None if entry is None else KVPair(entry.key, entry.data, entry.modify_index)


def _pairs(seen: Snapshot) -> Pairs:
    # A key that ends in a slash is how Consul's own tools mark a folder.
    pairs = [_pair(entry) for entry in seen.entries if not entry.key.endswith("/")]
    return sorted((pair for pair in pairs if pair is not None), key=lambda pair: pair.key.encode())


def _below(directory: str) -> Target:
    """All descendants; Consul's own prefixes know no segments."""
    return Target(f"{directory}/" if directory else "", tree=True)


def _checked_options(address: Address) -> _Options:
    options = read_options(address, _Options)
    check_tls_files(options.ca, options.cert, options.key)
    if not 0 <= options.lock_delay <= 60:
        raise ConfigurationError(
            f"lock_delay={options.lock_delay:g}: give seconds from 0 to 60, as Consul takes them"
        )
    if not options.session_ttl_min > 0:
        raise ConfigurationError(
            f"session_ttl_min={options.session_ttl_min:g}: give seconds above 0, "
            "as the agents are configured"
        )
    return options
