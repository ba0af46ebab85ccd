"""HAProxy, as Debian packages it, with the example's configuration: it asks the leader only."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from leadership.clock import SystemClock

from .servers.etcd_client import EtcdClient
from .servers.ports import LOOPBACK, free_port
from .servers.process import ServerProcess
from .servers.programs import CHECKOUT, ServerMissingError, program
from .waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

EXAMPLE = CHECKOUT / "examples" / "haproxy" / "haproxy.cfg"
NAMES = ("web-1", "web-2", "web-3")

_CLOCK = SystemClock()


@dataclass
class Service:
    """One of the processes behind HAProxy."""

    name: str
    log: Path
    port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    killed_at: float = float("inf")

    def start(self, url: str, key: str) -> None:
        ports = (str(self.port), str(self.health_port))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.routed_service", url, key, self.name, *ports],
                stdout=log,
                cwd=CHECKOUT,
            )

    def leads(self) -> bool:
        return self._is_well("leader")

    def listens(self) -> bool:
        return self._is_well("healthz")

    def _is_well(self, path: str) -> bool:
        url = f"http://{LOOPBACK}:{self.health_port}/{path}"
        try:
            with urllib.request.urlopen(url, timeout=10):
                return True
        except OSError:
            return False

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.killed_at = _CLOCK.now()

    def said(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class Client:
    """Asks again and again, on a thread of its own, and remembers who answered."""

    def __init__(self, port: int) -> None:
        self.answers: list[str] = []
        self._url = f"http://{LOOPBACK}:{port}/"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.wait(0.005):
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    self.answers.append(answer.read().decode())
            except (OSError, http.client.HTTPException):
                # Refused, or cut off in the middle of an answer, as its leader is killed.
                self.answers.append("")

    def next_leader(self, *former: str) -> str:
        """Who answers many times on end, and is none of these."""

        def settled() -> str | None:
            last = set(self.answers[-30:])
            return last.pop() if len(self.answers) > 30 and len(last) == 1 else None

        def found() -> str | None:
            name = settled()
            return name if name and name not in former else None

        return wait_until(found, 30, f"a leader that is none of {former}")

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def services(etcd: EtcdClient, tmp_path: Path) -> Iterator[dict[str, Service]]:
    key = f"service/{uuid.uuid4()}"
    made = {name: Service(name, tmp_path / name) for name in NAMES}
    for service in made.values():
        service.start(etcd.url, key)
    # So that a balancer which begins by asking anybody asks one that does not lead.
    wait_until(lambda: any(service.leads() for service in made.values()), 30, "a leader")
    wait_until(lambda: all(service.listens() for service in made.values()), 30, "three services")
    yield made
    for service in made.values():
        service.process.kill()
        service.process.wait()


@pytest.fixture
def balancer(services: dict[str, Service], tmp_path: Path) -> Iterator[int]:
    """HAProxy's port."""
    try:
        haproxy = program("haproxy")
    except ServerMissingError as error:
        # As with the backends' servers: a skip would look like a proof.
        pytest.fail(str(error), pytrace=False)
    port = free_port()
    configuration = EXAMPLE.read_text().replace("bind :80\n", f"bind {LOOPBACK}:{port}\n")
    for service in services.values():
        before = rf"server {service.name} [\d.]+:8080"
        after = f"server {service.name} {LOOPBACK}:{service.port} port {service.health_port}"
        configuration, replaced = re.subn(before, after, configuration)
        assert replaced == 1
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration)
    subprocess.run([haproxy, "-c", "-q", "-f", str(file)], check=True)
    process = ServerProcess("haproxy", tmp_path / "haproxy.log")
    process.start([haproxy, "-db", "-f", str(file)])
    yield port
    process.kill()


def test_traffic_goes_to_the_leader_only_across_three_changes(
    services: dict[str, Service], balancer: int
) -> None:
    client = Client(balancer)
    try:
        first = client.next_leader()
        services[first].process.send_signal(signal.SIGUSR1)
        second = client.next_leader(first)
        services[second].kill()
        third = client.next_leader(second)
        services[third].end()
        fourth = client.next_leader(second, third)
    finally:
        client.close()
        for service in services.values():
            service.end()
    assert len({second, third, fourth}) == 3

    terms: list[tuple[float, float, str]] = []
    for name, service in services.items():
        began = {said["token"]: said["from"] for said in service.said() if "from" in said}
        ended = {said["token"]: said["to"] for said in service.said() if "to" in said}
        terms += [(began[token], ended.get(token, service.killed_at), name) for token in began]
    terms.sort()
    assert [name for _, _, name in terms][:4] == [first, second, third, fourth]
    assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(terms))
    for name, service in services.items():
        asked_at = [said["at"] for said in service.said() if "at" in said]
        own = [(start, end) for start, end, whose in terms if whose == name]
        stray = [at for at in asked_at if not any(start <= at <= end for start, end in own)]
        assert stray == [], f"{name} was asked while it did not lead; it led at {own}"
