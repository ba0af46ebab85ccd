"""The stores that are measured: a server of our own each, and what it has counted."""

from __future__ import annotations

import contextlib
import re
import threading
from abc import ABC, abstractmethod
from http.client import HTTPException
from typing import ClassVar, Self

from bench.crowds import CLOCK, Crowd, FloorCrowd, OurCrowd
from bench.entrants import Entrant
from bench.floor_zookeeper import (
    ZooKeeperFloor,
    ZooKeeperFloorAndProof,
    ZooKeeperFloorCrowd,
)
from bench.ours import Floor, FloorAndRead, FloorAndWrite, Ours
from bench.rival_consul import ConsulLock
from bench.rival_crowds import ConsulCrowd, Etcd3Crowd, KazooCrowd
from bench.rival_etcd3 import Etcd3Lock
from bench.rival_kazoo import KazooElection
from bench.rival_tooz import ToozElection, ToozLock, ToozZooKeeperLock
from tests.etcd_elections import leases
from tests.servers.consul import ConsulServer
from tests.servers.consul_client import ConsulError
from tests.servers.consul_relay import Asked, ConsulRelay, Told
from tests.servers.etcd import EtcdServer
from tests.servers.zookeeper import ZooKeeperServer, ask


class Ground(ABC):
    """One store; its server runs for the time of a `with` block.

    Attributes:
        name: of the store.
        ttl: seconds, of every hand-over: short, so that many can be seen.
        entrants: who contends here: the floors first, then we, then the others.
        crowds: the same, many in one process.
        killed: the bar of a fail-over's p99 after SIGKILL, in seconds.
        abreast: pairs that are idle side by side while their leases lapse.
        renewals: requests in a ttl by which we keep one session, and know that it is kept.
        recovery: seconds that the slowest rival needs for a fail-over, to plan with.
        url: the store.
        counted_url: the same, by way of whatever counts the requests.
        version: of the server.
    """

    name: ClassVar[str]
    ttl: ClassVar[float]
    entrants: ClassVar[tuple[type[Entrant], ...]]
    crowds: ClassVar[tuple[type[Crowd], ...]]
    killed: ClassVar[float]
    abreast: ClassVar[int] = 5
    renewals: ClassVar[int]
    recovery: ClassVar[float]
    url: str
    counted_url: str
    version: str

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start(self._running)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *outcome: object) -> None:
        self._running.close()

    @abstractmethod
    def _start(self, running: contextlib.ExitStack) -> None:
        """Start the server."""

    @abstractmethod
    def requests(self) -> int:
        """How many messages clients have sent, renewals among them."""

    def acts(self) -> int:
        """How many messages were no renewal of one session among many."""
        return self.requests()

    @abstractmethod
    def writes(self) -> int:
        """How many changes the store has made, sessions and leases among them.

        Without what goes on anyway: renewals, where those are writes.
        """

    @abstractmethod
    def wake_ups(self) -> int:
        """How often the store has told somebody who watches."""

    @abstractmethod
    def sessions(self) -> int:
        """How many the store has that would end by themselves: leases, or what hangs on one."""

    def clear(self, patience: float = 60.0) -> None:
        """Return once nothing is left of crowds that were killed: its lapse would be a write.

        Raises:
            TimeoutError: something is.
        """
        deadline = CLOCK.now() + patience
        while left := self.sessions():
            if CLOCK.now() > deadline:
                raise TimeoutError(f"{left} sessions are still there after {patience:g} s")
            threading.Event().wait(0.5)

    def wait_for_service(self) -> None:  # noqa: B027
        """Return once new clients are served: what a killed crowd had open may be closed late.

        Raises:
            TimeoutError: they are not within a minute.
        """

    def settle(self, quiet: float = 2.0, patience: float = 60.0) -> bool:
        """Return once the store has been asked next to nothing new for `quiet` seconds.

        That is longer than a disk has been seen to hold up a commit.

        Returns:
            False: it never was, in so many seconds of patience.
        """
        deadline = CLOCK.now() + patience
        before = self.acts()
        while CLOCK.now() < deadline:
            threading.Event().wait(quiet)
            now = self.acts()
            if now - before < 20 * quiet:
                return True
            before = now
        return False


class EtcdGround(Ground):
    """With etcd's default timings, under which no lease is shorter than 2 s."""

    name = "etcd"
    ttl = 2.0
    entrants = (Floor, FloorAndRead, Ours, Etcd3Lock, ToozLock)
    crowds = (FloorCrowd, OurCrowd, Etcd3Crowd)
    killed = 2.7
    # Three keep-alives, each with a read that proves the lease.
    renewals = 6
    recovery = 4.0

    def _start(self, running: contextlib.ExitStack) -> None:
        self._server = running.enter_context(EtcdServer(fast=False))
        self.url = self.counted_url = self._server.url
        self.version = self._server.version

    def requests(self) -> int:
        return int(self._server.count("grpc_server_msg_received_total"))

    def writes(self) -> int:
        return int(self._server.count("etcd_server_proposals_applied_total"))

    def wake_ups(self) -> int:
        return int(self._server.count("etcd_debugging_mvcc_events_total"))

    def sessions(self) -> int:
        return len(leases(self._server))


KEPT = r"zk_cnt_leadership-sessions_write_per_namespace\t(\d+)"
"""How often ours wrote below the node where they keep their sessions, as ZooKeeper tells it."""


class ZooKeeperGround(Ground):
    """With ZooKeeper's default tick, under which a session lives 4 s and expires within 6 s."""

    name = "zookeeper"
    ttl = 4.0
    entrants = (
        ZooKeeperFloor,
        ZooKeeperFloorAndProof,
        Ours,
        KazooElection,
        ToozZooKeeperLock,
        ToozElection,
    )
    crowds = (ZooKeeperFloorCrowd, OurCrowd, KazooCrowd)
    killed = 6.2
    # A write each, for pings prove nothing.
    renewals = 10
    recovery = 7.0

    def _start(self, running: contextlib.ExitStack) -> None:
        self._server = running.enter_context(ZooKeeperServer(fast=False))
        self.url = self.counted_url = self._server.url
        self.version = self._server.version
        self._asked = 0

    def _ask(self, word: str, pattern: str) -> list[str]:
        """What the pattern finds in the server's answer, which counts as a packet itself."""
        self._asked += 1
        return re.findall(pattern, ask(self._server.endpoint, word))

    def requests(self) -> int:
        (received,) = self._ask("mntr", r"zk_packets_received\t(\d+)")
        return int(received) - self._asked

    def writes(self) -> int:
        # Ours prove a session by a write, ten in a ttl, whether anything changes or not.
        for _ in range(1000):
            before = self._transactions()
            kept = sum(map(int, self._ask("mntr", KEPT)))
            if self._transactions() == before:
                return before - kept
        raise TimeoutError("ZooKeeper is written to without a pause: its writes cannot be told")

    def _transactions(self) -> int:
        (last,) = self._ask("srvr", r"Zxid: 0x([0-9a-f]+)")
        return int(last, 16)

    def wake_ups(self) -> int:
        return sum(map(int, self._ask("mntr", r"zk_sum_node_\w+_watch_count\t(\d+)")))

    def sessions(self) -> int:
        (ephemerals,) = self._ask("mntr", r"zk_ephemerals_count\t(\d+)")
        return int(ephemerals)


PLACES = ".waiting/"
"""How the keys end below which ours wait on Consul."""


def _refreshes(asked: Asked) -> bool:
    """Whether it shows that who is next is alive."""
    done = [(each["Verb"], PLACES in each["Key"]) for each in asked.operations]
    return done == [("check-index", True), ("lock", True)]


def _keeps(asked: Asked) -> bool:
    """Whether it only keeps what there is: a renewal."""
    return "/session/renew/" in asked.path or _refreshes(asked)


class ConsulGround(Ground):
    """With Consul's default timings, under which a session lives 10 s and expires within 20 s."""

    name = "consul"
    ttl = 10.0
    entrants = (Floor, FloorAndWrite, Ours, ConsulLock)
    crowds = (FloorCrowd, OurCrowd, ConsulCrowd)
    killed = 20.5
    # Each lapses for longer than ten of them need to start.
    abreast = 10
    # Two sessions at the leader; its word to those who wait; its and their long polls.
    renewals = 12
    recovery = 36.0

    def _start(self, running: contextlib.ExitStack) -> None:
        self._server = running.enter_context(ConsulServer(fast=False))
        self._relay = running.enter_context(ConsulRelay(self._server.endpoint))
        self.url = self._server.url
        self.counted_url = self._server.url_of(self._relay.endpoint)
        self.version = self._server.version
        self._told = 0
        self._waiting: set[tuple[str, int]] = set()
        self._relay.after = self._answered

    def _answered(self, asked: Asked, told: Told) -> Told:
        # A long poll that is begun, or ends with its time, was told nothing.
        index, newest = asked.query.get("index"), told.headers.get("X-Consul-Index")
        if index is not None and newest is not None and int(newest) > int(index):
            there = {(each["Key"], each["CreateIndex"]) for each in told.content or ()}
            self._told += not asked.path.endswith(PLACES) or there != self._waiting
            if asked.path.endswith(PLACES):
                self._waiting = there
        return told

    def requests(self) -> int:
        return len(self._relay.asked)

    def acts(self) -> int:
        # Each candidate has a session here, or two: those of many are never all quiet.
        return sum(not _keeps(asked) for asked in self._relay.asked)

    def wait_for_service(self) -> None:
        deadline = CLOCK.now() + 60
        while True:
            with contextlib.suppress(OSError, HTTPException, ConsulError):
                self._server.sessions()
                return
            if CLOCK.now() > deadline:
                raise TimeoutError("Consul serves no new client")
            threading.Event().wait(0.5)

    def writes(self) -> int:
        # The place of who is next is refreshed as a session is, but by a write. What the store's
        # log has is no measure: the store adds to it by itself, once in a minute when idle.
        return sum(asked.writes and not _refreshes(asked) for asked in self._relay.asked)

    def wake_ups(self) -> int:
        return self._told

    def sessions(self) -> int:
        return len(self._server.sessions())


GROUNDS: dict[str, type[Ground]] = {
    each.name: each for each in (EtcdGround, ZooKeeperGround, ConsulGround)
}
