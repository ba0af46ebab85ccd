"""ZooKeeper servers of our own, to be killed, paused, restarted, and cut from each other."""

import contextlib
import functools
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient

from tests.network_namespaces import Network
from tests.servers.certificates import make_certificates
from tests.servers.fault_proxy import FaultProxy, Mode
from tests.servers.place import HERE, Place, places
from tests.servers.ports import free_port, require_free
from tests.servers.process import ServerProcess
from tests.servers.programs import ServerMissingError, program
from tests.servers.server import READY_DEADLINE, Cluster, Server
from tests.waiting import wait_until

USER, PASSWORD = "operator", "operator-password"

# A session lives at least two ticks: 0.4 s with this, 4 s with ZooKeeper's own tick of 2 s.
_FAST_TICK, _DEFAULT_TICK = 200, 2000

_VERSION = re.compile(r"version:? ([0-9.]+)")


@functools.cache
def installed_version() -> str:
    """The version of the ZooKeeper on this machine, e.g. ``3.9.3``."""
    asked = [program("zookeeper"), "org.apache.zookeeper.version.VersionInfoMain"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return _version_in(answer)


def _version_in(text: str) -> str:
    found = _VERSION.search(text)
    return found[1] if found else ""


def ask(endpoint: str, word: str, timeout: float = 5.0) -> str:
    """What a server answers to one of its four-letter words."""
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        connection.sendall(word.encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer.decode(errors="replace")


class ZooKeeperClient:
    """The view of a ZooKeeper from outside."""

    version = ""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = list(endpoints)

    @property
    def endpoint(self) -> str:
        """``host:port``, and with several servers ``host:port,host:port,host:port``."""
        return ",".join(self.endpoints)

    @property
    def url(self) -> str:
        return f"zookeeper://{self.endpoint}"

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[KazooClient]:
        """A plain kazoo client: an operator, or a program that is not ours."""
        client = KazooClient(hosts=self.endpoint, timeout=10.0, **options)
        client.start(timeout=READY_DEADLINE)
        try:
            yield client
        finally:
            client.stop()
            client.close()

    def sessions(self) -> set[str]:
        """The ids of all sessions, but for those of operators that just look."""
        listed = ask(self.endpoints[0], "dump")
        return set(re.findall(r"^\s*(0x[0-9a-f]+)$", listed, re.MULTILINE))

    def count(self, name: str) -> int:
        """One of the server's counters, such as ``zk_packets_received``."""
        counters = dict(
            line.split("\t", 1)
            for line in ask(self.endpoints[0], "mntr").splitlines()
            if "\t" in line
        )
        return int(float(counters[name]))


class ExternalZooKeeper(ZooKeeperClient):
    """One that somebody else runs."""

    def __init__(self, endpoint: str) -> None:
        super().__init__([endpoint])
        try:
            self.version = _version_in(ask(endpoint, "srvr"))
        except OSError as error:
            raise ServerMissingError(f"no ZooKeeper answers at {endpoint}: {error}") from error


class ZooKeeperServer(Server, ZooKeeperClient):
    """One ZooKeeper process on free loopback ports; ports and data stay until :meth:`stop`.

    ``fast``: short ticks, so that a session may live 0.4 s (else 4 s).
    ``tls``: clients may use TLS, at :attr:`secure_endpoint`, and must show a certificate
    with ``client_certificates``. ``sasl``: :data:`USER` may log in by DIGEST-MD5.
    ``patient``: wait 8 s for the other servers, instead of 2. ``read_only``: answer reads
    without a quorum, to clients that take that.
    """

    def __init__(
        self,
        *,
        fast: bool = True,
        tls: bool = False,
        client_certificates: bool = False,
        sasl: bool = False,
        patient: bool = False,
        read_only: bool = False,
        number: int = 0,
        place: Place = HERE,
    ) -> None:
        self.name = f"zookeeper-{number}" if number else "zookeeper"
        self.number = number
        self.client_port, self.quorum_port, self.election_port = (free_port() for _ in range(3))
        self.place = place
        super().__init__([f"{place.host}:{self.client_port}"])
        self.version = installed_version()
        self.folder = Path(tempfile.mkdtemp(prefix=f"leadership-{self.name}-"))
        self.known_servers: list[str] = []
        self._process = ServerProcess(self.name, self.folder / "log")
        self._options = {
            "tickTime": str(_FAST_TICK if fast else _DEFAULT_TICK),
            "initLimit": "20",
            "syncLimit": "40" if patient else "10",
            "dataDir": str(self.folder / "data"),
            "clientPortAddress": place.host,
            "clientPort": str(self.client_port),
            "maxClientCnxns": "0",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
        }
        self._java: list[str] = ["-Dzookeeper.forceSync=no"]
        if fast:
            # Else 20 ticks: 4 s.
            self._options["maxSessionTimeout"] = "60000"
            # Else a member that missed an election asks for the next one ever more seldom.
            for bound, milliseconds in (("min", 50), ("max", 300)):
                self._java.append(
                    f"-Dzookeeper.fastleader.{bound}NotificationInterval={milliseconds}"
                )
        if read_only:
            self._java.append("-Dreadonlymode.enabled=true")
        if tls or client_certificates:
            self._use_tls(client_certificates)
        if sasl:
            self._use_sasl()

    def _use_tls(self, client_certificates: bool) -> None:
        self.certificates = made = make_certificates(self.folder / "certificates")
        both = self.folder / "certificates" / "server-both.pem"
        both.write_bytes(made.server_key.read_bytes() + made.server.read_bytes())
        self.secure_port = free_port()
        self.secure_endpoint = f"{self.place.host}:{self.secure_port}"
        self._options |= {
            "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
            "secureClientPort": str(self.secure_port),
            "ssl.keyStore.location": str(both),
            "ssl.keyStore.type": "PEM",
            "ssl.trustStore.location": str(made.authority),
            "ssl.trustStore.type": "PEM",
            "ssl.clientAuth": "need" if client_certificates else "none",
        }

    def _use_sasl(self) -> None:
        logins = self.folder / "logins"
        logins.write_text(
            "Server { org.apache.zookeeper.server.auth.DigestLoginModule required "
            f'user_{USER}="{PASSWORD}"; }};\n'
        )
        self._java.append(f"-Djava.security.auth.login.config={logins}")
        self._options["authProvider.1"] = (
            "org.apache.zookeeper.server.auth.SASLAuthenticationProvider"
        )

    def launch(self) -> None:
        """:meth:`start` without the wait: an ensemble's members wait for each other."""
        for port in (self.client_port, self.quorum_port, self.election_port):
            require_free(port)
        (self.folder / "data").mkdir(exist_ok=True)
        if self.number:
            (self.folder / "data" / "myid").write_text(f"{self.number}\n")
        lines = [f"{name}={value}" for name, value in self._options.items()]
        configuration = self.folder / "zoo.cfg"
        configuration.write_text("\n".join([*lines, *self.known_servers, ""]))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        server = [program("zookeeper"), *self._java, main, str(configuration)]
        self._process.start([*self.place.command, *server])

    def wait_ready(self, timeout: float = READY_DEADLINE) -> None:
        wait_until(
            lambda: self.role() is not None,
            timeout,
            f"{self.name} ready; its log is {self._process.log}",
        )

    def role(self) -> str | None:
        """``standalone``, ``leader``, ``follower``, ``read-only``; None while it does not serve."""
        self._process.require_running()
        if self._process.is_paused:
            return None
        with contextlib.suppress(OSError):
            found = re.search(r"^Mode: (\S+)", ask(self.endpoints[0], "srvr", 2), re.MULTILINE)
            return found[1] if found else None
        return None

    def resume(self) -> None:
        """SIGCONT. No wait: a member alone serves nobody until others are there."""
        self._process.resume()


class ZooKeeperEnsemble(Cluster[ZooKeeperServer], ZooKeeperClient):
    """Three servers; with ``cuttable`` each follows its leader through a relay."""

    def __init__(
        self,
        *,
        cuttable: bool = False,
        read_only: bool = False,
        size: int = 3,
        network: Network | None = None,
    ) -> None:
        self._cuttable = cuttable
        # A follower that is cut off is to go on answering for longer than a session lives.
        self.members = [
            ZooKeeperServer(read_only=read_only, patient=cuttable, number=n + 1, place=place)
            for n, place in enumerate(places(size, network))
        ]
        super().__init__([server.endpoint for server in self.members])
        self.version = self.members[0].version
        self._relays: dict[tuple[int, int], FaultProxy] = {}

    def _line(self, server: ZooKeeperServer, other: ZooKeeperServer) -> str:
        """How `server` is told of `other`."""
        relay = self._relays.get((server.number, other.number))
        quorum_port = other.quorum_port if relay is None else relay.port
        return f"server.{other.number}={other.place.host}:{quorum_port}:{other.election_port}"

    def start(self) -> None:
        for server in self.members:
            for other in self.members:
                if self._cuttable and other is not server:
                    relay = FaultProxy(other.quorum_port)
                    self._relays[server.number, other.number] = relay
            server.known_servers = [self._line(server, other) for other in self.members]
        super().start()

    def stop(self) -> None:
        for relay in self._relays.values():
            relay.close()
        super().stop()

    def leader(self, timeout: float = READY_DEADLINE) -> ZooKeeperServer:
        """The server that leads; waits for an election that is under way."""

        def find() -> ZooKeeperServer | None:
            alive = [server for server in self.members if server.is_running]
            return next((server for server in alive if server.role() == "leader"), None)

        return wait_until(find, timeout, "a leader in the ensemble")

    def followers(self) -> list[ZooKeeperServer]:
        leader = self.leader()
        return [each for each in self.members if each is not leader and each.is_running]

    def cut(self, follower: ZooKeeperServer) -> None:
        """Nothing passes between this follower and any leader; its clients still reach it."""
        self._set(follower, Mode.STALL)

    def heal(self, follower: ZooKeeperServer) -> None:
        self._set(follower, Mode.PASS)

    def _set(self, follower: ZooKeeperServer, mode: Mode) -> None:
        for (number, _), relay in self._relays.items():
            if number == follower.number:
                relay.set(mode)


@contextlib.contextmanager
def zookeeper_url(fast: bool) -> Iterator[str]:
    """For `tests.servers.run`."""
    external = os.environ.get("LEADERSHIP_TEST_ZOOKEEPER")
    if external:
        yield ExternalZooKeeper(external).url
    else:
        with ZooKeeperServer(fast=fast) as server:
            yield server.url
