"""Where a round is fought: a store's servers, each candidate's own line to them, an operator."""

from __future__ import annotations

import base64
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from kazoo.exceptions import NoNodeError

from leadership.backends._consul_requests import places_of
from leadership.retry import DEFAULT_RETRY
from tests.network_namespaces import Network, can_be_made
from tests.peers_cluster import SECRET
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.consul_client import ConsulClient
from tests.servers.etcd import EtcdCluster, EtcdServer
from tests.servers.etcd_client import EtcdClient
from tests.servers.fault_proxy import FaultProxy, Mode
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.server import Server, Started
from tests.servers.zookeeper import ZooKeeperClient, ZooKeeperEnsemble, ZooKeeperServer

from .process import Process

SLOTS = 3
"""Candidates at a time; each time one starts again it takes the same slot."""

KEY = "service/leader"

_MARGIN = DEFAULT_RETRY.maximum + 3.0
"""Seconds: whoever was cut off tries again after so long at most, on a busy machine."""


class Line(Protocol):
    """One candidate's network."""

    modes: frozenset[Mode]

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        """Change what happens to all that passes, in one of the `modes`; `delay` in seconds."""

    def lose_reply_to(self, request: bytes) -> None:
        """Once these bytes go to a server, nothing comes back from it."""

    def has_lost_reply(self) -> bool:
        """Whether they have gone since."""

    def close(self) -> None:
        """Drop all."""


class RelayedLine:
    """A relay to each of the servers."""

    modes = frozenset(Mode)

    def __init__(self, targets: Sequence[str], chance: random.Random) -> None:
        self.relays = []
        for target in targets:
            host, _, port = target.rpartition(":")
            self.relays.append(FaultProxy(int(port), host, random.Random(chance.random())))

    @property
    def endpoint(self) -> str:
        """The servers, as this candidate is told of them."""
        return ",".join(relay.endpoint for relay in self.relays)

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        for relay in self.relays:
            relay.set(mode, delay)

    def lose_reply_to(self, request: bytes) -> None:
        for relay in self.relays:
            relay.lose_reply_to(request)

    def has_lost_reply(self) -> bool:
        return any(relay.mode is Mode.DOWN for relay in self.relays)

    def close(self) -> None:
        for relay in self.relays:
            relay.close()


class MachineLine:
    """The cable of a machine of its own, among others that are members too."""

    modes = frozenset({Mode.PASS, Mode.STALL, Mode.UP, Mode.DOWN})

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._number = number

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        for other in range(len(self._network.hosts)):
            if other != self._number and mode in (Mode.STALL, Mode.UP):
                self._network.cut(self._number, other)
            if other != self._number and mode in (Mode.STALL, Mode.DOWN):
                self._network.cut(other, self._number)
        if mode is Mode.PASS:
            self._network.heal()

    def lose_reply_to(self, request: bytes) -> None:
        raise NotImplementedError

    def has_lost_reply(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Ground(Started, ABC):
    """A store, for the time of a `with` block.

    Attributes:
        backend: its name.
        ttl: seconds, of the candidates.
        expiry: seconds after a leader's death until another leads, as a rule.
        servers: to be killed and paused; none where the candidates are the store.
        lines: by slot.
        token_ttl: seconds after which the store forgets a client that asked for nothing.
        session_request, entry_request: bytes by which the request that makes a session,
            or an entry, is known on the line.
    """

    backend: str
    ttl: float
    expiry: float
    servers: Sequence[Server] = ()
    lines: Sequence[Line] = ()
    token_ttl: int | None = None
    session_request = b""
    entry_request = KEY.encode() + b"/"

    @property
    def bound(self) -> float:
        """Seconds without a fault within which there is a leader, on a busy machine."""
        return self.expiry + _MARGIN

    def command(self, slot: int) -> tuple[str, ...]:
        """What a process of this slot is run under."""
        return ()

    @property
    def majority(self) -> int:
        """How many servers are needed."""
        return len(self.servers) // 2 + 1

    @abstractmethod
    def url(self, slot: int) -> str:
        """The store's address for the candidate in this slot."""

    def entries(self) -> list[str]:
        """Whose entries the store has for the election: one name for each."""
        return []

    def remove_entry(self) -> None:
        """As an operator: delete the leader's entry."""
        raise NotImplementedError

    def end_session(self, leader: Process) -> None:
        """As an operator: end the leader's lease or session."""
        raise NotImplementedError

    def remains(self) -> list[str]:
        """All entries and sessions that there are."""
        return []


class _Operated(Protocol):
    @property
    def endpoints(self) -> list[str]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


C = TypeVar("C", bound=_Operated)


class _ServedGround(Ground, Generic[C]):
    """On servers of its own."""

    lines: Sequence[RelayedLine] = ()

    def __init__(self, client: C, servers: Sequence[Server], chance: random.Random) -> None:
        self.client = client
        self.servers = servers
        self._chance = chance

    def start(self) -> None:
        self.client.start()
        self.lines = [RelayedLine(self.client.endpoints, self._chance) for _ in range(SLOTS)]

    def stop(self) -> None:
        for line in self.lines:
            line.close()
        self.client.stop()


class EtcdGround(_ServedGround[Any]):
    backend = "etcd"
    ttl = 1.0
    expiry = 1.5 * ttl
    session_request = b"LeaseGrant"
    client: EtcdClient

    def __init__(self, clustered: bool, chance: random.Random) -> None:
        if clustered:
            cluster = EtcdCluster()
            super().__init__(cluster, cluster.members, chance)
        else:
            self.token_ttl = 2
            server = EtcdServer(auth=True, auth_token_ttl=self.token_ttl)
            super().__init__(server, [server], chance)

    def url(self, slot: int) -> str:
        user = self.client.user
        login = "" if user is None else f"{user.name}:{user.password}@"
        return f"etcd://{login}{self.lines[slot].endpoint}"

    def entries(self) -> list[str]:
        return [base64.b64decode(pair["value"]).decode() for pair in self._pairs()]

    def remove_entry(self) -> None:
        for key in self._leading_key():
            self._ctl("del", key)

    def end_session(self, leader: Process) -> None:
        for key in self._leading_key():
            self._ctl("lease", "revoke", key.rpartition("/")[2])

    def remains(self) -> list[str]:
        leases = self._ctl("lease", "list").splitlines()[1:]
        return [*self.entries(), *(f"lease {lease}" for lease in leases if lease)]

    def _ctl(self, *arguments: str) -> str:
        # Its own 2 s to connect and log in are little on a busy machine.
        return self.client.ctl(
            "--dial-timeout=30s", "--command-timeout=30s", *arguments, timeout=40
        )

    def _leading_key(self) -> list[str]:
        """One, or none."""
        ordered = sorted(self._pairs(), key=lambda pair: int(pair["create_revision"]))
        return [base64.b64decode(first["key"]).decode() for first in ordered[:1]]

    def _pairs(self) -> list[dict[str, str]]:
        found = json.loads(self._ctl("get", "--prefix", f"{KEY}/", "--write-out=json"))
        pairs: list[dict[str, str]] = found.get("kvs", [])
        return pairs


class ConsulGround(_ServedGround[Any]):
    backend = "consul"
    ttl = 1.0
    # A session lives for up to twice its ttl.
    expiry = 2 * ttl
    session_request = b"session/create"
    entry_request = b'"lock"'
    client: ConsulClient

    def __init__(self, clustered: bool, chance: random.Random) -> None:
        if clustered:
            cluster = ConsulCluster()
            super().__init__(cluster, cluster.members, chance)
        else:
            server = ConsulServer()
            super().__init__(server, [server], chance)

    def url(self, slot: int) -> str:
        return self.client.url_of(self.lines[slot].endpoint)

    def entries(self) -> list[str]:
        holder = self.client.holder(KEY)
        waiting = [each.rpartition("/")[2] for each in self.client.keys(places_of(KEY))]
        return [*([] if holder is None else [holder]), *waiting]

    def remove_entry(self) -> None:
        self.client.delete(KEY)

    def end_session(self, leader: Process) -> None:
        holder = self.client.holder(KEY)
        if holder is not None:
            self.client.destroy_session(holder)

    def remains(self) -> list[str]:
        return [*self.entries(), *(f"session {each}" for each in self.client.sessions())]


class ZooKeeperGround(_ServedGround[Any]):
    backend = "zookeeper"
    ttl = 1.0
    expiry = 1.5 * ttl
    # Of the protocol's version, with which every connection begins.
    session_request = bytes(4)
    client: ZooKeeperClient

    def __init__(self, clustered: bool, chance: random.Random) -> None:
        if clustered:
            ensemble = ZooKeeperEnsemble()
            super().__init__(ensemble, ensemble.members, chance)
        else:
            server = ZooKeeperServer()
            super().__init__(server, [server], chance)

    def url(self, slot: int) -> str:
        return f"zookeeper://{self.lines[slot].endpoint}"

    def entries(self) -> list[str]:
        with self.client.client() as operator:
            return [value.decode() for _, _, value in self._nodes(operator)]

    def remove_entry(self) -> None:
        with self.client.client() as operator:
            for _, path, _ in sorted(self._nodes(operator))[:1]:
                operator.delete(path)

    def end_session(self, leader: Process) -> None:
        # Only its owner knows the password that a session is ended by.
        leader.order(f"expire {self.client.endpoint}")

    def remains(self) -> list[str]:
        return [*self.entries(), *(f"session {each}" for each in self.client.sessions())]

    def _nodes(self, operator: Any) -> list[tuple[int, str, bytes]]:
        """The entries with the transactions that made them, their paths and values."""
        nodes = []
        try:
            for name in operator.get_children(f"/{KEY}"):
                value, stat = operator.get(f"/{KEY}/{name}")
                nodes.append((stat.czxid, f"/{KEY}/{name}", value))
        except NoNodeError:
            # One left meanwhile, or nobody ever came.
            return nodes
        return nodes


class PeersGround(Ground):
    """No servers: each candidate is a member."""

    backend = "peers"
    ttl = 1.0
    expiry = 1.5 * ttl

    def __init__(self, states: Path | None) -> None:
        self._states = states
        self.members: list[str] = []

    def url(self, slot: int) -> str:
        options = [
            f"address={self.members[slot]}",
            f"listen={self.listen(slot)}",
            f"secret={SECRET.replace(' ', '%20')}",
            f"ttl_ceiling={self.ttl:g}",
            "wall_clock_skew=0",
            "bootstrap=1",
        ]
        if self._states is not None:
            options.append(f"state_dir={self._states / str(slot)}")
        return f"peers://{','.join(self.members)}?{'&'.join(options)}"

    @abstractmethod
    def listen(self, slot: int) -> str:
        """Where this member listens."""


class RelayedPeersGround(PeersGround):
    """Each member is behind a relay for all that is sent to it."""

    lines: Sequence[RelayedLine] = ()

    def __init__(self, states: Path | None, chance: random.Random) -> None:
        super().__init__(states)
        self._chance = chance
        self._listen = [f"{LOOPBACK}:{free_port()}" for _ in range(SLOTS)]

    def start(self) -> None:
        self.lines = [RelayedLine([address], self._chance) for address in self._listen]
        self.members = [line.endpoint for line in self.lines]

    def stop(self) -> None:
        for line in self.lines:
            line.close()

    def listen(self, slot: int) -> str:
        return self._listen[slot]


class ScatteredPeersGround(PeersGround):
    """Each member is on a machine of its own: root on Linux only."""

    def __init__(self, states: Path | None) -> None:
        super().__init__(states)
        self._network = Network(SLOTS)

    def start(self) -> None:
        self._network.start()
        self.lines = [MachineLine(self._network, slot) for slot in range(SLOTS)]
        self.members = [f"{host}:7000" for host in self._network.hosts]

    def stop(self) -> None:
        self._network.close()

    def listen(self, slot: int) -> str:
        return self.members[slot]

    def command(self, slot: int) -> tuple[str, ...]:
        return tuple(self._network.command(slot))


_SERVED: dict[str, Callable[[bool, random.Random], Ground]] = {
    "etcd": EtcdGround,
    "consul": ConsulGround,
    "zookeeper": ZooKeeperGround,
}

BACKENDS = ("etcd", "consul", "zookeeper", "peers")


def ground(backend: str, clustered: bool, folder: Path, chance: random.Random) -> Ground:
    """Not started yet.

    Args:
        clustered: on three servers instead of one. Of peers: each on a machine of its own,
            where such can be had.
        folder: for what has to be remembered.
    """
    if backend != "peers":
        return _SERVED[backend](clustered, chance)
    states = folder / "states" if chance.random() < 0.5 else None
    if clustered and can_be_made():
        return ScatteredPeersGround(states)
    return RelayedPeersGround(states, chance)
