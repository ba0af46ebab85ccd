"""Consul servers of our own, to be killed, paused, restarted."""

import contextlib
import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.network_namespaces import Network
from tests.servers.certificates import make_certificates
from tests.servers.consul_client import ConsulClient, ConsulError
from tests.servers.place import HERE, Place, places
from tests.servers.ports import free_port, require_free
from tests.servers.process import ServerProcess
from tests.servers.programs import program
from tests.servers.server import READY_DEADLINE, Cluster, Server
from tests.waiting import wait_until

ROOT_TOKEN = "5f0d1c3e-1007-4000-8000-000000000000"


@functools.cache
def installed_version() -> str:
    """The version of the consul program on this machine, e.g. ``1.8.7``."""
    answer = subprocess.run(
        [program("consul"), "version"], capture_output=True, text=True, check=True
    )
    return answer.stdout.splitlines()[0].rpartition(" v")[2]


class ConsulServer(Server, ConsulClient):
    """One Consul server on free loopback ports; the ports and data stay until :meth:`stop`.

    ``fast``: a session may live 1 s (else 10 s), and a cluster's members notice death sooner.
    ``tls``: clients must use TLS and show a certificate.
    ``acl``: a token is needed; :data:`ROOT_TOKEN` may do all, see :meth:`make_token`.
    ``limits``: of the server's own section of that name.
    ``cleans_up``: a dead server is taken off the others' list within some ten seconds, as by
    default, and with its node go the sessions that were made by way of it.
    """

    def __init__(
        self,
        *,
        fast: bool = True,
        tls: bool = False,
        acl: bool = False,
        limits: dict[str, Any] | None = None,
        cleans_up: bool = True,
        name: str = "consul",
        place: Place = HERE,
    ) -> None:
        self.name = name
        self.place = place
        self.http_port = free_port()
        self.server_port = free_port()
        self.serf_port = free_port()
        super().__init__([f"{place.host}:{self.http_port}"])
        self.session_ttl_min = 1 if fast else 10
        self.version = installed_version()
        self.folder = Path(tempfile.mkdtemp(prefix=f"leadership-{name}-"))
        self.cluster_size = 1
        self.join: list[str] = []
        self._fast = fast
        self._acl = acl
        self._limits = limits or {}
        self._cleans_up = cleans_up
        self._process = ServerProcess(name, self.folder / "log")
        if tls:
            self.certificates = make_certificates(self.folder / "certificates")
        if acl:
            self.token = ROOT_TOKEN

    def launch(self) -> None:
        """:meth:`start` without the wait: a cluster's members wait for each other."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already")
        for port in (self.http_port, self.server_port, self.serf_port):
            require_free(port)
        configuration = self.folder / "configuration.json"
        configuration.write_text(json.dumps(self._configuration()))
        agent = [program("consul"), "agent", f"-config-file={configuration}"]
        self._process.start([*self.place.command, *agent])

    def wait_ready(self, timeout: float = READY_DEADLINE) -> None:
        wait_until(self._is_ready, timeout, f"{self.name} ready; its log is {self._process.log}")

    def is_leader(self) -> bool:
        if not self.is_running or self._process.is_paused:
            return False
        with contextlib.suppress(OSError, ConsulError):
            stats = self.api("GET", "agent/self")["Stats"]
            return bool(stats["consul"]["leader"] == "true")
        return False

    def make_token(self, rules: str) -> str:
        """The secret of a new token with these rules (HCL)."""
        name = f"rules-{abs(hash(rules))}"
        if not any(policy["Name"] == name for policy in self.api("GET", "acl/policies")):
            self.api("PUT", "acl/policy", {"Name": name, "Rules": rules})
        made = self.api("PUT", "acl/token", {"Policies": [{"Name": name}]})
        return str(made["SecretID"])

    def delete_token(self, secret: str) -> None:
        """Nobody is let in by it any more."""
        accessor = self.api("GET", "acl/token/self", token=secret)["AccessorID"]
        self.api("DELETE", f"acl/token/{accessor}")

    def _is_ready(self) -> bool:
        self._process.require_running()
        # A leader alone is not enough: sessions need the node, which it registers a moment later.
        with contextlib.suppress(OSError, ConsulError):
            nodes = self.api("GET", "catalog/nodes", consistent="")
            return any(each["Node"] == self.name for each in nodes or ()) and self.is_running
        return False

    def _configuration(self) -> dict[str, Any]:
        http, https = (self.http_port, -1) if self.certificates is None else (-1, self.http_port)
        settings: dict[str, Any] = {
            "node_name": self.name,
            "data_dir": str(self.folder / "data"),
            "server": True,
            "bootstrap_expect": self.cluster_size,
            "bind_addr": self.place.host,
            "client_addr": self.place.host,
            "log_level": "WARN",
            "retry_join": self.join,
            "retry_interval": "500ms",
            "leave_on_terminate": False,
            "skip_leave_on_interrupt": True,
            "disable_update_check": True,
            # Every write that is left is a client's.
            "disable_coordinates": True,
            "ports": {
                "http": http,
                "https": https,
                "server": self.server_port,
                "serf_lan": self.serf_port,
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
            "performance": {"raft_multiplier": 1},
            "limits": self._limits,
            "autopilot": {"cleanup_dead_servers": self._cleans_up},
        }
        if self._fast:
            settings["session_ttl_min"] = "1s"
            settings["gossip_lan"] = {
                "gossip_interval": "50ms",
                "probe_interval": "200ms",
                "probe_timeout": "100ms",
                "suspicion_mult": 2,
            }
        if self._acl:
            settings["acl"] = {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {"master": ROOT_TOKEN, "agent": ROOT_TOKEN},
            }
        if self.certificates is not None:
            settings |= {
                "ca_file": str(self.certificates.authority),
                "cert_file": str(self.certificates.server),
                "key_file": str(self.certificates.server_key),
                "verify_incoming_https": True,
            }
        return settings


class ConsulCluster(Cluster[ConsulServer], ConsulClient):
    """Three servers. Kill, pause, restart them through :attr:`members` or :meth:`leader`."""

    def __init__(
        self,
        *,
        fast: bool = True,
        size: int = 3,
        cleans_up: bool = True,
        network: Network | None = None,
    ) -> None:
        self.members = [
            ConsulServer(fast=fast, cleans_up=cleans_up, name=f"consul-{n + 1}", place=place)
            for n, place in enumerate(places(size, network))
        ]
        super().__init__([member.endpoint for member in self.members])
        self.session_ttl_min = self.members[0].session_ttl_min
        self.version = self.members[0].version
        for member in self.members:
            member.cluster_size = size
            member.join = [f"{other.place.host}:{other.serf_port}" for other in self.members]

    def leader(self, timeout: float = READY_DEADLINE) -> ConsulServer:
        """The member that leads; waits for an election that is under way."""
        return wait_until(self._find_leader, timeout, "a leader in the Consul cluster")

    def _find_leader(self) -> ConsulServer | None:
        leading = [member for member in self.members if member.is_leader()]
        return leading[0] if len(leading) == 1 else None
