"""An etcd to talk to, whoever runs it: its address, etcdctl, and what it counted."""

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from tests.servers.certificates import Certificates
from tests.servers.programs import CHECKOUT, ServerMissingError, program

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class EtcdctlError(RuntimeError):
    """etcdctl ended with a status other than 0."""


@dataclass(frozen=True)
class User:
    name: str
    password: str


class EtcdClient:
    """The view of an etcd from outside."""

    def __init__(self, endpoints: Sequence[str], metrics_address: str) -> None:
        self.endpoints = list(endpoints)
        self.certificates: Certificates | None = None
        self.user: User | None = None
        self._metrics_address = metrics_address

    @property
    def endpoint(self) -> str:
        """``host:port``, and with several members ``host:port,host:port,host:port``."""
        return ",".join(self.endpoints)

    @property
    def url(self) -> str:
        return f"etcd://{self.endpoint}"

    def ctl(
        self,
        *arguments: str,
        user: User | None = None,
        stdin: str = "",
        timeout: float = 15.0,
    ) -> str:
        """Run etcdctl against this server and return what it printed.

        ``user`` takes the place of root where the server asks who is there.
        """
        done = subprocess.run(
            self.ctl_command(*arguments, user=user),
            input=stdin,
            capture_output=True,
            text=True,
            env=_ctl_environment(),
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise EtcdctlError(
                f"etcdctl {' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def popen_ctl(self, *arguments: str, user: User | None = None) -> subprocess.Popen[str]:
        """Start etcdctl, for the commands that stay: ``elect``, ``watch``, ``lock``."""
        return subprocess.Popen(
            self.ctl_command(*arguments, user=user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=_ctl_environment(),
        )

    def ctl_command(self, *arguments: str, user: User | None = None) -> list[str]:
        command = [program("etcdctl")]
        if self.certificates is not None:
            command += [
                f"--cacert={self.certificates.authority}",
                f"--cert={self.certificates.client}",
                f"--key={self.certificates.client_key}",
            ]
        asking = user or self.user
        if asking is not None:
            command.append(f"--user={asking.name}:{asking.password}")
        scheme = "http" if self.certificates is None else "https"
        endpoints = ",".join(f"{scheme}://{endpoint}" for endpoint in self.endpoints)
        return [*command, f"--endpoints={endpoints}", *arguments]

    def metrics(self) -> dict[str, float]:
        """Every series of ``/metrics`` by its full name, ``name{label="value",...}``."""
        series: dict[str, float] = {}
        for line in self._get("/metrics").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                series[name] = float(value)
        return series

    def count(self, name: str, **labels: str) -> float:
        """The sum over the series ``name`` that carry all of ``labels``."""
        return sum(
            value
            for series, value in self.metrics().items()
            if series.partition("{")[0] == name and labels.items() <= _labels(series).items()
        )

    def requests(self, method: str) -> int:
        """How many calls of a gRPC method the server began: ``Txn``, ``Range``, ``LeaseGrant``."""
        return int(self.count("grpc_server_started_total", grpc_method=method))

    def messages(self, method: str) -> int:
        """How many messages came in on a gRPC stream: ``LeaseKeepAlive``, ``Watch``."""
        return int(self.count("grpc_server_msg_received_total", grpc_method=method))

    def _get(self, path: str, timeout: float = 2.0) -> str:
        address = f"http://{self._metrics_address}{path}"
        with urllib.request.urlopen(address, timeout=timeout) as reply:
            content: bytes = reply.read()
        return content.decode()


class ExternalEtcd(EtcdClient):
    """An etcd that somebody else runs, at ``host:port``: not ours to kill."""

    def __init__(self, endpoint: str) -> None:
        super().__init__([endpoint], endpoint)
        self.version: str = json.loads(self._get("/version"))["etcdserver"]

    def ctl_command(self, *arguments: str, user: User | None = None) -> list[str]:
        try:
            return super().ctl_command(*arguments, user=user)
        except ServerMissingError:
            # No etcdctl on this machine: the container of docker-compose.yml has one.
            compose = ["docker", "compose", "--project-directory", str(CHECKOUT)]
            return [*compose, "exec", "-T", "etcd", "/usr/local/bin/etcdctl", *arguments]


def _labels(series: str) -> dict[str, str]:
    return dict(_LABEL.findall(series.partition("{")[2]))


def _ctl_environment() -> dict[str, str]:
    # ETCDCTL_* of whoever runs the tests would contradict our flags.
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("ETCDCTL_")}
    return {**inherited, "ETCDCTL_API": "3"}
