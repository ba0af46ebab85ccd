"""etcd 3.4 and later, over gRPC: `etcd://host:2379,host:2379?user=...&ca=...`.

An election at `service/leader` keeps its entries below that key, as
`service/leader/<lease id in hex>`; `get` of the key itself shows nothing of
it, `list` shows the entries. Keys of elections must not contain each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterable
from typing import Any, ClassVar

import msgspec

from ..backend import Address, Backend, Capability, Contender, Context, Entry, KVPair, Pairs
from ..errors import (
    AccessDenied,
    ConfigurationError,
    HandleClosed,
    KeyExists,
    KeyModified,
    LeadershipError,
    StoreError,
    StoreUnavailable,
)
from ..options import check_tls_files, read_endpoint, read_options
from ..standing import Contending, Standing, standings_of
from ._etcd_connection import Connection, Credentials, NoRights
from ._etcd_election import Election
from ._etcd_requests import (
    EVENT_DELETE,
    created,
    deleting,
    end_of,
    is_contender,
    leased_election,
    prefix_of,
    putting,
    unchanged,
)
from ._etcd_watch import Watches
from ._grpc import etcdrpc

_ROOM_FOR_THE_REST = 16 * 1024


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in the address or be given by keyword.

    `ca`, `cert` and `key` are paths of PEM files; any of them, or `tls=true`,
    switches TLS on.
    """

    user: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class EtcdBackend(Backend):
    """etcd's own election idiom, interoperable with Go's `concurrency.Election` and `etcdctl`.

    The server may raise a ttl: it takes none below 1.5 times its election
    timeout (2 s with its defaults). What it granted is obeyed.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {
        Capability.HANDOVER,
        Capability.MEMBERS,
    }
    minimum_ttl: float = 1.0
    # etcd's limit for a request is 1.5 MiB, and key and condition are in it.
    maximum_value_size: ClassVar[float] = 1.5 * 1024 * 1024 - _ROOM_FOR_THE_REST
    conditions: ClassVar[str] = (
        "the token grows unless the cluster is restored from an old backup "
        "without raising its revision (etcdutl snapshot restore --bump-revision)"
    )

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        options = _checked_options(address)
        if not address.endpoints:
            raise ConfigurationError("give at least one server: etcd://127.0.0.1:2379")
        if address.path:
            raise ConfigurationError(
                f"etcd:// takes no path, and has {address.path!r}: write it into the keys"
            )
        credentials = Credentials(
            tls=options.tls or any((options.ca, options.cert, options.key)),
            ca=options.ca,
            certificate=options.cert,
            key=options.key,
            user=options.user,
            password=options.password,
        )
        self._connection = Connection(
            tuple(read_endpoint(each, 2379) for each in address.endpoints),
            credentials,
            context.request_timeout,
            context.clock,
        )
        self._watches = Watches(self._connection, context.clock)
        self._connection.on_abandon = self._watches.interrupt
        self._election = Election(self._connection, self._watches, context)
        self._ttl_leases = _TtlLeases()

    async def connect(self) -> None:
        # A user who may only work below a prefix gets an answer all the same.
        with contextlib.suppress(NoRights):
            await self._read(b"leadership/connect")

    async def close(self) -> None:
        await self._election.close()
        await self._watches.close()
        await self._connection.close()

    # --- keys ---

    async def _read(self, key: bytes, **more: Any) -> Any:
        """A linearizable read: never from a server that lags behind."""
        return await self._connection.call(
            lambda link: link.kv.Range, etcdrpc.RangeRequest(key=key, **more), repeatable=True
        )

    async def _write(self, request: Any) -> Any:
        """A transaction that must not be sent twice: its answer would be another."""
        return await self._connection.call(lambda link: link.kv.Txn, request, repeatable=False)

    async def get(self, key: str) -> KVPair | None:
        answer = await self._read(key.encode())
        return _pair(answer.kvs[0]) if answer.kvs else None

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        return await self._put(key, value, ttl, None)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        name = key.encode()
        condition = created(name, 0) if previous is None else unchanged(name, previous.index)
        return await self._put(key, value, ttl, condition)

    async def _put(self, key: str, value: bytes, ttl: float | None, condition: Any) -> KVPair:
        name = key.encode()
        lease = 0 if ttl is None else await self._grant(ttl)
        request = etcdrpc.PutRequest(key=name, value=value, lease=lease)
        answer = await self._write(
            etcdrpc.TxnRequest(
                compare=[] if condition is None else [condition], success=[putting(request)]
            )
        )
        if not answer.succeeded:
            await self._revoke(lease)
            if condition.target == etcdrpc.Compare.CREATE:
                raise KeyExists(f"{key!r} is there already: read it and give it as previous")
            raise KeyModified(f"{key!r} changed or went since it was read: read it again")
        now = self.context.clock.now()
        lapses_at = now if ttl is None else now + 2 * ttl
        written = answer.header.revision
        await self._revoke(self._ttl_leases.replace(key, written, lease, lapses_at, now))
        return KVPair(key, value, written)

    async def _grant(self, ttl: float) -> int:
        granted = await self._connection.call(
            lambda link: link.lease.LeaseGrant,
            etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl)),
            repeatable=False,
        )
        return int(granted.ID)

    async def _revoke(self, lease: int) -> None:
        """End a lease that nothing hangs on any more; if that fails it lapses by itself."""
        if not lease:
            return
        with contextlib.suppress(StoreError):
            await self._connection.call(
                lambda link: link.lease.LeaseRevoke,
                etcdrpc.LeaseRevokeRequest(ID=lease),
                repeatable=True,
            )

    async def delete(self, key: str) -> bool:
        answer = await self._write(etcdrpc.TxnRequest(success=[deleting(key.encode())]))
        await self._revoke(self._ttl_leases.drop(key, answer.header.revision))
        return bool(answer.responses[0].response_delete_range.deleted)

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        name = key.encode()
        answer = await self._write(
            etcdrpc.TxnRequest(compare=[unchanged(name, previous.index)], success=[deleting(name)])
        )
        if not answer.succeeded:
            raise KeyModified(f"{key!r} changed or went since it was read: read it again")
        await self._revoke(self._ttl_leases.drop(key, answer.header.revision))

    async def list(self, directory: str) -> Pairs:
        answer = await self._read(**_below(directory))
        return [_pair(each) for each in answer.kvs]

    async def delete_tree(self, directory: str) -> None:
        below = etcdrpc.RequestOp(
            request_delete_range=etcdrpc.DeleteRangeRequest(**_below(directory))
        )
        # The root is in no range of its own descendants' but the one of all keys.
        itself = [deleting(directory.encode())] if directory else []
        answer = await self._write(etcdrpc.TxnRequest(success=[*itself, below]))
        leases = self._ttl_leases.drop_tree(directory, answer.header.revision)
        await asyncio.gather(*map(self._revoke, leases))

    # --- watches ---

    async def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        answer = await self._read(key.encode())
        state = _pair(answer.kvs[0]) if answer.kvs else None
        async with self._feed(key.encode(), b"", answer.header.revision + 1) as feed:
            yield state
            while True:
                for event in await feed.next():
                    state = None if event.type == EVENT_DELETE else _pair(event.kv)
                yield state

    async def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        where = _below(directory)
        answer = await self._read(**where)
        pairs = {each.key: _pair(each) for each in answer.kvs}
        async with self._feed(where["key"], where["range_end"], answer.header.revision + 1) as feed:
            while True:
                yield [pairs[name] for name in sorted(pairs)]
                for event in await feed.next():
                    if event.type == EVENT_DELETE:
                        pairs.pop(event.kv.key, None)
                    else:
                        pairs[event.kv.key] = _pair(event.kv)

    @contextlib.asynccontextmanager
    async def _feed(
        self, key: bytes, range_end: bytes, revision: int
    ) -> AsyncGenerator[_Feed, None]:
        feed = _Feed()
        watch = self._watches.watch(key, range_end, revision, feed.take, feed.cut)
        try:
            yield feed
        finally:
            self._watches.cancel(watch)

    # --- elections ---

    def contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        return self._election.contender(key, value, ttl, own_session, guarded=False)

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        return self._election.contender(key, value, ttl, own_session, guarded=True)

    async def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        prefix = prefix_of(key)
        answer = await self._read(prefix, range_end=end_of(prefix))
        entries = {
            each.key: Entry(each.value, each.create_revision)
            for each in answer.kvs
            if is_contender(each.key, prefix)
        }
        told: Entry | None = None
        first = True
        async with self._feed(prefix, end_of(prefix), answer.header.revision + 1) as feed:
            while True:
                # The lowest create revision leads.
                leader = min(entries.values(), key=lambda entry: entry.token, default=None)
                if first or leader != told:
                    yield leader
                first, told = False, leader
                for event in await feed.next():
                    name = event.kv.key
                    if event.type == EVENT_DELETE:
                        entries.pop(name, None)
                    elif is_contender(name, prefix):
                        entries[name] = Entry(event.kv.value, event.kv.create_revision)

    async def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        where = _below(directory)
        answer = await self._read(**where)
        entries = {each.key: found for each in answer.kvs if (found := _contending(each))}
        told: tuple[Standing, ...] | None = None
        async with self._feed(where["key"], where["range_end"], answer.header.revision + 1) as feed:
            while True:
                now = standings_of(entries.values())
                if now != told:
                    yield now
                told = now
                for event in await feed.next():
                    found = None if event.type == EVENT_DELETE else _contending(event.kv)
                    if found is None:
                        entries.pop(event.kv.key, None)
                    else:
                        entries[event.kv.key] = found

    async def lease_left(self, lease: str) -> float | None:
        answer = await self._connection.call(
            lambda link: link.lease.LeaseTimeToLive,
            etcdrpc.LeaseTimeToLiveRequest(ID=int(lease, 16)),
            repeatable=True,
        )
        # In whole seconds; below zero where the lease has ended.
        return max(0.0, float(answer.TTL))


class _TtlLeases:
    """The leases of the keys that were put with a ttl: one that is replaced is not left to lapse.

    Answers may come in another order than the writes were done. So each method
    goes by the store's revision, and never names a lease that the key's last
    write, as far as it is known here, hangs on.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, int, float]] = {}
        self._look_at = 64

    def replace(self, key: str, revision: int, lease: int, lapses_at: float, now: float) -> int:
        """`key` was written at `revision`, on `lease` (0: none). Returns the lease to revoke."""
        before, written, _ = self._of.get(key, (0, 0, 0.0))
        if written > revision:
            return lease
        if lease:
            self._of[key] = lease, revision, lapses_at
            self._forget_lapsed(now)
        else:
            self._of.pop(key, None)
        return before

    def drop(self, key: str, revision: int) -> int:
        """`key` was not there at `revision`. Returns the lease to revoke."""
        lease, written, _ = self._of.get(key, (0, 0, 0.0))
        if written > revision:
            return 0
        self._of.pop(key, None)
        return lease

    def drop_tree(self, directory: str, revision: int) -> Iterable[int]:
        below = f"{directory}/" if directory else ""
        keys = [key for key in self._of if key == directory or key.startswith(below)]
        return [lease for key in keys if (lease := self.drop(key, revision))]

    def _forget_lapsed(self, now: float) -> None:
        # Looking at all of them only when they have doubled costs little for each.
        if len(self._of) >= self._look_at:
            self._of = {key: entry for key, entry in self._of.items() if entry[2] > now}
            self._look_at = max(64, 2 * len(self._of))


class _Feed:
    """Hands a watch's events to one consumer, who may be slow."""

    def __init__(self) -> None:
        # The last event of each key: what came before it no longer matters, and
        # a consumer who never comes back must not make this grow.
        self._events: dict[bytes, Any] = {}
        self._error: LeadershipError | None = None
        self._some = asyncio.Event()

    def take(self, events: Iterable[Any]) -> None:
        self._events.update((event.kv.key, event) for event in events)
        self._some.set()

    def cut(self, error: LeadershipError) -> None:
        """Told to the consumer, who reads anew: so it is known that we were cut off."""
        self._error = error
        self._some.set()

    async def next(self) -> Iterable[Any]:
        """The last event of each key since the last call.

        Raises:
            StoreUnavailable: the stream died, or cannot go on: read again.
            StoreError: the store refuses.
        """
        await self._some.wait()
        self._some.clear()
        if self._error is not None:
            if isinstance(self._error, (StoreUnavailable, AccessDenied, HandleClosed)):
                raise self._error
            raise StoreUnavailable(str(self._error))
        events, self._events = self._events, {}
        return events.values()


def _pair(kv: Any) -> KVPair:
    return KVPair(kv.key.decode(errors="replace"), kv.value, kv.mod_revision)


def _contending(kv: Any) -> Contending | None:
    key = leased_election(kv.key, kv.lease)
    if key is None:
        return None
    return Contending(key.decode(errors="replace"), kv.value, kv.create_revision, f"{kv.lease:x}")


def _below(directory: str) -> dict[str, bytes]:
    """The range of all descendants; of the root: all keys."""
    if not directory:
        return {"key": b"\0", "range_end": b"\0"}
    prefix = prefix_of(directory)
    return {"key": prefix, "range_end": end_of(prefix)}


def _checked_options(address: Address) -> _Options:
    options = read_options(address, _Options)
    check_tls_files(options.ca, options.cert, options.key)
    if options.password is not None and options.user is None:
        raise ConfigurationError("a password was given without a user")
    return options
