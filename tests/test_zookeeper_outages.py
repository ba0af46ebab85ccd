"""What servers and networks do to elections on ZooKeeper: False in time, one leader again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from kazoo.client import KazooClient

from leadership import Candidate, Follower, LeaderState, Store, new_store
from leadership.errors import StoreUnavailable
from leadership.events import Elected, Event, LeaseRenewed, TermEnded
from leadership.retry import Retry

from .conftest import MakeZooKeeper
from .etcd_elections import CLOCK, told
from .servers.fault_proxy import FaultProxy, Mode
from .servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer
from .waiting import wait_until
from .zookeeper_elections import backend_of, entries

TTL = 4.0


@pytest.fixture(scope="module")
def own_server(make_own_zookeeper: MakeZooKeeper) -> ZooKeeperServer:
    """To freeze and restart; who does that leaves it running."""
    return make_own_zookeeper()


class Rivals:
    """Candidates in their loops, and every term that any of them was told of."""

    def __init__(self, key: str, pool: ThreadPoolExecutor) -> None:
        self.key = key
        self.ttl = TTL
        self.events: list[Event] = []
        self.candidates: list[Candidate] = []
        self._pool = pool
        self._stores = ExitStack()

    def open(self, url: str) -> Store:
        return self._stores.enter_context(
            new_store(url, hooks=[self.events.append], request_timeout=2)
        )

    def join(self, url: str, name: str) -> Candidate:
        return self.join_by(self.open(url), name)

    def join_by(self, store: Store, name: str) -> Candidate:
        candidate = Candidate(store, self.key, name, ttl=self.ttl, retry=Retry(maximum=0.5))
        self.candidates.append(candidate)
        self._pool.submit(lambda: list(candidate.run_for_election()))
        return candidate

    def leading(self) -> list[Candidate]:
        return [each for each in self.candidates if each.is_leader()]

    def close(self) -> None:
        for each in self.candidates:
            each.stop()
        self._stores.close()

    def check(self) -> None:
        """No term began before the deadline of an earlier one, and the tokens rose."""
        elected: list[Elected] = sorted(told(self.events, Elected), key=lambda each: each.at)
        assert [each.token for each in elected] == sorted({each.token for each in elected})
        ended = {each.token: each.at for each in told(self.events, TermEnded)}
        for former, later in itertools.pairwise(elected):
            assert ended[former.token] <= later.at


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor()
    yield threads
    threads.shutdown(wait=False)


@pytest.fixture
def rivals(key: str, pool: ThreadPoolExecutor) -> Iterator[Rivals]:
    made = Rivals(key, pool)
    yield made
    made.close()


def eventually_one_leads_and_nothing_is_left(rivals: Rivals, client: KazooClient) -> None:
    wait_until(lambda: len(rivals.leading()) == 1, 30, "one leader")
    wait_until(
        lambda: len(entries(client, rivals.key)) == len(rivals.candidates),
        30,
        "one entry for each",
    )
    rivals.check()
    rivals.close()
    wait_until(lambda: entries(client, rivals.key) == [], 10, "no entry")


def until_false(candidate: Candidate, deadline: Callable[[], float]) -> None:
    """Wait for its False, which must come by the deadline that it names."""
    wait_until(lambda: not candidate.is_leader(), 10, "the end of the term")
    assert CLOCK.now() <= deadline() + 0.5


class TestOneServer:
    def test_a_frozen_server_costs_the_term_and_one_leads_again(
        self, own_server: ZooKeeperServer, rivals: Rivals
    ) -> None:
        with own_server.client() as client:
            first = rivals.join(own_server.url, "a")
            wait_until(first.is_leader, 10, "the first to lead")
            rivals.join(own_server.url, "b")
            wait_until(lambda: len(entries(client, rivals.key)) == 2, 10, "both entries")
            term = first.term
            assert term is not None
            own_server.pause()
            until_false(first, lambda: term.valid_until)
            assert rivals.leading() == []
            own_server.resume()
            eventually_one_leads_and_nothing_is_left(rivals, client)

    @pytest.mark.parametrize("mode", [Mode.STALL, Mode.DOWN])
    def test_a_leader_cut_off_is_over_before_the_next_leads(
        self, own_server: ZooKeeperServer, rivals: Rivals, mode: Mode
    ) -> None:
        with (
            own_server.client() as client,
            FaultProxy(own_server.client_port) as relay,
        ):
            rivals.ttl = 2
            first = rivals.join(f"zookeeper://{relay.endpoint}", "a")
            wait_until(first.is_leader, 10, "the first to lead")
            second = rivals.join(own_server.url, "b")
            wait_until(lambda: len(entries(client, rivals.key)) == 2, 10, "both entries")
            term = first.term
            assert term is not None
            relay.set(mode)
            until_false(first, lambda: term.valid_until)
            wait_until(second.is_leader, 15, "the second to lead")
            assert second.term is not None
            assert second.term.elected_at >= term.valid_until
            relay.set(Mode.PASS)
            eventually_one_leads_and_nothing_is_left(rivals, client)

    def test_a_restarted_server_keeps_the_session_the_entry_and_the_rising_tokens(
        self, own_server: ZooKeeperServer, key: str
    ) -> None:
        with new_store(own_server.url) as store:
            term = Candidate(store, key, "a", ttl=30).campaign(timeout=10)
            own_server.kill()
            own_server.start()
            assert Follower(store, key).wait_for_leader(20) == "a"
            assert term.is_valid()
            term.resign()
            with Candidate(store, key, "b", ttl=30).campaign(timeout=20) as after:
                assert after.token > term.token

    @pytest.mark.parametrize(
        ("mode", "session_timeout", "within"), [(Mode.STALL, 2, 6), (Mode.RESET, 30, 3)]
    )
    def test_a_follower_cut_off_says_that_it_does_not_know(
        self, own_server: ZooKeeperServer, key: str, mode: Mode, session_timeout: int, within: int
    ) -> None:
        with (
            FaultProxy(own_server.client_port) as relay,
            new_store(own_server.url) as near,
            new_store(f"zookeeper://{relay.endpoint}?session_timeout={session_timeout}") as far,
        ):
            leader = Candidate(near, key, "a", ttl=20)
            leader.campaign(timeout=10)
            with Follower(far, key, patience=0.1).observe() as observed:
                assert next(observed).value == "a"
                relay.set(mode)
                cut_at = CLOCK.now()
                assert next(observed).state is LeaderState.UNKNOWN
                assert CLOCK.now() - cut_at < within
                leader.stop()
                relay.set(Mode.PASS)
                wait_until(lambda: next(observed).state is LeaderState.NONE, 10, "the truth")

    def test_the_lease_counts_from_the_send_however_late_the_answer_comes(
        self, own_server: ZooKeeperServer, key: str
    ) -> None:
        events: list[Event] = []
        with (
            FaultProxy(own_server.client_port) as relay,
            new_store(f"zookeeper://{relay.endpoint}", hooks=[events.append]) as store,
            Candidate(store, key, "a", ttl=6).campaign(timeout=10),
        ):
            relay.set(Mode.DELAY, 0.15)
            slow = wait_until(
                lambda: [each for each in told(events, LeaseRenewed) if each.round_trip > 0.3],
                20,
                "a renewal with a slow answer",
            )
            for each in slow:
                # Half of the timeout, less drift and guard, from the send on.
                assert each.valid_until <= each.at - each.round_trip + 3 * 0.99

    def test_a_thousand_requests_to_a_silent_server_do_not_hold_up_the_engine(
        self, own_server: ZooKeeperServer
    ) -> None:
        with new_store(own_server.url, request_timeout=1) as store:
            assert store.get("x") is None
            own_server.pause()

            async def scenario() -> tuple[float, set[type]]:
                backend = backend_of(store)
                # So large that kazoo's thread cannot even send them.
                value = b"v" * 50_000
                puts = [asyncio.ensure_future(backend.put(f"k{n}", value)) for n in range(1000)]
                longest, before = 0.0, CLOCK.now()
                while not all(each.done() for each in puts):
                    await asyncio.sleep(0.01)
                    longest, before = max(longest, CLOCK.now() - before), CLOCK.now()
                return longest, {type(each.exception()) for each in puts}

            longest, errors = store.core.call(scenario)
            assert errors == {StoreUnavailable}
            assert longest < 1
            own_server.resume()
            assert wait_until(lambda: answers(store), 20, "an answer again")


def answers(store: Store) -> bool:
    try:
        store.put("x", b"x")
    except StoreUnavailable:
        return False
    return True


@pytest.mark.long
class TestEnsemble:
    def test_the_loss_of_its_leader_and_a_follower_cut_from_it(
        self, cuttable_ensemble: ZooKeeperEnsemble, rivals: Rivals
    ) -> None:
        ensemble = cuttable_ensemble
        follower, elsewhere = ensemble.followers()
        with elsewhere.client() as client:
            # This one can only ever talk to the follower that is cut off.
            first = rivals.join(follower.url, "a")
            wait_until(first.is_leader, 10, "the first to lead")
            second = rivals.join(ensemble.url, "b")
            wait_until(lambda: len(entries(client, rivals.key)) == 2, 10, "both entries")
            term = first.term
            assert term is not None
            ensemble.cut(follower)
            # The follower goes on answering reads and pings for a while.
            until_false(first, lambda: term.valid_until)
            wait_until(second.is_leader, 20, "the second to lead")
            assert second.term is not None
            assert second.term.elected_at >= term.valid_until
            ensemble.heal(follower)
            wait_until(lambda: follower.role() == "follower", 30, "the follower to be back")
            wait_until(lambda: len(entries(client, rivals.key)) == 2, 30, "both entries again")

        lost = ensemble.leader()
        other = next(each for each in ensemble.members if each is not lost)
        lost.kill()
        with other.client() as client:
            eventually_one_leads_and_nothing_is_left(rivals, client)

    def test_a_leader_whose_server_commits_nothing_goes_on_by_another(
        self, cuttable_ensemble: ZooKeeperEnsemble, key: str
    ) -> None:
        ensemble = cuttable_ensemble
        followers = {each.client_port: each for each in ensemble.followers()}
        with ExitStack() as stores:
            # Which server it takes is up to chance.
            for number in itertools.count():
                store = stores.enter_context(new_store(ensemble.url, request_timeout=1))
                candidate = Candidate(store, f"{key}-{number}", "a", ttl=10)
                term = candidate.campaign(timeout=10)
                port = port_of(store, 10)
                if port in followers:
                    break
            # It goes on answering pings for as long as that.
            ensemble.cut(followers[port])
            before, cut_at = term.valid_until, CLOCK.now()
            # Its keys are on a connection of their own, to the same server.
            wait_until(lambda: answers(store), 15, "a write by another server")
            assert CLOCK.now() - cut_at < 5, "it stayed for as long as the server answered pings"
            wait_until(lambda: term.valid_until > before + 2, 15, "renewals by another server")
            assert term.is_valid()
            assert port_of(store, 10) != port

    def test_a_server_that_only_answers_reads_does_not_count(
        self, key: str, read_only_ensemble: ZooKeeperEnsemble
    ) -> None:
        ensemble = read_only_ensemble
        alone = ensemble.members[0]
        with new_store(alone.url, request_timeout=1) as store:
            for server in ensemble.members[1:]:
                server.kill()
            wait_until(lambda: alone.role() == "read-only", 30, "the read-only mode")
            with pytest.raises(StoreUnavailable):
                store.get("x")
            candidate = Candidate(store, key, "a", ttl=TTL, retry=None)
            with pytest.raises(StoreUnavailable):
                candidate.campaign(timeout=10)


def port_of(store: Store, ttl: float) -> int:
    """The port of the server that a store's elections are connected to."""
    session = backend_of(store)._election.sessions._slots[ttl, False][0]._session
    assert session is not None
    wire = session.connection._handler.wire
    assert wire is not None
    port: int = wire.getpeername()[1]
    return port
