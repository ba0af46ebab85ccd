"""What is seen of elections by who only looks: on every backend, and over time."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

import pytest

from leadership import Candidate, Capability, Store, new_store
from leadership.backend import Entry
from leadership.backends.memory import MemoryBackend
from leadership.errors import AccessDenied
from leadership.faults import FaultyBackend
from leadership.standing import Standing
from leadership.survey import ELECTIONS, FORGOTTEN_AFTER, PAST_TERMS, Look, Record, Survey

from .peers_cluster import PeersCluster
from .servers.consul_client import ConsulClient
from .servers.etcd_client import EtcdClient
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until


def led(key: str, token: int, value: bytes = b"a", waiting: tuple[bytes, ...] = ()) -> Standing:
    return Standing(key, Entry(value, token), waiting)


def record_of(*states: tuple[Standing, ...]) -> Record:
    """What is remembered of states that were a second apart."""
    record = Record()
    for at, state in enumerate(states):
        record.take(state, float(at), gap=at == 0)
    return record


def test_a_term_that_began_unseen_may_be_older() -> None:
    term = record_of((led("k", 1),)).elections["k"].term
    assert term is not None
    assert (term.began, term.began_exactly) == (0.0, False)


def test_the_next_term_is_seen_from_its_beginning_and_the_last_one_is_remembered() -> None:
    election = record_of((led("k", 1),), (led("k", 5, b"b"),), (led("k", 7),)).elections["k"]
    assert election.term is not None
    assert (election.term.token, election.term.began, election.term.began_exactly) == (7, 2.0, True)
    assert [(past.value, past.token, past.began, past.ended) for past in election.past] == [
        ("b", 5, 1.0, 2.0),
        ("a", 1, 0.0, 1.0),
    ]


def test_what_changed_while_nothing_was_seen_is_not_told_as_exact() -> None:
    record = record_of((led("k", 1),))
    record.take((led("k", 2),), 60.0, gap=True)
    election = record.elections["k"]
    assert election.term is not None
    assert not election.term.began_exactly
    assert not election.past[0].ended_exactly


def test_another_value_under_the_same_token_is_the_same_term() -> None:
    election = record_of((led("k", 1),), (led("k", 1, b"b"),)).elections["k"]
    assert election.past == ()
    assert election.term is not None
    assert (election.term.value, election.term.began) == ("b", 0.0)


def test_an_election_that_vanished_from_the_store_stays_for_a_while() -> None:
    record = record_of((led("k", 1),), ())
    assert record.elections["k"].term is None
    assert record.elections["k"].past[0].ended == 1.0
    record.forget(FORGOTTEN_AFTER)
    assert "k" in record.elections
    record.forget(1.0 + FORGOTTEN_AFTER)
    assert record.elections == {}


def test_an_election_that_nobody_led_is_shown_while_somebody_waits() -> None:
    waiting = Standing("k", None, (b"a",))
    assert record_of((), (waiting,)).elections["k"].waiting == ("a",)
    assert record_of((), (waiting,), ()).elections == {}


def test_what_is_remembered_is_bounded() -> None:
    changes = [(led("k", token),) for token in range(PAST_TERMS + 5)]
    assert len(record_of(*changes).elections["k"].past) == PAST_TERMS
    many = tuple(led(f"k{number:05}", 1) for number in range(ELECTIONS + 3))
    record = record_of(many)
    assert (len(record.elections), record.left_out) == (ELECTIONS, 3)
    others = tuple(led(f"other{number:05}", 1) for number in range(ELECTIONS))
    record.take(others, 1.0, gap=False)
    assert set(record.elections) == {each.key for each in others}


# --- on the backends ---


class Surveyed:
    """A store's survey, and its looks."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self.store = store
        self.survey = Survey(store.core.backend, prefix)
        store.core.call_within(30, self.survey.first_look)

    def look(self) -> Look:
        async def look() -> Look:
            return self.survey.look()

        return self.store.core.call(look)

    def wait_for(self, key: str, value: str | None, waiting: tuple[str, ...] | None) -> None:
        def stands() -> bool:
            election = {each.key: each for each in self.look().elections}.get(key)
            if election is None:
                return False
            leader = None if election.term is None else election.term.value
            return (leader, election.waiting) == (value, waiting)

        wait_until(stands, 20, f"{value!r} leading {key!r} before {waiting!r}: {self.look()}")

    def lease_left(self, key: str) -> float:
        """Seconds, as soon as somebody who looks is told them."""

        async def seen() -> float:
            async with contextlib.aclosing(self.survey.looks(1.0)) as looks:
                async for look in looks:
                    leases = {each.key: each.lease for each in look.elections}
                    if leases[key] in look.lease_ends:
                        return look.lease_ends[leases[key]] - look.at
            raise AssertionError("the survey ended")

        return self.store.core.call_within(20, seen)

    def close(self) -> None:
        self.store.core.call(self.survey.close)


@contextlib.contextmanager
def campaigning(candidate: Candidate) -> Iterator[None]:
    """It campaigns on a thread of its own until the block ends."""

    def lead() -> None:
        for _ in candidate.run_for_election():
            pass

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        yield
    finally:
        candidate.stop()
        thread.join()


def see_a_change_of_leaders(
    of: Store, others: Store, surveyed: Surveyed, key: str, ttl: float, leases: bool
) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(surveyed.close)
        first, second = Candidate(of, key, "a", ttl=ttl), Candidate(others, key, "<b>", ttl=ttl)
        stack.enter_context(campaigning(second))
        surveyed.wait_for(key, "<b>", ())
        with campaigning(first):
            surveyed.wait_for(key, "<b>", ("a",))
            assert [each.key for each in surveyed.look().elections] == [key]
            term = second.term
            assert term is not None
            if leases:
                assert 0 <= surveyed.lease_left(key) <= ttl + 1
            # Another value is no other term.
            second.proclaim("<c>")
            surveyed.wait_for(key, "<c>", ("a",))
            second.stop()
            surveyed.wait_for(key, "a", ())
            [election] = [each for each in surveyed.look().elections if each.key == key]
            assert [(past.value, past.token) for past in election.past] == [("<c>", term.token)]
            assert election.term is not None
            assert election.term.began_exactly
        surveyed.wait_for(key, None, ())


@pytest.mark.backend("memory")
def test_elections_are_seen_on_memory() -> None:
    with new_store(f"memory://{uuid.uuid4()}") as store:
        store.put("service/note", "no election")
        key = "service/a/leader"
        see_a_change_of_leaders(store, store, Surveyed(store, "service"), key, 5, True)


def test_elections_are_seen_on_etcd(etcd: EtcdClient) -> None:
    prefix = f"survey-{uuid.uuid4()}"
    with new_store(etcd.url) as store, new_store(etcd.url) as other:
        # Direct children with hexadecimal names, and no elections.
        store.put(f"{prefix}/settings/beef", "no election")
        store.put(f"{prefix}/settings/cafe", "none either", ttl=60)
        key = f"{prefix}/deep/leader"
        see_a_change_of_leaders(store, other, Surveyed(store, prefix), key, 2, True)


def test_elections_are_seen_on_consul_which_does_not_tell_who_waits(consul: ConsulClient) -> None:
    prefix = f"survey-{uuid.uuid4()}"
    with new_store(consul.url) as store:
        store.put(f"{prefix}/note", "no election")
        key = f"{prefix}/leader"
        surveyed = Surveyed(store, prefix)
        with Candidate(store, key, "a", ttl=5).campaign(timeout=20):
            surveyed.wait_for(key, "a", None)
        surveyed.wait_for(key, None, None)
        assert [each.key for each in surveyed.look().elections] == [key]
        surveyed.close()


def test_elections_are_seen_on_zookeeper(zookeeper: ZooKeeperClient) -> None:
    prefix = f"survey-{uuid.uuid4()}"
    with new_store(zookeeper.url) as store, new_store(zookeeper.url) as other:
        store.put(f"{prefix}/note", "no election")
        key = f"{prefix}/leader"
        see_a_change_of_leaders(store, other, Surveyed(store, prefix), key, 4, False)


@pytest.mark.backend("peers")
def test_elections_are_seen_on_a_node_of_peers_and_by_a_client() -> None:
    with contextlib.ExitStack() as stack:
        cluster = PeersCluster(2)
        stores = [stack.enter_context(each) for each in cluster.start(0, 1)]
        see_a_change_of_leaders(stores[0], stores[1], Surveyed(stores[0]), "k/leader", 1, True)
        client = stack.enter_context(new_store(cluster.url()))
        see_a_change_of_leaders(stores[1], stores[0], Surveyed(client, "l"), "l", 1, False)


def test_looking_writes_nothing_and_watches_once(etcd: EtcdClient) -> None:
    prefix = f"survey-{uuid.uuid4()}"
    writing = ("Put", "Txn", "DeleteRange", "LeaseGrant", "LeaseRevoke")
    with new_store(etcd.url) as store, new_store(etcd.url) as looker:
        elections = [Candidate(store, f"{prefix}/{number}", "a", ttl=60) for number in range(20)]
        for each in elections:
            each.campaign(timeout=20)
        before = {method: etcd.requests(method) for method in writing}
        ranges = etcd.requests("Range")
        watchers = etcd.count("etcd_debugging_mvcc_watcher_total")
        surveyed = Surveyed(looker, prefix)
        surveyed.lease_left(f"{prefix}/7")
        assert len(surveyed.look().elections) == 20
        assert {method: etcd.requests(method) for method in writing} == before
        assert etcd.count("etcd_debugging_mvcc_watcher_total") - watchers == 1
        # One to look, and renewals of the candidates' lease.
        assert etcd.requests("Range") - ranges <= 5
        surveyed.close()
        wait_until(lambda: etcd.count("etcd_debugging_mvcc_watcher_total") == watchers)


@pytest.mark.backend("memory")
def test_an_outage_is_told_and_what_changed_in_it_is_not_told_as_exact() -> None:
    name = f"memory://{uuid.uuid4()}"
    with new_store(name) as store, new_store(name) as other:
        faults = FaultyBackend.under(store)
        candidate = Candidate(other, "k", "a", ttl=60)
        candidate.campaign(timeout=10)
        surveyed = Surveyed(store)
        with faults.cut_off():
            wait_until(lambda: surveyed.look().cut_since is not None, 20, "the outage")
            assert surveyed.look().trouble
            assert [each.key for each in surveyed.look().elections] == ["k"]
            candidate.stop()
            Candidate(other, "k", "b", ttl=60).campaign(timeout=10)
        surveyed.wait_for("k", "b", None)
        assert surveyed.look().cut_since is None
        [election] = surveyed.look().elections
        assert election.term is not None
        assert not election.term.began_exactly
        assert not election.past[0].ended_exactly
        surveyed.close()


@pytest.mark.backend("memory")
def test_a_refusal_is_an_error_at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(backend: MemoryBackend, directory: str) -> None:
        raise AccessDenied("not for you")

    monkeypatch.setattr(MemoryBackend, "elections", refuse)
    with new_store(f"memory://{uuid.uuid4()}") as store:
        assert Capability.SURVEY in store.capabilities
        with pytest.raises(AccessDenied):
            Surveyed(store)
