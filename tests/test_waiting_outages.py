"""Who waits while its store goes away: told with `retry=None`, else it keeps its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pytest

from leadership import Candidate, Retry, Store, new_store
from leadership.backends._consul_requests import places_of
from leadership.errors import StoreUnavailable
from leadership.events import Event, LeaseRenewed, StoreRecovered, StoreTrouble

from .etcd_elections import CLOCK, told
from .servers.consul_client import ConsulClient
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until
from .zookeeper_elections import entries


class Server(Protocol):
    @property
    def endpoint(self) -> str: ...


S = TypeVar("S", bound=Server)


class Ground(ABC, Generic[S]):
    """One store's server, and what waits there.

    Attributes:
        scheme: of its URLs.
        ttl: seconds, of a session that can be given up within a test.
        reset_ttl: so long that nothing finds a broken connection out sooner than a watch.
    """

    scheme: ClassVar[str]
    ttl: ClassVar[float] = 3
    reset_ttl: ClassVar[float] = 120

    def __init__(self, server: S) -> None:
        self._server = server
        self.endpoint = server.endpoint

    def url(self, *endpoints: str) -> str:
        return f"{self.scheme}://{','.join(endpoints)}"

    @abstractmethod
    def waiters(self, key: str) -> list[str]:
        """The places of those who wait behind the leader, first come first."""


class OnEtcd(Ground[EtcdClient]):
    scheme = "etcd"
    ttl = 6

    def waiters(self, key: str) -> list[str]:
        ask = ("get", "--prefix", f"{key}/", "--keys-only", "--sort-by=CREATE")
        return self._server.ctl(*ask).split()[1:]


class OnZooKeeper(Ground[ZooKeeperClient]):
    scheme = "zookeeper"
    # The server grants no longer one.
    reset_ttl = 30

    def waiters(self, key: str) -> list[str]:
        with self._server.client() as client:
            return entries(client, key)[1:]


class OnConsul(Ground[ConsulClient]):
    scheme = "consul"
    ttl = 2

    def url(self, *endpoints: str) -> str:
        return self._server.url_of(",".join(endpoints))

    def waiters(self, key: str) -> list[str]:
        found = [self._server.entry(place) for place in self._server.keys(places_of(key))]
        made = sorted((entry["CreateIndex"], entry["Key"]) for entry in found if entry)
        return [name for _, name in made]


GROUNDS: dict[str, Callable[[Any], Ground[Any]]] = {
    "etcd": OnEtcd,
    "zookeeper": OnZooKeeper,
    "consul": OnConsul,
}


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.backend(name)) for name in GROUNDS],
)
def ground(request: pytest.FixtureRequest) -> Ground[Any]:
    return GROUNDS[request.param](request.getfixturevalue(request.param))


@pytest.fixture
def leader(ground: Ground[Any], key: str) -> Iterator[Candidate]:
    """Leads, on a store that stays in reach."""
    with new_store(ground.url(ground.endpoint)) as store:
        candidate = Candidate(store, key, "a", ttl=30)
        candidate.campaign(timeout=10)
        yield candidate
        candidate.stop()


@pytest.fixture
def relay(ground: Ground[Any]) -> Iterator[FaultProxy]:
    host, _, port = ground.endpoint.rpartition(":")
    with FaultProxy(int(port), host) as proxy:
        yield proxy


@pytest.fixture
def cut(ground: Ground[Any], relay: FaultProxy, events: list[Event]) -> Iterator[Store]:
    """Its way to the server is the relay."""
    address = ground.url(relay.endpoint)
    with new_store(address, hooks=[events.append], request_timeout=1) as opened:
        yield opened
        relay.set("pass")


def until_waiting(ground: Ground[Any], key: str, count: int) -> list[str]:
    wait_until(lambda: len(ground.waiters(key)) == count, 20, f"{count} to wait")
    return ground.waiters(key)


def of_key(events: list[Event], kind: type[Event], key: str) -> list[Event]:
    return [each for each in told(events, kind) if each.key == key]


@pytest.mark.parametrize("mode", ["reset", "stall", "down"])
def test_without_a_retry_the_first_outage_is_raised_out_of_the_wait(
    ground: Ground[Any],
    leader: Candidate,
    cut: Store,
    relay: FaultProxy,
    key: str,
    mode: str,
    pool: ThreadPoolExecutor,
) -> None:
    ttl = ground.reset_ttl if mode == "reset" else ground.ttl
    candidate = Candidate(cut, key, "b", ttl=ttl, retry=None)
    standings = candidate.run_for_election()
    assert next(standings) is False
    waiting = pool.submit(next, standings)
    until_waiting(ground, key, 1)
    relay.set(mode)
    with pytest.raises(StoreUnavailable):
        waiting.result(20)
    relay.set("pass")
    until_waiting(ground, key, 0)
    # And it may run again.
    again = pool.submit(candidate.campaign)
    until_waiting(ground, key, 1)
    leader.stop()
    assert again.result(20).is_valid()
    candidate.stop()


@pytest.mark.parametrize("mode", ["reset", "stall"])
def test_the_loss_of_one_server_of_two_is_no_outage(
    ground: Ground[Any],
    leader: Candidate,
    relay: FaultProxy,
    key: str,
    mode: str,
    pool: ThreadPoolExecutor,
    events: list[Event],
) -> None:
    address = ground.url(relay.endpoint, ground.endpoint)
    with new_store(address, hooks=[events.append], request_timeout=3) as both:
        waiting = pool.submit(Candidate(both, key, "b", ttl=ground.ttl, retry=None).campaign)
        place = until_waiting(ground, key, 1)
        relay.set(mode)
        cut_at = CLOCK.now()

        def renewed() -> bool:
            """By the other way: so often that a watch had its time to come after."""
            return len([each for each in told(events, LeaseRenewed) if each.at > cut_at]) > 3

        wait_until(renewed, 30, "renewals by the second server")
        assert ground.waiters(key) == place
        assert not of_key(events, StoreTrouble, key)
        leader.stop()
        assert waiting.result(20).is_valid()


def test_with_a_retry_the_outage_and_its_end_are_told_and_the_place_is_kept(
    ground: Ground[Any],
    leader: Candidate,
    cut: Store,
    relay: FaultProxy,
    key: str,
    pool: ThreadPoolExecutor,
    events: list[Event],
) -> None:
    second = Candidate(cut, key, "b", ttl=30, retry=Retry(0.05, 0.5))
    waiting = pool.submit(second.campaign)
    until_waiting(ground, key, 1)
    with new_store(ground.url(ground.endpoint)) as near:
        third = Candidate(near, key, "c", ttl=30)
        behind = pool.submit(third.campaign)
        standing = until_waiting(ground, key, 2)
        relay.set("reset")
        wait_until(lambda: len(of_key(events, StoreTrouble, key)) >= 3, 20, "its own trouble")
        assert not of_key(events, StoreRecovered, key)
        relay.set("pass")
        wait_until(lambda: of_key(events, StoreRecovered, key), 20, "the end of it")
        assert not waiting.done(), "it said so only when it led"
        assert ground.waiters(key) == standing
        leader.stop()
        assert waiting.result(20).is_valid()
        assert not behind.done()
        assert len(of_key(events, StoreRecovered, key)) == 1
        second.stop()
        assert behind.result(20).is_valid()
        third.stop()
