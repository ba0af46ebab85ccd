"""Elections on a real Consul that is killed, paused, cut off, or loses what it was told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, Follower, Retry, Store, new_store
from leadership.backends._consul_requests import LOCK_FLAGS
from leadership.errors import LeadershipLost, StoreUnavailable
from leadership.events import Event, LeaseRenewed

from .consul_elections import places, until_waiting
from .etcd_elections import CLOCK, told
from .servers.consul import ConsulCluster, ConsulServer
from .servers.consul_client import ConsulClient
from .servers.consul_relay import Asked, ConsulRelay, LostReplyError, StallError, Told
from .servers.fault_proxy import FaultProxy
from .waiting import wait_until

LONG = pytest.mark.long


class Terms:
    """Candidates in their loops, and the tokens of their terms in the order in which they began."""

    def __init__(self, candidates: list[Candidate], pool: ThreadPoolExecutor) -> None:
        self.candidates = candidates
        self.tokens: list[int] = []
        self._lock = threading.Lock()
        self._runs = [pool.submit(self._loop, each) for each in candidates]

    def _loop(self, candidate: Candidate) -> None:
        for standing in candidate.run_for_election():
            term = candidate.term
            if standing and term is not None:
                with self._lock:
                    self.tokens.append(term.token)

    def leading(self) -> int:
        return sum(each.is_leader() for each in self.candidates)

    def until_more(self, than: int, within: float = 30) -> None:
        wait_until(lambda: len(self.tokens) > than, within, "one more term")
        wait_until(lambda: self.leading() == 1, 10, "one leader")

    def end(self) -> None:
        for each in self.candidates:
            each.stop()
        for run in self._runs:
            run.result(20)


class TestRestarts:
    def test_the_agent_is_killed_and_started_again(
        self, consul_server: ConsulServer, key: str, pool: ThreadPoolExecutor
    ) -> None:
        with new_store(consul_server.url) as store:
            terms = Terms([Candidate(store, key, name, ttl=2) for name in "ab"], pool)
            terms.until_more(0)
            consul_server.kill()
            wait_until(lambda: terms.leading() == 0, 10, "the deadline, while the store is away")
            before = len(terms.tokens)
            consul_server.start()
            terms.until_more(before)
            assert terms.tokens == sorted(set(terms.tokens))
            terms.end()
            assert consul_server.keys() == []

    @LONG
    def test_a_short_restart_keeps_the_leader(
        self, consul_server: ConsulServer, key: str, events: list[Event]
    ) -> None:
        with new_store(consul_server.url, hooks=[events.append]) as store:
            with Candidate(store, key, "a", ttl=8).campaign(timeout=10) as term:
                consul_server.kill()
                consul_server.start()
                before = len(told(events, LeaseRenewed))
                wait_until(lambda: len(told(events, LeaseRenewed)) > before, 15, "a renewal")
                assert term.is_valid()
                assert term.wait_lost(0) is False
            assert consul_server.keys() == []

    def test_a_store_that_is_restored_to_before_the_term_tells_its_leader(
        self, consul_server: ConsulServer, key: str
    ) -> None:
        with new_store(consul_server.url) as store:
            # Its session is in the snapshot: that alone tells nothing.
            keeper = Candidate(store, f"{key}-keeper", "k", ttl=15)
            keeper.campaign(timeout=10)
            snapshot = consul_server.snapshot()
            candidate = Candidate(store, key, "a", ttl=15)
            term = candidate.campaign(timeout=10)
            consul_server.restore(snapshot)
            # A query that reaches the server after the restore, with an index from before
            # it, is answered only at its end: a quarter of the ttl, and Consul's sixteenth.
            assert term.wait_lost(10)
            assert term.reason is not None
            assert "deleted" in term.reason
            candidate.stop()
            keeper.stop()

    @LONG
    def test_a_paused_agent_ends_the_term_at_the_deadline(
        self, consul_server: ConsulServer, key: str
    ) -> None:
        with (
            new_store(consul_server.url, request_timeout=1) as store,
            Candidate(store, key, "a", ttl=2).campaign(timeout=10) as term,
        ):
            consul_server.pause()
            try:
                assert term.wait_lost(10)
                assert CLOCK.now() - term.valid_until < 0.5, "told late"
                with pytest.raises(LeadershipLost, match="not renewed in time"):
                    term.check()
            finally:
                consul_server.resume()

    def test_the_leading_server_of_three_is_killed(
        self, consul_cluster: ConsulCluster, key: str, pool: ThreadPoolExecutor
    ) -> None:
        # The first endpoint of one store, and the last of the other, is the one that goes.
        first = consul_cluster.leader()
        rest = [member for member in consul_cluster.members if member is not first]
        one = ",".join(each.endpoint for each in (first, *rest))
        other = ",".join(each.endpoint for each in (*rest, first))
        with (
            new_store(consul_cluster.url_of(one), request_timeout=2) as mine,
            new_store(consul_cluster.url_of(other), request_timeout=2) as theirs,
        ):
            terms = Terms([Candidate(each, key, "x", ttl=3) for each in (mine, theirs)], pool)
            terms.until_more(0)
            first.kill()
            consul_cluster.leader()
            with Follower(theirs, key).follow_election() as leaders:
                wait_until(lambda: next(leaders) == "x", 20, "a leader")
            wait_until(lambda: terms.leading() == 1, 20, "one leader")
            before = len(terms.tokens)
            for each in terms.candidates:
                if each.is_leader():
                    each.resign()
            terms.until_more(before)
            assert terms.tokens == sorted(set(terms.tokens))
            terms.end()

    @LONG
    def test_a_session_ends_with_the_node_of_the_agent_that_made_it_and_that_is_told(
        self, consul_cluster: ConsulCluster, key: str
    ) -> None:
        leading = consul_cluster.leader()
        mortal, other = (each for each in consul_cluster.members if each is not leading)
        ways = ",".join(each.endpoint for each in (mortal, leading, other))
        with new_store(consul_cluster.url_of(ways)) as store:
            with Candidate(store, key, "a", ttl=2).campaign(timeout=20) as term:
                mortal.kill()
                # Renewed by way of another, until the dead server is cleaned up.
                assert term.wait_lost(30)
                assert term.reason == "the store ended the session"
                assert not term.is_valid()
            assert Candidate(store, key, "a", ttl=2).campaign(timeout=20).token > term.token


class TestCuts:
    """The way to Consul goes through a relay that can be cut."""

    @pytest.mark.parametrize(
        "mode", ["stall", "down", *(pytest.param(each, marks=LONG) for each in ("up", "reset"))]
    )
    def test_a_cut_leader_ends_by_its_deadline_before_another_leads(
        self,
        consul: ConsulClient,
        consul_proxy: FaultProxy,
        key: str,
        mode: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with (
            new_store(consul.url_of(consul_proxy.endpoint), request_timeout=1) as cut,
            new_store(consul.url) as whole,
        ):
            first, second = Candidate(cut, key, "a", ttl=1), Candidate(whole, key, "b", ttl=1)
            old = first.campaign(timeout=10)
            waiting = pool.submit(second.campaign)
            until_waiting(consul, key)
            consul_proxy.set(mode)
            assert old.wait_lost(10)
            assert CLOCK.now() - old.valid_until < 0.5, "told late"
            assert not first.is_leader()
            new = waiting.result(20)
            assert new.elected_at >= old.valid_until
            assert new.token > old.token
            consul_proxy.set("pass")
            # The cut one comes back, and finds nothing of its own left.
            again = pool.submit(first.campaign)
            until_waiting(consul, key)
            second.resign()
            assert again.result(20).token > new.token
            first.stop()
            assert consul.keys(key) == []

    @LONG
    @pytest.mark.parametrize("mode", ["stall", "reset"])
    def test_two_agents_one_of_which_is_dead_or_silent(
        self, consul: ConsulClient, consul_proxy: FaultProxy, key: str, mode: str
    ) -> None:
        with new_store(consul.url_of(f"{consul_proxy.endpoint},{consul.endpoint}")) as store:
            with Candidate(store, key, "a", ttl=2).campaign(timeout=10) as term:
                consul_proxy.set(mode)
                first = term.valid_until
                assert term.wait_lost(2.5) is False, "lost although one agent lives"
                assert term.valid_until > first
                store.put(f"{key}-x", "1")
                consul.delete(key)
                assert term.wait_lost(3), "its watch went to the other agent too"
            store.delete(f"{key}-x")

    def test_an_agent_that_is_not_there_is_passed_over(
        self, consul: ConsulClient, key: str
    ) -> None:
        with new_store(consul.url_of(f"127.0.0.1:1,{consul.endpoint}")) as store:
            assert Candidate(store, key, "a", ttl=15).campaign(timeout=10).is_valid()


class TestSilence:
    def test_a_query_that_is_never_answered_does_not_keep_the_leader_from_hearing_of_its_end(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        stalled: list[Asked] = []

        def before(asked: Asked) -> None:
            if "index" in asked.query:
                stalled.append(asked)
                raise StallError

        consul_relay.before = before
        with Candidate(relayed_store, key, "a", ttl=3).campaign(timeout=10) as term:
            wait_until(lambda: any(each.path.endswith(key) for each in stalled), 10, "a query")
            began = CLOCK.now()
            consul.delete(key)
            assert term.wait_lost(10)
            assert CLOCK.now() - began < 2, "a third of the ttl, and twice that for two busy cores"
            assert term.reason is not None
            assert "deleted" in term.reason

    def test_the_lease_counts_from_the_send_however_late_the_answer_comes(
        self, consul: ConsulClient, consul_proxy: FaultProxy, key: str, events: list[Event]
    ) -> None:
        with (
            new_store(consul.url_of(consul_proxy.endpoint), hooks=[events.append]) as store,
            Candidate(store, key, "a", ttl=4).campaign(timeout=10),
        ):
            consul_proxy.set("delay", 0.15)
            slow = wait_until(
                lambda: [each for each in told(events, LeaseRenewed) if each.round_trip > 0.3],
                20,
                "a renewal with a slow answer",
            )
            for each in slow:
                assert each.valid_until <= each.at - each.round_trip + 4 * 0.99


class TestLostReplies:
    """A write whose answer never comes, or that is done only after we have left."""

    @pytest.fixture
    def store(self, consul: ConsulClient, consul_relay: ConsulRelay) -> Iterator[Store]:
        with new_store(consul.url_of(consul_relay.endpoint)) as opened:
            yield opened

    def lose_reply(self, relay: ConsulRelay, verb: str, key: str) -> list[Asked]:
        lost: list[Asked] = []

        def after(asked: Asked, answer: Told) -> Told:
            if asked.does(verb, key) and not lost:
                lost.append(asked)
                raise LostReplyError
            return answer

        relay.after = after
        return lost

    def lose_request(self, relay: ConsulRelay, verb: str, key: str) -> list[Asked]:
        lost: list[Asked] = []

        def before(asked: Asked) -> None:
            if asked.does(verb, key) and not lost:
                lost.append(asked)
                raise LostReplyError

        relay.before = before
        return lost

    def test_an_acquisition_whose_answer_was_lost_is_found_again(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        lost = self.lose_reply(consul_relay, "lock", key)
        with Candidate(store, key, "a", ttl=30).campaign(timeout=10) as term:
            assert lost
            assert consul.entry(key)["ModifyIndex"] == term.token  # type: ignore[index]
        assert consul.keys(key) == []

    def test_an_acquisition_whose_answer_was_lost_is_undone_by_who_stops(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        self.lose_reply(consul_relay, "lock", key)
        candidate = Candidate(store, key, "a", ttl=30, retry=None)
        with pytest.raises(StoreUnavailable):
            candidate.campaign(timeout=10)
        candidate.stop()
        assert consul.keys(key) == []

    def test_a_release_whose_answer_was_lost_is_no_trouble(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        candidate = Candidate(store, key, "a", ttl=30)
        first = candidate.campaign(timeout=10)
        lost = self.lose_reply(consul_relay, "delete", key)
        candidate.stop()
        assert lost
        assert consul.keys(key) == []
        assert candidate.campaign(timeout=10).token > first.token

    @pytest.mark.parametrize("entered", [True, False])
    def test_an_acquisition_that_arrives_after_we_left_does_not_stay(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        store: Store,
        key: str,
        entered: bool,
    ) -> None:
        # Keeps the session alive, so that the key would be held for ever.
        keeper = Candidate(store, f"{key}-keeper", "k", ttl=30)
        keeper.campaign(timeout=10)
        (late,) = [self.lose_request(consul_relay, "lock", key)]
        candidate = Candidate(store, key, "a", ttl=30, retry=Retry() if entered else None)
        if entered:
            candidate.campaign(timeout=10)
        else:
            with pytest.raises(StoreUnavailable):
                candidate.campaign(timeout=10)
        candidate.stop()
        assert consul.keys(f"{key}") == [f"{key}-keeper"]
        assert consul_relay.send(late[0]).status == 200, "it is done, long after it was sent"
        wait_until(lambda: consul.entry(key) is None, 10, "its removal")
        with candidate.campaign(timeout=10) as term:
            assert term.wait_lost(0.3) is False
        keeper.stop()

    @pytest.mark.parametrize("left_behind", [False, True])
    def test_an_acquisition_that_arrives_while_another_leads_takes_nothing(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        store: Store,
        consul_store: Store,
        key: str,
        left_behind: bool,
    ) -> None:
        if left_behind:
            # As other clients leave it: the key stays, held by nobody.
            consul.put(key, b"", flags=str(LOCK_FLAGS))
        # Keeps the session alive, by which it could be acquired.
        keeper = Candidate(store, f"{key}-keeper", "k", ttl=30)
        keeper.campaign(timeout=10)
        late = self.lose_request(consul_relay, "lock", key)
        with pytest.raises(StoreUnavailable):
            Candidate(store, key, "a", ttl=30, retry=None).campaign(timeout=10)
        with Candidate(consul_store, key, "b", ttl=30).campaign(timeout=10) as term:
            assert consul_relay.send(late[0]).status == 409
            assert term.wait_lost(0.3) is False
        keeper.stop()

    def test_a_release_that_arrives_late_takes_nothing_from_a_later_term(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        candidate = Candidate(store, key, "a", ttl=30)
        first = candidate.campaign(timeout=10)
        late = self.lose_request(consul_relay, "delete", key)
        candidate.stop()
        with candidate.campaign(timeout=10) as term:
            assert term.token > first.token
            assert consul_relay.send(late[0]).status == 409
            assert term.wait_lost(0.3) is False

    def test_a_value_that_arrives_late_does_not_replace_a_newer_one(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        candidate = Candidate(store, key, "a", ttl=30)
        candidate.campaign(timeout=10)
        late = self.lose_request(consul_relay, "lock", key)
        candidate.proclaim("older")
        candidate.proclaim("newer")
        assert consul_relay.send(late[0]).status == 409
        assert consul.entry(key)["Value"] == b"newer"  # type: ignore[index]
        candidate.stop()

    def test_a_place_whose_answer_was_lost_is_removed_by_who_stops(
        self, consul: ConsulClient, consul_relay: ConsulRelay, store: Store, key: str
    ) -> None:
        with new_store(consul.url) as other:
            with Candidate(other, key, "a", ttl=30).campaign(timeout=10):
                candidate = Candidate(store, key, "b", ttl=30, retry=None)
                self.lose_reply(consul_relay, "get-tree", f"{key}.waiting/")
                with pytest.raises(StoreUnavailable):
                    candidate.campaign(timeout=10)
                candidate.stop()
                assert places(consul, key) == []
