"""ZooKeeper 3.5 and later: `zookeeper://host:2181,host:2181/chroot?user=...&ca=...`, or `zk://`.

An election at `service/leader` keeps its entries below that key, one node per
contender, named as kazoo's or Curator's recipes name theirs. `get` of the key
itself shows nothing of it, `list` shows the entries.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, ClassVar, Literal

import msgspec
from kazoo.exceptions import (
    BadVersionError,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from kazoo.security import CREATOR_ALL_ACL, OPEN_ACL_UNSAFE, READ_ACL_UNSAFE

from .._guardian_wire import tls
from ..backend import Address, Backend, Capability, Contender, Context, Entry, KVPair, Pairs
from ..errors import (
    ConfigurationError,
    KeyExists,
    KeyModified,
    NotSupported,
    SessionLost,
    StoreError,
    StoreUnavailable,
)
from ..options import check_tls_files, read_endpoint, read_options
from ..standing import Contending, Standing, standings_of
from ._zookeeper_connection import Connection, Settings, SharedConnection
from ._zookeeper_election import Election
from ._zookeeper_names import NAMES
from ._zookeeper_observation import leaders
from ._zookeeper_tree import Requests, Tree, data_of, fresh, make_parents, node_states
from ._zookeeper_ttl import TtlKeys

_ROOM_FOR_THE_REST = 16 * 1024

# What ZooKeeper takes in no path, beyond what no key of the library may have.
_FORBIDDEN = re.compile("[\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff]")

_ACLS = {
    "open": OPEN_ACL_UNSAFE,
    "creator": CREATOR_ALL_ACL,
    "creator-read": CREATOR_ALL_ACL + READ_ACL_UNSAFE,
}


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in the address or be given by keyword.

    `ca`, `cert` and `key` are paths of PEM files; any of them, or `tls=true`,
    switches TLS on. Seconds for `session_timeout`, which is that of the
    session for keys and followers.
    """

    user: str | None = None
    password: str | None = None
    sasl: Literal["DIGEST-MD5", "GSSAPI"] | None = None
    acl: Literal["open", "creator", "creator-read"] | None = None
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    names: Literal["kazoo", "curator"] = "kazoo"
    standalone: bool = False
    sessions: str = "leadership-sessions"
    session_timeout: float = 6.0


class ZooKeeperBackend(Backend):
    """Ephemeral sequential nodes, in one election with `Election` of kazoo or `LeaderLatch`.

    The ttl is the session timeout, which the server may change: by default it
    grants 2 to 20 of its ticks, 4 to 40 s. What it granted is obeyed.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {
        Capability.HANDOVER,
        Capability.MEMBERS,
    }
    minimum_ttl: float = 0.5
    # The server's limit for a request is 1 MiB, and the path is in it.
    maximum_value_size: ClassVar[float] = 1024 * 1024 - _ROOM_FOR_THE_REST
    conditions: ClassVar[str] = (
        "the token grows unless the ensemble's data are lost or replaced by an old backup"
    )

    def __init__(self, address: Address, context: Context) -> None:
        super().__init__(address, context)
        options = _checked_options(address)
        if not address.endpoints:
            raise ConfigurationError("give at least one server: zookeeper://127.0.0.1:2181")
        servers = [read_endpoint(each, 2181) for each in address.endpoints]
        context.random.shuffle(servers)
        root = f"/{address.path.strip('/')}" if address.path.strip("/") else ""
        credentials = f"{options.user}:{options.password or ''}"
        has_digest = options.user is not None and options.sasl is None
        acl = options.acl or (
            "open" if options.user is None and options.sasl is None else "creator"
        )
        self._settings = Settings(
            servers=tuple(servers),
            root=root,
            acl=_ACLS[acl],
            tls=_tls(options),
            tls_files=_tls_files(options),
            auth_data=(("digest", credentials),) if has_digest else (),
            sasl_options=_sasl(options),
        )
        sessions = self._settings.path_of(options.sessions.strip("/"))
        self._hidden = frozenset({sessions, "/zookeeper"})
        self._names = NAMES[options.names]
        self._shared = SharedConnection(self._settings, context, options.session_timeout)
        self._ttl_keys = TtlKeys(self._settings, context)
        self._election = Election(
            self._settings, context, self._names, sessions, standalone=options.standalone
        )

    async def close(self) -> None:
        await self._election.close()
        await self._ttl_keys.close()
        await self._shared.close()

    def _path(self, key: str) -> str:
        path = self._settings.path_of(key)
        if _FORBIDDEN.search(key):
            raise ConfigurationError(f"ZooKeeper takes not all characters of the key {key!r}")
        if path == "/zookeeper" or path.startswith("/zookeeper/"):
            raise ConfigurationError("the key 'zookeeper' is the server's own: use another")
        return path

    # --- keys ---

    async def get(self, key: str) -> KVPair | None:
        found = await _read(self._shared, self._path(key))
        return None if found is None or found[0] is None else _pair(key, *found)

    async def put(self, key: str, value: bytes, ttl: float | None = None) -> KVPair:
        path = self._path(key)
        if ttl is None:
            with contextlib.suppress(NoNodeError):
                stat = await self._shared.request(
                    lambda client: client.set_async(path, value), NoNodeError
                )
                if not stat.ephemeralOwner:
                    self._ttl_keys.forget(path)
                    return KVPair(key, value, stat.mzxid)
        return await self._write(key, path, value, ttl, lambda found: None)

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None = None
    ) -> KVPair:
        def check(found: _Found | None) -> None:
            is_there = found is not None and found[0] is not None
            if previous is None and is_there:
                raise KeyExists(f"{key!r} is there already: read it and give it as previous")
            if previous is not None and (not is_there or _index(found) != previous.index):
                raise KeyModified(f"{key!r} changed or went since it was read: read it again")

        return await self._write(key, self._path(key), value, ttl, check)

    async def _write(
        self, key: str, path: str, value: bytes, ttl: float | None, check: Any
    ) -> KVPair:
        """Write what passes `check`, in one step: nobody sees a key without its value.

        Args:
            check: is given what is there, and raises what then speaks against the write.
        """
        requests: Requests = self._shared
        session = 0
        if ttl is not None:
            connection = await self._ttl_keys.connection(ttl)
            requests, session = connection, connection.id
        while True:
            found = await _read(requests, path)
            check(found)
            sent_at = self.context.clock.now()
            try:
                stat = await _write_over(requests, path, value, found, session)
            except NoNodeError:
                if found is None:
                    await make_parents(requests, path)
                continue
            except (NodeExistsError, BadVersionError):
                continue
            except NotEmptyError:
                raise StoreError(
                    f"{key!r} has keys below it, and ZooKeeper's keys with a ttl can have none"
                ) from None
            except NoChildrenForEphemeralsError:
                raise StoreError(
                    f"{key!r} is below a key with a ttl, and ZooKeeper's can have none below them"
                ) from None
            except SessionLost as error:
                raise StoreUnavailable(
                    f"whether {key!r} was written is not known: {error}"
                ) from None
            if ttl is None:
                self._ttl_keys.forget(path)
            else:
                self._ttl_keys.written(path, ttl, sent_at, stat.mzxid)
            return KVPair(key, value, stat.mzxid)

    async def delete(self, key: str) -> bool:
        path = self._path(key)
        while True:
            found = await _read(self._shared, path)
            if found is None or found[0] is None:
                return False
            if await self._remove(path, found[1]):
                return True

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        path = self._path(key)
        while True:
            found = await _read(self._shared, path)
            if found is None or found[0] is None or _index(found) != previous.index:
                raise KeyModified(f"{key!r} changed or went since it was read: read it again")
            if await self._remove(path, found[1]):
                return

    async def _remove(self, path: str, stat: Any) -> bool:
        """Remove the key if it is as `stat` says; a node with others below it loses its data."""
        try:
            if stat.numChildren:
                await self._shared.request(
                    lambda client: client.set_async(path, None, stat.version),
                    NoNodeError,
                    BadVersionError,
                )
            else:
                await self._shared.request(
                    lambda client: client.delete_async(path, stat.version),
                    NoNodeError,
                    BadVersionError,
                    NotEmptyError,
                )
        except (NoNodeError, BadVersionError, NotEmptyError):
            return False
        self._ttl_keys.forget(path)
        return True

    async def list(self, directory: str) -> Pairs:
        return await self._tree(directory).pairs(self._shared)

    async def delete_tree(self, directory: str) -> None:
        await self._tree(directory).remove(self._shared)

    def _tree(self, directory: str) -> Tree:
        return Tree(self._path(directory), directory, self._hidden)

    # --- watches ---

    async def watch(self, key: str) -> AsyncGenerator[KVPair | None, None]:
        path = self._path(key)
        async with self._watching() as connection:
            async with contextlib.aclosing(node_states(connection, path, key)) as states:
                async for state in states:
                    yield state

    async def watch_tree(self, directory: str) -> AsyncGenerator[Pairs, None]:
        tree = self._tree(directory)
        async with self._watching() as connection:
            async with contextlib.aclosing(tree.states(connection)) as states:
                async for state in states:
                    yield state

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncGenerator[Connection, None]:
        try:
            yield await self._shared.connection()
        except SessionLost as error:
            raise StoreUnavailable(f"the watch ended: {error}") from None

    # --- elections ---

    def contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        self._path(key)
        return self._election.contender(key, value, ttl, own_session, guarded=False)

    def guarded_contender(self, key: str, value: bytes, ttl: float, own_session: bool) -> Contender:
        if self._settings.sasl_options is not None:
            raise NotSupported(
                "the guardian does not speak SASL to ZooKeeper: give user and password without "
                "sasl, or a client certificate, or do without a guardian"
            )
        self._path(key)
        return self._election.contender(key, value, ttl, own_session, guarded=True)

    async def observe(self, key: str) -> AsyncGenerator[Entry | None, None]:
        path = self._path(key)
        async with self._watching() as connection:
            async with contextlib.aclosing(leaders(connection, path, self._names)) as entries:
                async for entry in entries:
                    yield entry

    async def elections(self, directory: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        tree = Tree(self._path(directory), directory, self._hidden, lambda stat: stat.czxid)
        told: tuple[Standing, ...] | None = None
        async with self._watching() as connection:
            async with contextlib.aclosing(tree.states(connection)) as states:
                async for pairs in states:
                    now = standings_of(self._contending(pairs))
                    if now != told:
                        yield now
                    told = now

    def _contending(self, pairs: Pairs) -> Iterator[Contending]:
        for pair in pairs:
            election, _, name = pair.key.rpartition("/")
            if election and self._names.counter(name) is not None:
                yield Contending(election, pair.value, pair.index)


_Found = tuple[bytes | None, Any]


def _index(found: _Found | None) -> int:
    return 0 if found is None else int(found[1].mzxid)


def _pair(key: str, data: bytes | None, stat: Any) -> KVPair:
    return KVPair(key, data or b"", stat.mzxid)


async def _read(requests: Requests, path: str) -> _Found | None:
    """A node's data and stat, as the leader has them; None where there is none."""
    try:
        data, stat = await requests.request(
            fresh(path, data_of(path)), NoNodeError, repeatable=True
        )
    except NoNodeError:
        return None
    return data, stat


async def _write_over(
    requests: Requests, path: str, value: bytes, found: _Found | None, session: int
) -> Any:
    """Write over what was found, if it is still that; returns the node's new stat.

    Args:
        session: whose ephemeral node it is to be; 0: nobody's.
    """
    if found is None:
        _, stat = await requests.request(
            lambda client: client.create_async(
                path, value, ephemeral=bool(session), include_data=True
            ),
            NoNodeError,
            NodeExistsError,
            NoChildrenForEphemeralsError,
        )
        return stat
    version, owner = found[1].version, found[1].ephemeralOwner
    if owner == session:
        return await requests.request(
            lambda client: client.set_async(path, value, version), NoNodeError, BadVersionError
        )

    def replace(client: Any) -> Any:
        # A node cannot change its owner. The last step tells the new one's stat.
        transaction = client.transaction()
        transaction.delete(path, version)
        transaction.create(path, value, ephemeral=bool(session))
        transaction.set_data(path, value, 0)
        return transaction.commit_async()

    results = await requests.request(replace, NoNodeError, BadVersionError, NotEmptyError)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, RolledBackError):
            raise result
    return results[-1]


def _checked_options(address: Address) -> _Options:
    options = read_options(address, _Options)
    check_tls_files(options.ca, options.cert, options.key)
    if options.password is not None and options.user is None:
        raise ConfigurationError("a password was given without a user")
    if options.sasl == "DIGEST-MD5" and options.user is None:
        raise ConfigurationError("sasl=DIGEST-MD5 needs user and password")
    if not options.session_timeout > 0:
        raise ConfigurationError("give session_timeout in seconds above 0")
    if not options.sessions.strip("/"):
        raise ConfigurationError("sessions is a path such as 'leadership-sessions'")
    return options


def _tls_files(options: _Options) -> Mapping[str, str | None] | None:
    if not (options.tls or any((options.ca, options.cert, options.key))):
        return None
    return tls(options.ca, options.cert, options.key)


def _tls(options: _Options) -> ssl.SSLContext | None:
    if not (options.tls or any((options.ca, options.cert, options.key))):
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the TLS files do not fit: {error}") from error
    return context


def _sasl(options: _Options) -> dict[str, Any] | None:
    if options.sasl is None:
        return None
    if options.sasl == "GSSAPI":
        return {"mechanism": "GSSAPI", "service": "zookeeper"}
    return {
        "mechanism": "DIGEST-MD5",
        "service": "zookeeper",
        "principal": "zk-sasl-md5",
        "username": options.user,
        "password": options.password or "",
    }
