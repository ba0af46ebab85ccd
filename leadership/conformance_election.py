"""The kit: the groups for locks and elections."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from .backend import Capability
from .candidate import Candidate, Term
from .conformance_store import Conformance, eventually
from .errors import (
    AlreadyRunning,
    LeadershipLost,
    NoSuccessor,
    NotLeader,
    NotSupported,
)
from .follower import Follower
from .following import LeaderState
from .store import Store


class LockConformance(Conformance):
    needs = frozenset({Capability.LOCK})

    def test_one_holds_it_and_the_next_gets_a_greater_token(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        mine, theirs = (each.lock(f"{directory}/lock", ttl=30) for each in (store, other))
        token = mine.acquire(timeout=self.patience)
        assert mine.token == token
        assert mine.is_held()
        assert not theirs.is_held()
        waiting = threads.submit(theirs.acquire)
        assert mine.release() is True
        assert not mine.is_held()
        assert waiting.result(self.patience) > token
        assert theirs.release() is True

    def test_waiting_ends_by_time_out_or_release_and_leaves_nothing(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        mine, theirs = (each.lock(f"{directory}/lock", ttl=30) for each in (store, other))
        mine.acquire(timeout=self.patience)
        with pytest.raises(TimeoutError):
            theirs.acquire(timeout=0.2)
        waiting = threads.submit(theirs.acquire)
        eventually(lambda: theirs._candidacy is not None and theirs._candidacy.active, 5, "waiting")
        assert theirs.release() is False
        with pytest.raises(NotLeader):
            waiting.result(self.patience)
        assert mine.is_held()
        mine.release()
        third = other.lock(f"{directory}/lock", ttl=30)
        assert third.acquire(timeout=self.patience)
        third.release()

    def test_who_does_not_hold_it_cannot_release_it(
        self, store: Store, other: Store, directory: str
    ) -> None:
        mine, theirs = (each.lock(f"{directory}/lock", ttl=30) for each in (store, other))
        with mine:
            assert theirs.release() is False
            assert mine.is_held()
            mine.check()
            with pytest.raises(NotLeader, match="never acquired"):
                theirs.check()
        assert mine.release() is False
        with pytest.raises(LeadershipLost):
            mine.check()

    def test_the_loss_is_told(self, store: Store, other: Store, directory: str) -> None:
        if Capability.KV not in store.capabilities:
            pytest.skip("the backend does not offer kv")
        lock = store.lock(f"{directory}/lock", ttl=30)
        token = lock.acquire(timeout=self.patience)
        assert lock.wait_lost(0) is False
        other.delete_tree(f"{directory}/lock")
        assert lock.wait_lost(self.patience) is True
        assert not lock.is_held()
        assert lock.acquire(timeout=self.patience) > token
        lock.release()

    def test_one_object_is_one_holder(self, store: Store, directory: str) -> None:
        lock = store.lock(f"{directory}/lock", ttl=30)
        with lock:
            with pytest.raises(AlreadyRunning):
                lock.acquire(timeout=0)
            with pytest.raises(TimeoutError):
                store.lock(f"{directory}/lock", ttl=30).acquire(timeout=0.2)
            assert lock.is_held()

    def test_closing_the_holders_store_releases_it(
        self, store: Store, other: Store, directory: str
    ) -> None:
        lock = other.lock(f"{directory}/lock", ttl=30)
        token = lock.acquire(timeout=self.patience)
        other.close()
        assert not lock.is_held()
        with store.lock(f"{directory}/lock", ttl=30) as mine:
            assert mine.token is not None
            assert mine.token > token

    def test_it_is_renewed_for_as_long_as_it_is_held(self, store: Store, directory: str) -> None:
        with store.lock(f"{directory}/lock", ttl=self.ttl) as lock:
            assert lock.wait_lost(2.5 * self.ttl) is False
            assert lock.is_held()


class ElectionConformance(Conformance):
    needs = frozenset({Capability.ELECTION})

    def test_one_leads_and_resigning_hands_over_with_a_greater_token(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        first, second = (
            Candidate(each, f"{directory}/key", "x", ttl=30) for each in (store, other)
        )
        term = first.campaign(timeout=self.patience)
        waiting = threads.submit(second.campaign)
        assert [first.is_leader(), second.is_leader()] == [True, False]
        assert first.resign() is True
        assert not first.is_leader()
        won = waiting.result(self.patience)
        assert won.token > term.token
        assert won.is_valid()
        with pytest.raises(LeadershipLost):
            term.check()
        second.stop()

    def test_the_standings_alternate_and_the_tokens_rise(
        self, store: Store, directory: str
    ) -> None:
        candidate = Candidate(store, f"{directory}/key", "x", ttl=30)
        standings, tokens = [], []
        for elected in candidate.run_for_election():
            standings.append(elected)
            if elected:
                assert isinstance(candidate.term, Term)
                tokens.append(candidate.term.token)
                candidate.resign()
            if len(tokens) == 3:
                candidate.stop()
        assert standings == [False, True] * 3 + [False]
        assert tokens == sorted(set(tokens))

    def test_many_contend_and_one_leads_at_a_time(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        leading: list[int] = []
        tokens: list[int] = []

        def contend(through: Store) -> None:
            for _ in range(3):
                candidate = Candidate(through, f"{directory}/key", "x", ttl=30)
                with candidate.campaign(timeout=10 * self.patience) as term:
                    leading.append(term.token)
                    assert leading == [term.token], "two lead at once"
                    tokens.append(term.token)
                    leading.clear()

        for done in [threads.submit(contend, each) for each in (store, other) * 3]:
            done.result(10 * self.patience)
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 18

    def test_candidates_and_a_lock_of_one_store_are_contenders_each(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        first, second = (Candidate(store, f"{directory}/key", name, ttl=30) for name in "ab")
        first.campaign(timeout=self.patience)
        waits = threads.submit(second.campaign)
        assert not second.is_leader()
        first.stop()
        waits.result(self.patience)
        if Capability.LOCK in store.capabilities:
            lock = store.lock(f"{directory}/key", ttl=30)
            with pytest.raises(TimeoutError):
                lock.acquire(timeout=0.2)
            second.stop()
            assert lock.acquire(timeout=self.patience)
            lock.release()

    def test_who_stops_waiting_takes_nothing_from_who_leads(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        leader, second = (Candidate(store, f"{directory}/key", name, ttl=30) for name in "ab")
        term = leader.campaign(timeout=self.patience)
        with pytest.raises(TimeoutError):
            second.campaign(timeout=0.2)
        waiting = threads.submit(second.campaign)
        self.until_waiting(second)
        second.stop()
        with pytest.raises(NotLeader):
            waiting.result(self.patience)
        assert term.wait_lost(0.2) is False
        assert term.is_valid()
        leader.stop()

    def test_closing_the_leaders_store_hands_over(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        leader = Candidate(other, f"{directory}/key", "a", ttl=30)
        second = Candidate(store, f"{directory}/key", "b", ttl=30)
        term = leader.campaign(timeout=self.patience)
        waiting = threads.submit(second.campaign)
        self.until_waiting(second)
        other.close()
        assert not leader.is_leader()
        assert waiting.result(self.patience).token > term.token
        second.stop()

    def test_a_function_runs_once_a_term_and_is_joined_before_the_next_leads(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        first, second = (
            Candidate(each, f"{directory}/key", "x", ttl=30) for each in (store, other)
        )
        working, ended = threading.Event(), threading.Event()

        def work(term: Term) -> None:
            working.set()
            assert term.wait_lost(self.patience)
            assert not second.is_leader()
            ended.set()

        running = threads.submit(first.run, work)
        assert working.wait(self.patience)
        waiting = threads.submit(second.campaign)
        self.until_waiting(second)
        first.stop()
        running.result(self.patience)
        assert ended.is_set()
        waiting.result(self.patience)
        second.stop()

    def test_the_same_value_with_a_new_token_is_another_leader_and_one_name(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        with (
            Follower(other, key).follow_election() as names,
            Follower(other, key).observe() as observed,
        ):
            tokens = []
            for _ in range(2):
                with Candidate(store, key, "same", ttl=30).campaign(self.patience) as term:
                    known = self.until_told(observed, lambda seen: seen.value == "same")
                    assert known.token == term.token
                    tokens.append(known.token)
                    self.until_told(names, "same".__eq__)
                self.until_told(observed, lambda seen: seen.state is LeaderState.NONE)
                self.until_told(names, lambda name: name is None)
            assert tokens[1] > tokens[0]

    def test_a_stop_while_waiting_leaves_no_entry(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        leader, waiting = (
            Candidate(each, f"{directory}/key", "x", ttl=30) for each in (store, other)
        )
        leader.campaign(timeout=self.patience)
        loop = threads.submit(lambda: list(waiting.run_for_election()))
        eventually(lambda: waiting._candidacy is not None, 5, "the start")
        waiting.stop()
        assert loop.result(self.patience) == [False]
        leader.stop()
        if Capability.KV in store.capabilities:
            assert store.list(f"{directory}/key") == []
            assert store.get(f"{directory}/key") is None

    def test_who_leads_is_renewed(self, store: Store, directory: str) -> None:
        with Candidate(store, f"{directory}/key", "x", ttl=self.ttl).campaign() as term:
            before = term.valid_until
            assert term.wait_lost(2.5 * self.ttl) is False
            assert term.valid_until > before
            assert term.remaining() > 0

    def test_followers_are_told_who_leads_and_when_nobody_does(
        self, store: Store, other: Store, directory: str
    ) -> None:
        follower = Follower(other, f"{directory}/key")
        assert follower.leader() is None
        candidate = Candidate(store, f"{directory}/key", "id", ttl=30, value="10.0.0.1:80")
        with follower.follow_election() as leaders, follower.observe() as observed:
            assert next(leaders) is None
            assert next(observed).state is LeaderState.NONE
            term = candidate.campaign(timeout=self.patience)
            assert next(leaders) == "10.0.0.1:80"
            known = next(observed)
            assert (known.value, known.state) == ("10.0.0.1:80", LeaderState.KNOWN)
            assert known.token == term.token
            candidate.proclaim("10.0.0.2:80")
            assert next(leaders) == "10.0.0.2:80"
            assert follower.wait_for_leader(timeout=self.patience) == "10.0.0.2:80"
            assert follower.leader(max_age=0) == "10.0.0.2:80"
            assert term.is_valid()
            candidate.resign()
            assert next(leaders) is None
        candidate.stop()
        with pytest.raises(NotLeader):
            candidate.proclaim("late")

    def test_stopping_a_follower_ends_its_loops(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        follower = Follower(store, f"{directory}/key")
        leaders = follower.follow_election()
        next(leaders)
        loop = threads.submit(lambda: list(leaders))
        follower.stop()
        follower.stop()
        assert loop.result(self.patience) == []

    def test_closing_one_loop_of_a_follower_ends_it_and_not_the_other(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        follower = Follower(store, f"{directory}/key")
        with follower.follow_election() as closed, follower.follow_election() as kept:
            assert next(closed) is next(kept) is None
            loop = threads.submit(lambda: list(closed))
            closed.close()
            assert loop.result(self.patience) == []
            with Candidate(store, f"{directory}/key", "a", ttl=30).campaign(self.patience):
                assert self.until_told(kept, lambda name: name is not None) == "a"

    def test_a_deleted_entry_is_told_and_the_next_term_has_a_greater_token(
        self, store: Store, other: Store, directory: str
    ) -> None:
        if Capability.KV not in store.capabilities:
            pytest.skip("the backend does not offer kv")
        candidate = Candidate(store, f"{directory}/key", "x", ttl=30)
        with candidate.run_for_election() as standings:
            assert [next(standings), next(standings)] == [False, True]
            term = candidate.term
            assert term is not None
            other.delete_tree(f"{directory}/key")
            assert term.wait_lost(self.patience)
            assert [next(standings), next(standings)] == [False, True]
            assert candidate.term is not None
            assert candidate.term.token > term.token

    def test_a_capability_that_is_missing_refuses_the_candidate(
        self, store: Store, directory: str
    ) -> None:
        lacking = set(Capability) - store.capabilities
        for capability in lacking:
            with pytest.raises(NotSupported, match=capability):
                Candidate(store, f"{directory}/key", "x", ttl=30, require={capability})
        Candidate(store, f"{directory}/key", "x", ttl=30, require=store.capabilities)


class QueueConformance(Conformance):
    needs = frozenset({Capability.ELECTION, Capability.FIFO})

    def test_who_waits_longest_leads_next(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        names = "abcde"
        key = f"{directory}/key"
        candidates = [
            Candidate(each, key, name, ttl=30)
            for each, name in zip([store, other] * 3, names, strict=False)
        ]
        candidates[0].campaign(timeout=self.patience)
        waits = []
        for position, candidate in enumerate(candidates[1:], start=2):
            waits.append(threads.submit(candidate.campaign))

            def entered(position: int = position) -> bool:
                return len(store.list(key)) == position

            eventually(entered, self.patience, "one more entry")
        led = []
        with Follower(store, key).follow_election() as leaders:
            for candidate, won in zip(candidates, [None, *waits], strict=True):
                led.append(next(leaders))
                if won is not None:
                    won.result(self.patience)
                candidate.stop()
        assert led == list(names)


class HandoverConformance(Conformance):
    needs = frozenset({Capability.ELECTION, Capability.HANDOVER})

    def test_the_named_one_leads_and_not_who_waits_longer(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        key = f"{directory}/key"
        leader, longer, named = (
            Candidate(each, key, name, ttl=30)
            for each, name in zip([store, other, store], "abc", strict=True)
        )
        for _ in range(3):
            term = leader.campaign(timeout=self.patience)
            waiting = threads.submit(longer.campaign)
            self.until_waiting(longer)
            won = threads.submit(named.campaign)
            self.until_waiting(named)
            assert eventually(lambda: resigned_to(leader, "c"), self.patience, "the wait of c")
            assert not leader.is_leader()
            assert won.result(self.patience).token > term.token
            assert not longer.is_leader()
            longer.stop()
            with pytest.raises(NotLeader):
                waiting.result(self.patience)
            named.stop()

    def test_where_nobody_waits_under_the_name_the_leader_leads_on(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        leader, waiting = (
            Candidate(each, f"{directory}/key", name, ttl=30)
            for each, name in zip([store, other], "ab", strict=True)
        )
        with leader.campaign(timeout=self.patience) as term:
            campaign = threads.submit(waiting.campaign)
            for nobody in ("c", "a"):
                with pytest.raises(NoSuccessor, match=nobody):
                    leader.resign(to=nobody)
            assert term.is_valid()
        assert campaign.result(self.patience).token > term.token
        assert leader.resign(to="b") is False
        waiting.stop()


def resigned_to(leader: Candidate, name: str) -> bool:
    """Whether the leader knew of that one, and handed over."""
    try:
        return leader.resign(to=name)
    except NoSuccessor:
        return False


class ClosingConformance(Conformance):
    def test_closing_the_store_leaves_nothing_behind(self, store: Store, directory: str) -> None:
        def cycle() -> None:
            opened = self.make_store()
            if Capability.ELECTION in opened.capabilities:
                candidate = Candidate(opened, f"{directory}/key", "x", ttl=30)
                candidate.campaign(timeout=self.patience)
                next(Follower(opened, f"{directory}/key").follow_election())
            if Capability.LOCK in opened.capabilities:
                opened.lock(f"{directory}/lock", ttl=30).acquire(timeout=self.patience)
            if Capability.WATCH in opened.capabilities:
                next(opened.watch(f"{directory}/watched"))
            opened.close()

        cycle()
        before = threading.active_count()
        for _ in range(3):
            cycle()
        eventually(lambda: threading.active_count() <= before, self.patience, "threads to end")
        if Capability.KV in store.capabilities:
            assert store.list(directory) == []
