"""The kit: the group for outages, run where the backend's tests can cut a store off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from .backend import Capability
from .candidate import Candidate
from .conformance_store import Conformance, eventually
from .follower import Follower
from .following import LeaderState
from .store import Store

CutOff = Callable[[], AbstractContextManager[None]]
"""Cuts a store off from its server for the time of a `with` block."""

Cuttable = tuple[Store, CutOff]


class OutageConformance(Conformance):
    needs = frozenset({Capability.ELECTION})

    def make_cuttable_store(self) -> Cuttable:
        """A store on the same server, and the means to cut it off; the kit closes it.

        Override it: `FaultyBackend.under(store).cut_off` is enough where
        elections are made of keys, else a proxy that stops to relay.
        """
        pytest.skip("no means to cut a store off: override make_cuttable_store")

    @pytest.fixture
    def cuttable(self, store: Store) -> Iterator[Cuttable]:
        opened, cut_off = self.make_cuttable_store()
        with self.bounded(opened):
            yield opened, cut_off

    def test_a_leader_cut_off_is_over_before_another_leads(
        self, store: Store, cuttable: Cuttable, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        remote, cut_off = cuttable
        leader = Candidate(remote, f"{directory}/key", "leader", ttl=self.ttl)
        rival = Candidate(store, f"{directory}/key", "rival", ttl=self.ttl)
        term = leader.campaign(timeout=self.patience)
        waiting = threads.submit(rival.campaign)
        # A deadline that a renewal has set is to be kept as well as the first one.
        first = term.valid_until
        eventually(lambda: term.valid_until > first, self.lapse, "a renewal")
        with cut_off():
            won = waiting.result(self.lapse)
            assert not leader.is_leader()
            assert term.wait_lost(self.patience)
            assert term.valid_until <= won.elected_at
            assert won.token > term.token
        leader.stop()
        assert rival.is_leader()
        rival.stop()

    def test_a_lock_cut_off_is_lost_before_another_holds_it(
        self, store: Store, cuttable: Cuttable, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        if Capability.LOCK not in store.capabilities:
            pytest.skip("the backend does not offer lock")
        remote, cut_off = cuttable
        mine = remote.lock(f"{directory}/lock", ttl=self.ttl)
        theirs = store.lock(f"{directory}/lock", ttl=self.ttl)
        token = mine.acquire(timeout=self.patience)
        waiting = threads.submit(theirs.acquire)
        with cut_off():
            assert waiting.result(self.lapse) > token
            assert not mine.is_held()
            assert mine.wait_lost(self.patience) is True
        mine.release()
        assert theirs.is_held()
        theirs.release()

    def test_a_short_outage_costs_the_leader_nothing(
        self, store: Store, cuttable: Cuttable, directory: str
    ) -> None:
        remote, cut_off = cuttable
        leader = Candidate(remote, f"{directory}/key", "old", ttl=30)
        term = leader.campaign(timeout=self.patience)
        with cut_off():
            assert term.is_valid()
        leader.proclaim("new")
        assert Follower(store, f"{directory}/key").leader() == "new"
        assert leader.is_leader()
        leader.stop()

    def test_who_waits_through_an_outage_leads_after_it(
        self, store: Store, cuttable: Cuttable, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        remote, cut_off = cuttable
        leader = Candidate(store, f"{directory}/key", "leader", ttl=30)
        term = leader.campaign(timeout=self.patience)
        second = Candidate(remote, f"{directory}/key", "second", ttl=30)
        waiting = threads.submit(second.campaign)
        self.until_waiting(second)
        with cut_off():
            leader.stop()
            assert not second.is_leader()
        assert waiting.result(self.patience).token > term.token
        second.stop()

    def test_a_follower_cut_off_says_that_it_does_not_know(
        self, store: Store, cuttable: Cuttable, directory: str
    ) -> None:
        remote, cut_off = cuttable
        leader = Candidate(store, f"{directory}/key", "a", ttl=30)
        leader.campaign(timeout=self.patience)
        with Follower(remote, f"{directory}/key", patience=0.1).observe() as observed:
            assert next(observed).value == "a"
            with cut_off():
                cut = self.until_told(observed, lambda seen: seen.state is LeaderState.UNKNOWN)
                assert cut.value is None
                leader.stop()
            self.until_told(observed, lambda seen: seen.state is LeaderState.NONE)

    def test_a_watch_tells_after_an_outage_what_it_missed(
        self, store: Store, cuttable: Cuttable, directory: str
    ) -> None:
        missing = {Capability.KV, Capability.WATCH} - store.capabilities
        if missing:
            pytest.skip(f"the backend does not offer {', '.join(sorted(missing))}")
        remote, cut_off = cuttable
        with remote.watch(f"{directory}/key") as states:
            assert next(states) is None
            with cut_off():
                last = store.put(f"{directory}/key", "written meanwhile")
            assert self.until_told(states, lambda pair: pair is not None) == last
            with cut_off():
                store.delete(f"{directory}/key")
            assert self.until_told(states, lambda pair: pair is None) is None

    def test_a_candidate_in_its_loop_leads_again_after_it_was_cut_off(
        self, store: Store, cuttable: Cuttable, directory: str
    ) -> None:
        remote, cut_off = cuttable
        candidate = Candidate(remote, f"{directory}/key", "a", ttl=self.ttl)
        with candidate.run_for_election() as standings:
            assert [next(standings), next(standings)] == [False, True]
            first = candidate.term
            assert first is not None
            with cut_off():
                eventually(lambda: not candidate.is_leader(), self.lapse, "the end of the term")
                assert next(standings) is False
            assert next(standings) is True
            assert candidate.term is not None
            assert candidate.term.token > first.token
