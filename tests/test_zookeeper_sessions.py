"""One session for many elections on ZooKeeper: what it grants, what they share, what it costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kazoo.client import KazooClient

from leadership import Candidate, Store, aio, new_store
from leadership.events import Elected, Event, LeaseRenewed, TermEnded, TtlGranted

from .conftest import MakeZooKeeper
from .etcd_elections import told
from .servers.zookeeper import ZooKeeperClient, ZooKeeperServer
from .waiting import async_wait_until, wait_until
from .zookeeper_elections import backend_of, entries, session_of


@pytest.fixture
def store(zookeeper: ZooKeeperClient, events: list[Event]) -> Iterator[Store]:
    with new_store(zookeeper.url, hooks=[events.append]) as opened:
        yield opened


@pytest.fixture
def client(zookeeper: ZooKeeperClient) -> Iterator[KazooClient]:
    with zookeeper.client() as started:
        yield started


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait; the stores' ends end those that a failed test leaves."""
    threads = ThreadPoolExecutor()
    yield threads
    threads.shutdown(wait=False)


@pytest.fixture(scope="module")
def own_server(make_own_zookeeper: MakeZooKeeper) -> ZooKeeperServer:
    """To freeze and restart; who does that leaves it running."""
    return make_own_zookeeper()


class TestSessions:
    def test_a_timeout_that_the_server_changes_is_obeyed_with_one_warning(
        self, make_zookeeper: MakeZooKeeper, key: str, events: list[Event]
    ) -> None:
        server = make_zookeeper(fast=False)
        with new_store(server.url, hooks=[events.append]) as store:
            with Candidate(store, key, "a", ttl=1).campaign(timeout=10) as term:
                assert 1 < term.remaining() <= 2
            with Candidate(store, f"{key}2", "a", ttl=1, own_session=True).campaign(timeout=10):
                pass
            granted = wait_until(lambda: told(events, TtlGranted), 5)
            assert [(each.asked, each.granted) for each in granted] == [(1.0, 4.0)]

    def test_half_of_the_timeout_is_trusted_and_all_of_it_only_on_request(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        for option, share in (("", 0.5), ("?standalone=true", 1.0)):
            with new_store(zookeeper.url + option) as store:
                with Candidate(store, key, "a", ttl=10).campaign(timeout=10) as term:
                    assert 10 * share - 1.5 < term.remaining() < 10 * share

    def test_two_candidates_of_one_store_share_a_session_and_one_leaving_leaves_it(
        self, store: Store, client: KazooClient, key: str, pool: ThreadPoolExecutor
    ) -> None:
        first, second = (Candidate(store, key, name, ttl=5) for name in "ab")
        first.campaign(timeout=10)
        waits = pool.submit(second.campaign)
        wait_until(lambda: len(entries(client, key)) == 2, 10, "two entries")
        names = entries(client, key)
        owners = {client.exists(f"/{key}/{name}").ephemeralOwner for name in names}
        assert len(owners) == 1
        first.stop()
        assert waits.result(10).is_valid()
        second.stop()
        assert entries(client, key) == []

    def test_a_lapse_on_a_living_session_costs_the_leader_its_place_and_nobody_elses(
        self,
        own_server: ZooKeeperServer,
        key: str,
        events: list[Event],
        pool: ThreadPoolExecutor,
    ) -> None:
        with (
            own_server.client() as client,
            new_store(own_server.url, hooks=[events.append]) as store,
        ):
            candidates = [Candidate(store, key, name, ttl=6) for name in "abc"]
            runs = []
            for number, candidate in enumerate(candidates, start=1):
                runs.append(pool.submit(list[bool], candidate.run_for_election()))

                def entered(number: int = number) -> bool:
                    return len(entries(client, key)) == number

                wait_until(entered, 10, "its entry")
            before = entries(client, key)
            session = session_of(candidates[0])
            wait_until(candidates[0].is_leader, 10, "the first to lead")
            # Longer than the lease, and much shorter than the session.
            own_server.pause()
            wait_until(lambda: told(events, TermEnded), 10, "the lapse")
            assert not any(each.is_leader() for each in candidates)
            own_server.resume()
            wait_until(candidates[1].is_leader, 10, "the second to lead")
            wait_until(lambda: len(entries(client, key)) == 3, 10, "all to be there")
            assert entries(client, key)[:2] == before[1:]
            assert session_of(candidates[0]) == session
            for each in candidates:
                each.stop()
            for run in runs:
                run.result(10)


class TestMany:
    @pytest.mark.parametrize(
        ("number", "ttl"), [(60, 6), pytest.param(2000, 20, marks=pytest.mark.long)]
    )
    def test_many_elections_share_one_session_its_renewals_and_its_threads(
        self, own_server: ZooKeeperServer, key: str, number: int, ttl: int
    ) -> None:
        def cost(names: list[str]) -> tuple[int, int, int]:
            """Threads, sessions, and packets of ten renewals with these elections."""

            async def scenario() -> tuple[int, int, int]:
                renewed = asyncio.Queue[None]()
                loop = asyncio.get_running_loop()

                def hook(event: Event) -> None:
                    if isinstance(event, LeaseRenewed):
                        loop.call_soon_threadsafe(renewed.put_nowait, None)

                async with aio.new_store(own_server.url, hooks=[hook]) as store:
                    candidates = [aio.Candidate(store, name, "a", ttl=ttl) for name in names]
                    await asyncio.gather(*(each.campaign(timeout=60) for each in candidates))
                    threads = threading.active_count()
                    sessions = own_server.count("zk_num_alive_connections")
                    while not renewed.empty():
                        renewed.get_nowait()
                    before = own_server.count("zk_packets_received")
                    for _ in range(5):
                        await asyncio.wait_for(renewed.get(), 10)
                    after = own_server.count("zk_packets_received")
                    assert all(each.is_leader() for each in candidates)
                    return threads, sessions, after - before

            return asyncio.run(scenario())

        one = cost([f"{key}/one"])
        many = cost([f"{key}/{each}" for each in range(number)])
        assert many[:2] == one[:2]
        assert many[2] <= one[2] + 2
        with own_server.client() as client:
            assert entries(client, f"{key}/7") == []

    @pytest.mark.long
    def test_of_five_hundred_who_wait_one_is_woken_when_the_leader_resigns(
        self, own_server: ZooKeeperServer, key: str, events: list[Event]
    ) -> None:
        async def scenario() -> tuple[int, int]:
            async with aio.new_store(own_server.url, hooks=[events.append]) as store:
                first = aio.Candidate(store, key, "first", ttl=20)
                await first.campaign(timeout=10)
                others = [aio.Candidate(store, key, str(n), ttl=20) for n in range(500)]
                waits = [asyncio.ensure_future(other._campaign(None)) for other in others]
                backend = backend_of(store)
                session = backend._election.sessions._slots[20.0, False][0]._session
                assert session is not None
                # Each watches its own entry, and all but the first one more.
                await async_wait_until(
                    lambda: (
                        sum(map(len, session.connection.watches._told.values())) == 1001
                        and not session.connection._outstanding
                    ),
                    60,
                    "all to wait",
                )
                before = own_server.count("zk_packets_received")
                await first.resign()
                done, _ = await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
                after = own_server.count("zk_packets_received")
                assert len(told(events, Elected)) == 2
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
                return len(done), after - before

        woken, packets = asyncio.run(scenario())
        assert woken == 1
        # One to leave, two by who is woken to look and to prove; and pings and renewals.
        assert packets <= 3 + 7
