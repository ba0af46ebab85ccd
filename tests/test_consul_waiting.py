"""Who waits on Consul while it goes away: told with `retry=None`, else it keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, Retry, Store, new_store
from leadership.errors import StoreUnavailable
from leadership.events import Event, LeaseRenewed, StoreRecovered, StoreTrouble

from .consul_elections import places, until_waiting
from .etcd_elections import CLOCK, told
from .servers.consul_client import ConsulClient
from .servers.fault_proxy import FaultProxy
from .waiting import wait_until


@pytest.fixture
def cut(consul: ConsulClient, consul_proxy: FaultProxy, events: list[Event]) -> Iterator[Store]:
    address = consul.url_of(consul_proxy.endpoint)
    with new_store(address, hooks=[events.append], request_timeout=1) as opened:
        yield opened
        consul_proxy.set("pass")


def of_key(events: list[Event], kind: type[Event], key: str) -> list[Event]:
    return [each for each in told(events, kind) if each.key == key]


class TestWithoutARetry:
    # With the long ttl no renewal finds out before the query does.
    @pytest.mark.parametrize(("mode", "ttl"), [("reset", 120), ("stall", 2), ("down", 2)])
    def test_the_first_outage_is_raised_out_of_the_wait(
        self,
        consul: ConsulClient,
        consul_store: Store,
        cut: Store,
        consul_proxy: FaultProxy,
        key: str,
        mode: str,
        ttl: float,
        pool: ThreadPoolExecutor,
    ) -> None:
        leader = Candidate(consul_store, key, "a", ttl=30)
        leader.campaign(timeout=10)
        candidate = Candidate(cut, key, "b", ttl=ttl, retry=None)
        standings = candidate.run_for_election()
        assert next(standings) is False
        waiting = pool.submit(next, standings)
        until_waiting(consul, key)
        consul_proxy.set(mode)
        with pytest.raises(StoreUnavailable):
            waiting.result(20)
        consul_proxy.set("pass")
        wait_until(lambda: places(consul, key) == [], 20, "the end of its place")
        # And it may run again.
        again = pool.submit(candidate.campaign)
        until_waiting(consul, key)
        leader.stop()
        assert again.result(20).is_valid()
        candidate.stop()

    def test_the_loss_of_one_agent_of_two_is_no_outage(
        self,
        consul: ConsulClient,
        consul_store: Store,
        consul_proxy: FaultProxy,
        key: str,
        pool: ThreadPoolExecutor,
        events: list[Event],
    ) -> None:
        leader = Candidate(consul_store, key, "a", ttl=30)
        leader.campaign(timeout=10)
        seen: list[Event] = []
        address = consul.url_of(f"{consul_proxy.endpoint},{consul.endpoint}")
        with new_store(address, hooks=[seen.append], request_timeout=1) as both:
            waiting = pool.submit(Candidate(both, key, "b", ttl=2, retry=None).campaign)
            until_waiting(consul, key)
            consul_proxy.set("reset")
            cut_at = CLOCK.now()
            wait_until(
                lambda: len([each for each in told(seen, LeaseRenewed) if each.at > cut_at]) > 2,
                20,
                "renewals by the second agent",
            )
            leader.stop()
            assert waiting.result(20).is_valid()
            assert not of_key(seen, StoreTrouble, key)


def test_with_a_retry_the_outage_and_its_end_are_told_and_the_place_is_kept(
    consul: ConsulClient,
    consul_store: Store,
    cut: Store,
    consul_proxy: FaultProxy,
    key: str,
    pool: ThreadPoolExecutor,
    events: list[Event],
) -> None:
    leader = Candidate(consul_store, key, "a", ttl=30)
    leader.campaign(timeout=10)
    second = Candidate(cut, key, "b", ttl=30, retry=Retry(0.05, 0.5))
    waiting = pool.submit(second.campaign)
    until_waiting(consul, key)
    (place,) = consul.keys(f"{key}.waiting/")
    since = consul.entry(place)["CreateIndex"]  # type: ignore[index]
    third = Candidate(consul_store, key, "c", ttl=30)
    behind = pool.submit(third.campaign)
    until_waiting(consul, key, 2)
    consul_proxy.set("reset")
    wait_until(lambda: len(of_key(events, StoreTrouble, key)) >= 3, 20, "its own trouble")
    assert not of_key(events, StoreRecovered, key)
    consul_proxy.set("pass")
    wait_until(lambda: of_key(events, StoreRecovered, key), 20, "the end of it, while it waits")
    assert not waiting.done()
    assert consul.entry(place)["CreateIndex"] == since  # type: ignore[index]
    leader.stop()
    assert waiting.result(20).is_valid()
    assert not behind.done()
    assert len(of_key(events, StoreRecovered, key)) == 1
    second.stop()
    behind.result(20)
    third.stop()
