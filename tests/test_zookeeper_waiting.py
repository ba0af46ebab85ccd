"""Who waits on ZooKeeper while it goes away: told with `retry=None`, else it keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kazoo.client import KazooClient

from leadership import Candidate, Retry, Store, new_store
from leadership.errors import StoreUnavailable
from leadership.events import Event, LeaseRenewed, StoreRecovered, StoreTrouble

from .etcd_elections import CLOCK, told
from .servers.fault_proxy import FaultProxy, Mode
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until
from .zookeeper_elections import entries


@pytest.fixture
def store(zookeeper: ZooKeeperClient) -> Iterator[Store]:
    with new_store(zookeeper.url) as opened:
        yield opened


@pytest.fixture
def client(zookeeper: ZooKeeperClient) -> Iterator[KazooClient]:
    with zookeeper.client() as started:
        yield started


@pytest.fixture
def relay(zookeeper: ZooKeeperClient) -> Iterator[FaultProxy]:
    with FaultProxy(int(zookeeper.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def cut(relay: FaultProxy, events: list[Event]) -> Iterator[Store]:
    address = f"zookeeper://{relay.endpoint}"
    with new_store(address, hooks=[events.append], request_timeout=1) as opened:
        yield opened
        relay.set(Mode.PASS)


def of(events: list[Event], kind: type[Event], key: str) -> list[Event]:
    return [each for each in told(events, kind) if each.key == key]


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.STALL, Mode.DOWN])
def test_without_a_retry_the_first_outage_is_raised_out_of_the_wait(
    client: KazooClient,
    store: Store,
    cut: Store,
    relay: FaultProxy,
    key: str,
    mode: Mode,
    pool: ThreadPoolExecutor,
) -> None:
    leader = Candidate(store, key, "a", ttl=30)
    leader.campaign(timeout=10)
    candidate = Candidate(cut, key, "b", ttl=3, retry=None)
    standings = candidate.run_for_election()
    assert next(standings) is False
    waiting = pool.submit(next, standings)
    wait_until(lambda: len(entries(client, key)) == 2, 10, "the second entry")
    relay.set(mode)
    with pytest.raises(StoreUnavailable):
        waiting.result(20)
    relay.set(Mode.PASS)
    wait_until(lambda: len(entries(client, key)) == 1, 20, "the end of its entry")
    # And it may run again.
    again = pool.submit(candidate.campaign)
    wait_until(lambda: len(entries(client, key)) == 2, 10, "its new entry")
    leader.stop()
    assert again.result(20).is_valid()
    candidate.stop()


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.STALL])
def test_the_loss_of_one_server_of_two_is_no_outage(
    zookeeper: ZooKeeperClient,
    client: KazooClient,
    store: Store,
    relay: FaultProxy,
    key: str,
    mode: Mode,
    pool: ThreadPoolExecutor,
    events: list[Event],
) -> None:
    leader = Candidate(store, key, "a", ttl=30)
    leader.campaign(timeout=10)
    address = f"zookeeper://{relay.endpoint},{zookeeper.endpoint}"
    with new_store(address, hooks=[events.append], request_timeout=3) as both:
        waiting = pool.submit(Candidate(both, key, "b", ttl=3, retry=None).campaign)
        wait_until(lambda: len(entries(client, key)) == 2, 10, "the second entry")
        place = entries(client, key)[1]
        relay.set(mode)
        cut_at = CLOCK.now()
        wait_until(
            lambda: len([each for each in told(events, LeaseRenewed) if each.at > cut_at]) > 3,
            20,
            "renewals by the second server",
        )
        leader.stop()
        assert waiting.result(20).is_valid()
        assert entries(client, key) == [place]
        assert not of(events, StoreTrouble, key)


def test_with_a_retry_it_tells_the_outage_and_its_end_and_keeps_its_place(
    client: KazooClient,
    store: Store,
    cut: Store,
    relay: FaultProxy,
    key: str,
    pool: ThreadPoolExecutor,
    events: list[Event],
) -> None:
    leader = Candidate(store, key, "a", ttl=30)
    leader.campaign(timeout=10)
    second = Candidate(cut, key, "b", ttl=30, retry=Retry(0.05, 0.5))
    waiting = pool.submit(second.campaign)
    wait_until(lambda: len(entries(client, key)) == 2, 10, "the second entry")
    third = Candidate(store, key, "c", ttl=30)
    behind = pool.submit(third.campaign)
    wait_until(lambda: len(entries(client, key)) == 3, 10, "the third entry")
    places = entries(client, key)
    relay.set(Mode.RESET)
    wait_until(lambda: len(of(events, StoreTrouble, key)) >= 2, 20, "its own trouble")
    assert not of(events, StoreRecovered, key)
    relay.set(Mode.PASS)
    wait_until(lambda: of(events, StoreRecovered, key), 20, "the end of its trouble")
    assert not waiting.done(), "it said so only when it led"
    leader.stop()
    assert waiting.result(20).is_valid()
    assert entries(client, key) == places[1:]
    assert not behind.done()
    second.stop()
    behind.result(20)
    third.stop()
