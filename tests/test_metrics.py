"""Metrics: what happened is counted by key and backend, and the gauges go by the clock."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from leadership import Candidate, Follower, Store, new_store
from leadership.errors import ConfigurationError
from leadership.events import LeaseRenewed, StoreTrouble, WorkOverran
from leadership.health import Health
from leadership.metrics import OTHER, Metrics
from leadership.testing import ManualClock

from .peers_cluster import PeersCluster
from .servers.consul_client import ConsulClient
from .servers.etcd_client import EtcdClient
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until

KEY = "service/leader"


class Told:
    """Metrics on a registry of their own, and what they say."""

    def __init__(self, backend: str, **options: int) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, **options)
        self._backend = backend

    def value(self, name: str, key: str = KEY, **labels: str) -> float | None:
        labels = {"key": key, "backend": self._backend, **labels}
        return self.registry.get_sample_value(f"leadership_{name}", labels)

    def becomes(self, expected: float, name: str, key: str = KEY, **labels: str) -> None:
        """Hooks are told a moment later, on their own thread."""
        wait_until(
            lambda: self.value(name, key, **labels) == expected, what=f"{name} {labels} {expected}"
        )


@pytest.fixture
def told() -> Told:
    return Told("memory")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(told: Told, clock: ManualClock) -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}", clock=clock) as opened:
        told.metrics.watch(opened)
        yield opened


def follow_a_term(store: Store, told: Told, ttl: float = 1.0) -> None:
    """What every backend has to show of one term that is renewed, and given up."""
    candidate = Candidate(store, KEY, "a", ttl=ttl)
    assert told.value("leader") is None
    with candidate.campaign(timeout=30) as term:
        assert told.value("leader") == 1
        assert 0 < (told.value("lease_seconds_left") or 0) <= term.remaining() + 1
        told.becomes(1, "transitions_total", to="leader")

        def renewed() -> bool:
            keys = (KEY, "")
            return any(told.value("renewal_seconds_count", key) for key in keys)

        wait_until(renewed, 20, "a renewal")
    assert told.value("leader") == 0
    assert told.value("lease_seconds_left") == 0
    told.becomes(1, "transitions_total", to="follower")
    told.becomes(1, "hand_over_seconds_count")
    assert (told.value("hand_over_seconds_sum") or 0) < 5


@pytest.mark.backend("memory")
def test_a_term_is_counted_on_memory(told: Told) -> None:
    with new_store(f"memory://{uuid.uuid4()}") as store:
        told.metrics.watch(store)
        follow_a_term(store, told)


def test_a_term_is_counted_on_etcd(etcd: EtcdClient) -> None:
    told = Told("etcd")
    with new_store(etcd.url) as store:
        told.metrics.watch(store)
        follow_a_term(store, told)


def test_a_term_is_counted_on_consul(consul: ConsulClient) -> None:
    told = Told("consul")
    with new_store(consul.url) as store:
        told.metrics.watch(store)
        follow_a_term(store, told, ttl=10)


def test_a_term_is_counted_on_zookeeper(zookeeper: ZooKeeperClient) -> None:
    told = Told("zookeeper")
    with new_store(zookeeper.url) as store:
        told.metrics.watch(store)
        follow_a_term(store, told, ttl=4)


@pytest.mark.backend("peers")
def test_a_term_is_counted_on_peers() -> None:
    told = Told("peers")
    (store,) = PeersCluster(1).start(0)
    with store:
        told.metrics.watch(store)
        follow_a_term(store, told)


@pytest.mark.backend("memory")
def test_the_leader_gauge_falls_with_the_lease_at_the_scrape(
    store: Store, told: Told, clock: ManualClock
) -> None:
    Candidate(store, KEY, "a", ttl=10).campaign(timeout=10)
    assert told.value("leader") == 1
    left = told.value("lease_seconds_left")
    assert left is not None
    clock.advance(11)
    assert told.value("leader") == 0
    assert told.value("lease_seconds_left") == 0


@pytest.mark.backend("memory")
def test_a_hand_over_lasts_from_the_terms_end_to_the_release(
    store: Store, told: Told, clock: ManualClock
) -> None:
    candidate = Candidate(store, KEY, "a", ttl=10)
    standings = candidate.run_for_election()
    assert [next(standings), next(standings)] == [False, True]
    term = candidate.term
    assert term is not None
    resigning = threading.Thread(target=candidate.resign)
    resigning.start()
    wait_until(lambda: term.reason, what="the resignation")
    clock.advance(3)
    assert next(standings) is False
    resigning.join()
    told.becomes(1, "hand_over_seconds_count")
    told.becomes(3, "hand_over_seconds_sum")
    standings.close()


@pytest.mark.backend("memory")
def test_a_follower_measures_how_long_nobody_led(
    store: Store, told: Told, clock: ManualClock
) -> None:
    follower = Follower(store, KEY)
    with follower.observe() as leaders, follower.observe() as others:
        assert next(leaders).value is None
        assert next(others).value is None
        clock.advance(4)
        with Candidate(store, KEY, "a").campaign(timeout=10):
            assert next(leaders).value == "a"
            assert next(others).value == "a"
            told.becomes(1, "leaderless_seconds_count")
            told.becomes(4, "leaderless_seconds_sum")


@pytest.mark.backend("memory")
def test_trouble_and_overruns_are_counted(store: Store, told: Told) -> None:
    store.core.call(store.core.backend.list, "")
    for _ in range(3):
        store.core.emit(StoreTrouble("", 0.0, "no answer", 1, 0.1))
    store.core.emit(WorkOverran(KEY, 0.0, "a", 1))
    told.becomes(3, "store_errors_total", "")
    told.becomes(1, "work_overran_total")


@pytest.mark.backend("memory")
def test_labels_are_bounded_however_many_keys_there_are(clock: ManualClock) -> None:
    told = Told("memory", max_keys=2)
    with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
        told.metrics.watch(store)
        candidates = [Candidate(store, f"key-{number}", f"id-{number}") for number in range(20)]
        for candidate in candidates:
            candidate.campaign(timeout=10)
        told.becomes(18, "transitions_total", OTHER, to="leader")
        assert told.value("leader", OTHER) == 18
        assert told.value("leader", "key-0") == 1
        for candidate in candidates:
            candidate.stop()
        told.becomes(18, "hand_over_seconds_count", OTHER)
        series = [sample for metric in told.registry.collect() for sample in metric.samples]
        assert {sample.labels["key"] for sample in series} == {"key-0", "key-1", OTHER}
        # What a candidate is called, and what it leads with, grows without end.
        assert {name for sample in series for name in sample.labels} == {
            *("key", "backend", "to", "le")
        }


@pytest.mark.backend("memory")
def test_a_store_that_is_watched_twice_is_counted_once(store: Store, told: Told) -> None:
    told.metrics.watch(store)
    with Candidate(store, KEY, "a").campaign(timeout=10):
        told.becomes(1, "transitions_total", to="leader")


@pytest.mark.backend("memory")
def test_they_are_served_as_text(store: Store, told: Told) -> None:
    candidate = Candidate(store, KEY, "a")
    with candidate.campaign(timeout=10):
        answer = Health(candidate, metrics=told.metrics).answer("/metrics")
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain")
    assert b'leadership_leader{backend="memory",key="service/leader"} 1.0' in answer.body


def test_one_registry_takes_them_once() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    with pytest.raises(ConfigurationError, match="watch all your stores"):
        Metrics(registry)
    with pytest.raises(ConfigurationError, match="max_keys"):
        Metrics(CollectorRegistry(), max_keys=-1)


def test_without_the_package_the_extra_is_named() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import leadership.metrics"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "pip install 'leadership[metrics]'" in ended.stderr.splitlines()[-1]


@pytest.mark.backend("memory")
def test_where_nobody_listens_renewals_wake_no_thread() -> None:
    with new_store(f"memory://{uuid.uuid4()}") as store:
        store.core.call(store.core.backend.list, "")
        told: list[object] = []
        engine = store.core._engine
        assert engine is not None
        engine.told.tell = lambda hooks, event: told.append(event)  # type: ignore[method-assign]
        try:
            store.core.emit(LeaseRenewed(KEY, 0.0, 0.1, 5.0))
            assert told == []
            store.add_hook(lambda event: None)
            store.core.emit(LeaseRenewed(KEY, 0.0, 0.1, 5.0))
            assert len(told) == 1
        finally:
            del engine.told.tell
