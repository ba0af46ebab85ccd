"""Grounds with servers: etcd, Consul, ZooKeeper, each as one or as a cluster of three."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from kazoo.exceptions import NoNodeError

from leadership.backends._consul_requests import places_of
from tests.network_namespaces import Network, can_be_made
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.consul_client import ConsulClient, ConsulError
from tests.servers.etcd import EtcdCluster, EtcdServer
from tests.servers.etcd_client import EtcdClient, EtcdctlError
from tests.servers.place import HERE, Place
from tests.servers.server import Server
from tests.servers.zookeeper import ZooKeeperClient, ZooKeeperEnsemble, ZooKeeperServer

from . import wall_clock
from .ground import KEY, SLOTS, Ground
from .lines import RelayedLine, Request
from .process import Process
from .wall_clock import WallClock

# All that a candidate does, and nothing else.
_RIGHTS = (
    f'session_prefix "" {{ policy = "write" }} key_prefix "{KEY}" {{ policy = "write" }} '
    'node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }'
)


def _network() -> Network | None:
    """Between the members of a cluster, where such can be had."""
    return Network(3, reached=True) if can_be_made() else None


class _Operated(Protocol):
    @property
    def endpoints(self) -> list[str]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


C = TypeVar("C", bound=_Operated)


class _ServedGround(Ground, Generic[C]):
    """On servers of its own."""

    lines: Sequence[RelayedLine] = ()

    def __init__(
        self,
        client: C,
        servers: Sequence[Server],
        chance: random.Random,
        network: Network | None = None,
    ) -> None:
        self.client = client
        self.servers = servers
        self.network = network
        self._chance = chance

    def start(self) -> None:
        if self.network is not None:
            self.network.start()
        self.client.start()
        self.lines = [RelayedLine(self.client.endpoints, self._chance) for _ in range(SLOTS)]

    def stop(self) -> None:
        for line in self.lines:
            line.close()
        self.client.stop()
        if self.network is not None:
            self.network.close()

    def leading_server(self) -> int | None:
        leading = [n for n, server in enumerate(self.servers) if self._leads(server)]
        return leading[0] if len(leading) == 1 else None

    def _leads(self, server: Any) -> bool:
        return bool(server.is_leader())


class EtcdGround(_ServedGround[Any]):
    backend = "etcd"
    ttl = 1.0
    expiry = 1.5 * ttl
    requests: ClassVar[Mapping[str, Request]] = {
        "session": re.compile(b"LeaseGrant"),
        # The writing, and the deletion, of a key within a transaction.
        "entry": re.compile(rb"\x12.\x0a." + KEY.encode() + b"/", re.DOTALL),
        # A message of nothing but a lease's id.
        "renewal": re.compile(rb"\x00\x00\x00\x00[\x08-\x0b]\x08"),
        "release": re.compile(rb"\x1a.\x0a." + KEY.encode() + b"/", re.DOTALL),
    }
    client: EtcdClient

    def __init__(self, clustered: bool, folder: Path, chance: random.Random) -> None:
        if clustered:
            network = _network()
            cluster = EtcdCluster(network=network)
            super().__init__(cluster, cluster.members, chance, network)
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
            try:
                self._ctl("lease", "revoke", key.rpartition("/")[2])
            except EtcdctlError as error:
                # Its leader may have lost it by itself meanwhile.
                if "lease not found" not in str(error):
                    raise

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
    _tokens: list[str]
    requests: ClassVar[Mapping[str, Request]] = {
        "session": re.compile(b"session/create"),
        "entry": re.compile(b'"lock"'),
        "renewal": re.compile(b"session/renew"),
        "release": re.compile(b"PUT /v1/txn"),
    }
    client: ConsulClient

    def __init__(self, clustered: bool, folder: Path, chance: random.Random) -> None:
        self._tokens = []
        if clustered:
            network = _network()
            # A server's node takes the sessions made by way of it along: an operator's doing,
            # of which no term is safe (test_consul_outages.py).
            cluster = ConsulCluster(cleans_up=False, network=network)
            super().__init__(cluster, cluster.members, chance, network)
        else:
            server = ConsulServer(acl=True)
            super().__init__(server, [server], chance)
            self._tokens = [""] * SLOTS
            self.has_tokens = True

    def start(self) -> None:
        super().start()
        for slot in range(len(self._tokens)):
            self.make_token(slot)

    def url(self, slot: int) -> str:
        url = self.client.url_of(self.lines[slot].endpoint)
        return f"{url}&token={self._tokens[slot]}" if self._tokens else url

    def delete_token(self, slot: int) -> None:
        assert isinstance(self.client, ConsulServer)
        self.client.delete_token(self._tokens[slot])

    def make_token(self, slot: int) -> None:
        assert isinstance(self.client, ConsulServer)
        self._tokens[slot] = self.client.make_token(_RIGHTS)

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

    def rejoin(self) -> None:
        # By itself an agent looks for those it lost each half a minute.
        assert isinstance(self.client, ConsulCluster)
        for member, other in itertools.permutations(self.client.members, 2):
            with contextlib.suppress(OSError, ConsulError):
                member.api("PUT", f"agent/join/{other.place.host}:{other.serf_port}")


def _on_path(operation: bytes, path: bytes) -> Request:
    return re.compile(rb"\x00\x00\x00" + operation + rb"\x00\x00\x00./" + path, re.DOTALL)


class ZooKeeperGround(_ServedGround[Any]):
    backend = "zookeeper"
    ttl = 1.0
    expiry = 1.5 * ttl
    requests: ClassVar[Mapping[str, Request]] = {
        # The protocol's version, with which every connection begins.
        "session": re.compile(rb"^.{4}\x00{4}", re.DOTALL),
        "entry": _on_path(rb"[\x01\x0f]", KEY.encode() + b"/"),
        "renewal": _on_path(rb"\x05", b""),
        "release": _on_path(rb"\x02", KEY.encode() + b"/"),
    }
    client: ZooKeeperClient

    def __init__(self, clustered: bool, folder: Path, chance: random.Random) -> None:
        if clustered:
            network = _network()
            ensemble = ZooKeeperEnsemble(network=network)
            super().__init__(ensemble, ensemble.members, chance, network)
            return
        place = HERE
        if wall_clock.can_be_stepped():
            self.server_clock = WallClock(folder / "server-clock")
            shown = (f"{name}={value}" for name, value in self.server_clock.environment.items())
            place = Place(command=("env", *shown))
        server = ZooKeeperServer(place=place)
        super().__init__(server, [server], chance)

    def _leads(self, server: Any) -> bool:
        return bool(server.role() == "leader")

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
