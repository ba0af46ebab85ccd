"""Elections on a real etcd that is killed, paused, cut off, or loses what it was told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leadership import Candidate, Follower, Retry, Store, new_store
from leadership.backends._etcd_contender import EtcdContender
from leadership.backends._grpc import etcdrpc
from leadership.backends.etcd import EtcdBackend
from leadership.errors import (
    LeadershipLost,
    StoreUnavailable,
)
from leadership.events import Event, LeaseRenewed

from .etcd_elections import CLOCK, entries, told
from .servers.etcd import EtcdCluster, EtcdServer
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy
from .waiting import wait_until


class TestEachProofAlone:
    """The watch on the own entry, the read at each renewal, the read after each wait."""

    @pytest.fixture
    def deaf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The watch on the own entry tells nothing."""
        monkeypatch.setattr(EtcdContender, "_own_changed", lambda self, events: None)

    @pytest.mark.usefixtures("deaf")
    def test_the_read_at_each_renewal_finds_a_deleted_entry(
        self, etcd: EtcdClient, store: Store, key: str
    ) -> None:
        term = Candidate(store, key, "a", ttl=2).campaign(timeout=10)
        other = Candidate(store, f"{key}-other", "b", ttl=2).campaign(timeout=10)
        etcd.ctl("del", "--prefix", f"{key}/")
        assert term.wait_lost(5)
        assert other.is_valid(), "the session goes on for the other"

    @pytest.mark.usefixtures("deaf")
    def test_the_read_after_a_wait_finds_a_deleted_entry(
        self, etcd: EtcdClient, store: Store, key: str, pool: ThreadPoolExecutor
    ) -> None:
        leader = Candidate(store, key, "a", ttl=60)
        leader.campaign(timeout=10)
        leading = entries(etcd, key)
        waits = pool.submit(Candidate(store, key, "b", ttl=60).campaign, 20)

        def behind() -> list[str]:
            return sorted(set(entries(etcd, key)) - set(leading))

        own = wait_until(behind, 10, "the entry of who waits")
        revision = int(json.loads(etcd.ctl("get", own[0], "-w", "json"))["kvs"][0]["mod_revision"])
        etcd.ctl("del", own[0])
        leader.resign()
        won = waits.result(20)
        assert won.token > revision, "it led by an entry that was gone"
        assert entries(etcd, key) == own


class TestLostReplies:
    """A write whose answer never comes, or that is done only after we have left."""

    @pytest.fixture
    def lose(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """`lose("reply")`: the next entry is written, and not answered; "request": written late."""
        backend = store.core.backend
        assert isinstance(backend, EtcdBackend)
        connection = backend._connection
        really = connection.call
        self.late = asyncio.Event()
        lost: list[str] = []

        async def call(stub: Any, request: Any, *, repeatable: bool) -> Any:
            puts = isinstance(request, etcdrpc.TxnRequest) and any(
                each.WhichOneof("request") == "request_put" for each in request.success
            )
            if not (puts and lost):
                return await really(stub, request, repeatable=repeatable)
            if lost.pop() == "reply":
                await really(stub, request, repeatable=repeatable)
            else:

                async def later() -> None:
                    await self.late.wait()
                    await really(stub, request, repeatable=repeatable)

                self.task = asyncio.ensure_future(later())
            raise StoreUnavailable("the answer was lost")

        monkeypatch.setattr(connection, "call", call)
        return lost.append

    def test_an_entry_whose_answer_was_lost_is_found_again(
        self, etcd: EtcdClient, store: Store, key: str, lose: Callable[[str], None]
    ) -> None:
        lose("reply")
        with Candidate(store, key, "a", ttl=60).campaign(timeout=10):
            assert len(entries(etcd, key)) == 1
        assert entries(etcd, key) == []

    def test_an_entry_whose_answer_was_lost_is_removed_by_who_stops(
        self, etcd: EtcdClient, store: Store, key: str, lose: Callable[[str], None]
    ) -> None:
        lose("reply")
        candidate = Candidate(store, key, "a", ttl=60, retry=None)
        with pytest.raises(StoreUnavailable):
            candidate.campaign(timeout=10)
        candidate.stop()
        assert entries(etcd, key) == []

    @pytest.mark.parametrize("entered", [True, False])
    def test_an_entry_that_appears_after_we_left_does_not_stay(
        self,
        etcd: EtcdClient,
        store: Store,
        key: str,
        lose: Callable[[str], None],
        entered: bool,
    ) -> None:
        # Keeps the session alive, so that the entry would stay for ever.
        keeper = Candidate(store, f"{key}-keeper", "k", ttl=60)
        keeper.campaign(timeout=10)
        lose("request")
        candidate = Candidate(store, key, "a", ttl=60, retry=Retry() if entered else None)
        if entered:
            candidate.campaign(timeout=10)
        else:
            with pytest.raises(StoreUnavailable):
                candidate.campaign(timeout=10)
        candidate.stop()
        assert entries(etcd, key) == []
        before = int(json.loads(etcd.ctl("get", key, "-w", "json"))["header"]["revision"])
        store.core.post(self.late.set)
        wait_until(self.task.done, 10, "the late write")

        def swept() -> bool:
            answer = json.loads(etcd.ctl("get", key, "-w", "json"))
            return int(answer["header"]["revision"]) >= before + 2

        wait_until(swept, 10, "its removal")
        assert entries(etcd, key) == []
        with candidate.campaign(timeout=10) as term:
            assert term.wait_lost(0.3) is False
            assert len(entries(etcd, key)) == 1


class TestRestarts:
    def test_etcd_is_killed_and_started_again(
        self, etcd_server: EtcdServer, key: str, pool: ThreadPoolExecutor
    ) -> None:
        with new_store(etcd_server.url) as store:
            candidates = [Candidate(store, key, name, ttl=2) for name in "ab"]
            tokens: list[int] = []
            lock = threading.Lock()

            def loop(candidate: Candidate) -> None:
                for standing in candidate.run_for_election():
                    term = candidate.term
                    if standing and term is not None:
                        with lock:
                            tokens.append(term.token)

            running = [pool.submit(loop, each) for each in candidates]
            wait_until(lambda: tokens, 10, "the first term")
            for _ in range(2):
                etcd_server.kill()
                wait_until(
                    lambda: not any(each.is_leader() for each in candidates),
                    10,
                    "the deadline, while the store is away",
                )
                before = len(tokens)
                etcd_server.start()

                def more(before: int = before) -> bool:
                    return len(tokens) > before

                wait_until(more, 20, "a leader after the restart")
                wait_until(
                    lambda: sum(each.is_leader() for each in candidates) == 1, 10, "one leader"
                )
            assert tokens == sorted(set(tokens))
            wait_until(lambda: len(entries(etcd_server, key)) == 2, 10, "one entry each")
            for each in candidates:
                each.stop()
            for each_run in running:
                each_run.result(10)
            assert entries(etcd_server, key) == []

    def test_a_short_restart_keeps_the_leader(
        self, etcd_server: EtcdServer, key: str, events: list[Event]
    ) -> None:
        with new_store(etcd_server.url, hooks=[events.append]) as store:
            with Candidate(store, key, "a", ttl=10).campaign(timeout=10) as term:
                etcd_server.kill()
                etcd_server.start()
                before = len(told(events, LeaseRenewed))
                wait_until(lambda: len(told(events, LeaseRenewed)) > before, 15, "a renewal")
                assert term.is_valid()
                assert term.wait_lost(0) is False
            assert entries(etcd_server, key) == []

    def test_a_paused_etcd_ends_the_term_at_the_deadline(
        self, etcd_server: EtcdServer, key: str
    ) -> None:
        with (
            new_store(etcd_server.url, request_timeout=1) as store,
            Candidate(store, key, "a", ttl=2).campaign(timeout=10) as term,
        ):
            etcd_server.pause()
            try:
                assert term.wait_lost(10)
                assert CLOCK.now() - term.valid_until < 0.5, "told late"
                with pytest.raises(LeadershipLost, match="not renewed in time"):
                    term.check()
            finally:
                etcd_server.resume()

    def test_a_member_of_a_cluster_is_killed(self, etcd_cluster: EtcdCluster, key: str) -> None:
        with new_store(etcd_cluster.url) as store:
            with Candidate(store, key, "a", ttl=5).campaign(timeout=10) as term:
                etcd_cluster.leader().kill()
                began = CLOCK.now()
                assert term.wait_lost(5) is False, "fail-over should have kept the term"
                assert CLOCK.now() - began >= 5
                assert Follower(store, key).leader() == "a"
                assert term.is_valid()


class TestCuts:
    """The way to etcd goes through a relay that can be cut."""

    @pytest.fixture
    def relay(self, etcd_server: EtcdServer) -> Iterator[FaultProxy]:
        port = int(etcd_server.endpoint.rpartition(":")[2])
        with FaultProxy(port) as proxy:
            yield proxy

    @pytest.mark.parametrize("mode", ["stall", "up", "down", "reset"])
    def test_a_cut_leader_ends_by_its_deadline_before_another_leads(
        self,
        etcd_server: EtcdServer,
        relay: FaultProxy,
        key: str,
        mode: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with (
            new_store(f"etcd://{relay.endpoint}", request_timeout=1) as cut,
            new_store(etcd_server.url) as whole,
        ):
            first, second = Candidate(cut, key, "a", ttl=2), Candidate(whole, key, "b", ttl=2)
            old = first.campaign(timeout=10)
            waiting = pool.submit(second.campaign)
            wait_until(lambda: len(entries(etcd_server, key)) == 2, 10, "the second entry")
            relay.set(mode)
            new = waiting.result(20)
            assert old.wait_lost(0)
            assert new.elected_at >= old.valid_until
            assert new.token > old.token
            relay.set("pass")
            # The cut one comes back, and finds nothing of its own left.
            again = pool.submit(first.campaign)
            wait_until(lambda: len(entries(etcd_server, key)) == 2, 20, "its new entry")
            second.resign()
            assert again.result(20).token > new.token
            first.stop()
            assert entries(etcd_server, key) == []

    def test_two_endpoints_one_of_which_is_dead_or_silent(
        self, etcd_server: EtcdServer, relay: FaultProxy, key: str
    ) -> None:
        for mode in ("stall", "reset"):
            relay.set("pass")
            address = f"etcd://{relay.endpoint},{etcd_server.endpoint}"
            with new_store(address) as store:
                with Candidate(store, key, "a", ttl=3).campaign(timeout=10) as term:
                    relay.set(mode)
                    assert term.wait_lost(6) is False, f"lost although one endpoint lives: {mode}"
                    assert term.is_valid()
                    store.put(f"{key}-x", "1")

    def test_a_follower_that_is_cut_off_says_unknown_and_finds_the_last_state(
        self, etcd_server: EtcdServer, relay: FaultProxy, key: str
    ) -> None:
        with (
            new_store(f"etcd://{relay.endpoint}", request_timeout=1) as cut,
            new_store(etcd_server.url) as whole,
        ):
            candidate = Candidate(whole, key, "a", ttl=5, value="one")
            candidate.campaign(timeout=10)
            with Follower(cut, key, patience=0.2).observe() as states:
                assert next(states).value == "one"
                relay.set("reset")
                assert next(states).state == "unknown"
                candidate.proclaim("two")
                relay.set("pass")
                assert next(states).value == "two"
            candidate.stop()

    def test_a_watch_survives_a_compaction_during_a_cut(
        self, etcd_server: EtcdServer, relay: FaultProxy, key: str
    ) -> None:
        with (
            new_store(f"etcd://{relay.endpoint}", request_timeout=1) as cut,
            new_store(etcd_server.url) as whole,
        ):
            whole.put(key, "0")
            candidate = Candidate(cut, f"{key}-election", "a", ttl=30)
            term = candidate.campaign(timeout=10)
            with cut.watch(key) as states:
                first = next(states)
                assert first is not None
                assert first.value == b"0"
                relay.set("reset")
                for number in range(1, 20):
                    last = whole.put(key, str(number))
                etcd_server.ctl("compact", str(last.index))
                relay.set("pass")
                state = next(states)
                assert state is not None
                assert state.value == b"19"
            # The guard of the leader's own entry was compacted away as well: it must still see.
            etcd_server.ctl("del", "--prefix", f"{key}-election/")
            assert term.wait_lost(4)
            candidate.stop()
