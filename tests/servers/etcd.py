"""etcd servers of our own, to be killed, paused, restarted."""

import contextlib
import functools
import subprocess
import tempfile
import uuid
from pathlib import Path

from tests.network_namespaces import Network
from tests.servers.certificates import make_certificates
from tests.servers.etcd_client import EtcdClient, User
from tests.servers.place import HERE, Place, places
from tests.servers.ports import free_port, require_free
from tests.servers.process import ServerProcess
from tests.servers.programs import program
from tests.servers.server import READY_DEADLINE, Cluster, Server
from tests.waiting import wait_until

ROOT = User("root", "root-password")

# May read and write below LIMITED_PREFIX, and nothing else.
LIMITED = User("limited", "limited-password")
LIMITED_PREFIX = "limited/"

# With etcd's own timing (100 ms and 1 s) no lease is shorter than 2 s; with this, 1 s.
_FAST_TIMING = ("--heartbeat-interval=50", "--election-timeout=500")


@functools.cache
def installed_version() -> str:
    """The version of the etcd program on this machine, e.g. ``3.5.16``."""
    answer = subprocess.run(
        [program("etcd"), "--version"], capture_output=True, text=True, check=True
    )
    return answer.stdout.splitlines()[0].rpartition(" ")[2]


class EtcdServer(Server, EtcdClient):
    """One etcd process on free loopback ports; the ports and data stay until :meth:`stop`.

    ``fast``: short elections, so that a lease may live 1 s (else 2 s).
    ``tls``: clients must use TLS; ``client_certificates``: and show a certificate.
    ``auth``: only :data:`ROOT` and :data:`LIMITED` are let in; ``auth_token_ttl``:
    seconds after which their token, unused, is forgotten.
    """

    def __init__(
        self,
        *,
        fast: bool = True,
        tls: bool = False,
        client_certificates: bool = False,
        auth: bool = False,
        auth_token_ttl: int | None = None,
        name: str = "etcd",
        place: Place = HERE,
    ) -> None:
        self.name = name
        self.place = place
        self.client_port = free_port()
        self.peer_port = free_port()
        self.metrics_port = free_port()
        host = place.host
        super().__init__([f"{host}:{self.client_port}"], f"{host}:{self.metrics_port}")
        self.version = installed_version()
        self.folder = Path(tempfile.mkdtemp(prefix=f"leadership-{name}-"))
        self.initial_cluster = f"{name}={self.peer_url}"
        self.cluster_token = uuid.uuid4().hex
        self._options: list[str] = list(_FAST_TIMING) if fast else []
        self._process = ServerProcess(name, self.folder / "log")
        self._auth_wanted = auth
        if auth:
            # The least: a login is to cost nothing that a test on a busy machine would notice.
            self._options.append("--bcrypt-cost=4")
        if auth_token_ttl is not None:
            self._options.append(f"--auth-token-ttl={auth_token_ttl}")
        if tls or client_certificates:
            self.certificates = make_certificates(self.folder / "certificates")
            self._options += [
                f"--cert-file={self.certificates.server}",
                f"--key-file={self.certificates.server_key}",
                f"--trusted-ca-file={self.certificates.authority}",
            ]
        if client_certificates:
            self._options.append("--client-cert-auth")

    @property
    def peer_url(self) -> str:
        return f"http://{self.place.host}:{self.peer_port}"

    def launch(self) -> None:
        """:meth:`start` without the wait: a cluster's members wait for each other."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already")
        for port in (self.client_port, self.peer_port, self.metrics_port):
            require_free(port)
        self._process.start([*self.place.command, *self._command()])

    def wait_ready(self, timeout: float = READY_DEADLINE) -> None:
        wait_until(self._is_ready, timeout, f"{self.name} ready; its log is {self.log}")
        if self._auth_wanted and self.user is None:
            self._enable_auth()

    def has_leader(self) -> bool:
        return self.is_answering() and self.count("etcd_server_has_leader") == 1

    def is_leader(self) -> bool:
        return self.is_answering() and self.count("etcd_server_is_leader") == 1

    def is_answering(self) -> bool:
        return self.is_running and not self.is_paused

    def _is_ready(self) -> bool:
        self._process.require_running()
        # Refused, reset, or 503 while there is no leader: all are "not yet".
        with contextlib.suppress(OSError):
            # A healthy answer is ours only if our process did not end meanwhile.
            return '"health":"true"' in self._get("/health") and self.is_running
        return False

    def _command(self) -> list[str]:
        client_url = f"{'https' if self.certificates else 'http'}://{self.endpoint}"
        options = [
            f"--name={self.name}",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--listen-metrics-urls=http://{self.place.host}:{self.metrics_port}",
            f"--initial-cluster={self.initial_cluster}",
            f"--initial-cluster-token={self.cluster_token}",
            "--logger=zap",
            "--log-level=warn",
            *self._options,
        ]
        if not self.version.startswith("3.4."):
            # Killing a process loses nothing that the kernel has, so fsync only costs time.
            options.append("--unsafe-no-fsync")
        return [program("etcd"), *options]

    def _enable_auth(self) -> None:
        for user in (ROOT, LIMITED):
            role = user.name
            self.ctl("user", "add", f"{user.name}:{user.password}")
            self.ctl("role", "add", role)
            self.ctl("user", "grant-role", user.name, role)
        allowed = ("--prefix=true", LIMITED.name, "readwrite", LIMITED_PREFIX)
        self.ctl("role", "grant-permission", *allowed)
        self.ctl("auth", "enable")
        self.user = ROOT


class EtcdCluster(Cluster[EtcdServer], EtcdClient):
    """Three members. Kill, pause, restart them through :attr:`members` or :meth:`leader`."""

    def __init__(self, *, fast: bool = True, size: int = 3, network: Network | None = None) -> None:
        self.members = [
            EtcdServer(fast=fast, name=f"etcd-{n + 1}", place=place)
            for n, place in enumerate(places(size, network))
        ]
        first = self.members[0]
        endpoints = [member.endpoint for member in self.members]
        super().__init__(endpoints, f"{first.place.host}:{first.metrics_port}")
        self.version = self.members[0].version
        everybody = ",".join(member.initial_cluster for member in self.members)
        for member in self.members:
            member.initial_cluster = everybody
            member.cluster_token = self.members[0].cluster_token

    def leader(self, timeout: float = READY_DEADLINE) -> EtcdServer:
        """The member that leads; waits for an election that is under way."""
        return wait_until(self._find_leader, timeout, "a leader in the etcd cluster")

    def followers(self) -> list[EtcdServer]:
        """The members that answer and do not lead."""
        leader = self.leader()
        return [m for m in self.members if m is not leader and m.is_answering()]

    def metrics(self) -> dict[str, float]:
        """Every member's series, added up, as far as the members answer."""
        total: dict[str, float] = {}
        for member in self.members:
            if member.is_answering():
                for series, value in member.metrics().items():
                    total[series] = total.get(series, 0.0) + value
        return total

    def _find_leader(self) -> EtcdServer | None:
        # One that was paused and resumed may still think it leads: the majority decides.
        answering = [m for m in self.members if m.is_answering()]
        leading = [m for m in answering if m.is_leader()]
        following = [m for m in answering if m.has_leader()]
        if len(leading) == 1 and len(following) > len(self.members) // 2:
            return leading[0]
        return None
