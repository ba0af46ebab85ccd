"""Candidates with guardians, each in a process of its own, on any backend."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from .candidate_process import CandidateProcess
from .consul_elections import places
from .peers_cluster import PeersCluster
from .servers.consul_client import ConsulClient
from .servers.etcd_client import EtcdClient
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until
from .zookeeper_elections import entries

READY = 30.0


class Contest:
    """One election and the processes that contend in it; `addresses` has the store's for each."""

    def __init__(self, addresses: list[str], ttl: float) -> None:
        self.key = f"guarded/{uuid.uuid4().hex}"
        self.ttl = ttl
        self._addresses = addresses
        self.candidates: dict[int, CandidateProcess] = {}
        self._open = contextlib.ExitStack()

    def start(self, number: int, **environment: str) -> CandidateProcess:
        made = CandidateProcess(
            self._addresses[number],
            self.key,
            str(number),
            self.ttl,
            guardian=True,
            **environment,
        )
        self.candidates[number] = self._open.enter_context(made)
        return made

    def start_all(self) -> tuple[CandidateProcess, list[CandidateProcess]]:
        """All of them: the one that leads, whose guardian is ready, and those that wait."""
        for number in range(len(self._addresses)):
            self.start(number)
        return self.leader()

    def leader(self) -> tuple[CandidateProcess, list[CandidateProcess]]:
        """Who leads, once all take part, and who waits."""
        candidates = list(self.candidates.values())
        for each in candidates:
            if each.said or not self._addresses[0].startswith("peers:"):
                continue
            each.wait("ready", READY)
        leader = wait_until(
            lambda: next((each for each in candidates if each.leads()), None), READY, "a leader"
        )
        leader.wait("standing", leader=True)
        self.wait_entered()
        leader.guardian()
        return leader, [each for each in candidates if each is not leader]

    def wait_entered(self) -> None:
        """Until those that wait do so at the store, where that can be seen."""

    def next_leader(self, others: list[CandidateProcess]) -> tuple[CandidateProcess, float]:
        """Who leads next, and when it heard of it."""
        following = wait_until(
            lambda: next((each for each in others if each.leads()), None), READY, "the next leader"
        )
        return following, float(following.wait("standing", leader=True)["at"])

    def replace(self, dead: CandidateProcess) -> None:
        """Start it anew."""
        self.start(int(dead.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


class EtcdContest(Contest):
    """Of three candidates, if not told otherwise."""

    def __init__(self, etcd: EtcdClient, ttl: float, size: int = 3) -> None:
        super().__init__([etcd.url] * size, ttl)
        self._etcd = etcd

    def wait_entered(self) -> None:
        def all_there() -> bool:
            there = self._etcd.ctl("get", "--prefix", f"{self.key}/", "--keys-only").split()
            return len(there) == len(self.candidates)

        wait_until(all_there, READY, "all entries")


class ConsulContest(Contest):
    """Of three candidates, if not told otherwise."""

    def __init__(self, consul: ConsulClient, ttl: float, size: int = 3) -> None:
        super().__init__([consul.url] * size, ttl)
        self._consul = consul

    def wait_entered(self) -> None:
        waiting = len(self.candidates) - 1
        wait_until(lambda: len(places(self._consul, self.key)) == waiting, READY, "all who wait")


class ZooKeeperContest(Contest):
    """Of three candidates, if not told otherwise."""

    def __init__(self, server: ZooKeeperClient, ttl: float, size: int = 3) -> None:
        super().__init__([server.url] * size, ttl)
        self._client = self._open.enter_context(server.client())

    def wait_entered(self) -> None:
        wait_until(
            lambda: len(entries(self._client, self.key)) == len(self.candidates),
            READY,
            "all entries",
        )


class PeersContest(Contest):
    """Of three nodes."""

    def __init__(self, ttl: float, **options: object) -> None:
        cluster = PeersCluster(3, ttl_ceiling=ttl, **options)
        super().__init__([cluster.url(number) for number in range(3)], ttl)


def is_running(pid: int) -> bool:
    """Whether it lives; a zombie that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def guardians() -> Iterator[int]:
    """All that run on this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"leadership._guardian" in (folder / "cmdline").read_bytes():
                yield int(folder.name)
