"""Elections with no server: real nodes that die, sleep, are cut off, restarted and lied to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from leadership import Candidate, Follower, Store, new_store
from leadership.backends._electio import node_id
from leadership.backends._peers_http import Client
from leadership.backends._peers_post import MESSAGES
from leadership.backends._peers_seal import Node, Seals
from leadership.clock import SystemClock
from leadership.errors import ConfigurationError, NotSupported, StoreUnavailable
from leadership.events import Event, PeerExposed, PeerRefused, TtlGranted

from .candidate_process import CandidateProcess
from .peers_cluster import PeersCluster, backend_of, cut_off, driver_of, running
from .waiting import wait_until

pytestmark = pytest.mark.backend("peers")

KEY = "service/leader"
CLOCK = SystemClock()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


class TestProcesses:
    """Three processes, each with its node; whoever leads comes first."""

    @pytest.fixture
    def three(self) -> Iterator[list[CandidateProcess]]:
        cluster = PeersCluster(3)
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(CandidateProcess(cluster.url(number), KEY, name, ttl=1))
                for number, name in enumerate("abc")
            ]
            observer = stack.enter_context(new_store(cluster.url()))
            wait_until(lambda: leader_of(observer) is not None, 30, "a leader")
            first = leader_of(observer)
            yield sorted(processes, key=lambda process: process.name != first)

    def test_after_sigkill_another_leads_within_the_ttl(
        self, three: list[CandidateProcess]
    ) -> None:
        leader, *others = three
        old = leader.wait("standing", leader=True)
        at = leader.kill()
        new = first_of(others)
        # The bar of 1.2 s is a benchmark's; two busy cores get more.
        assert new["at"] - at < 2.5
        assert new["token"] > old["token"]

    def test_after_resign_another_leads_at_once(self, three: list[CandidateProcess]) -> None:
        leader, *others = three
        old = leader.wait("standing", leader=True)
        ordered = CLOCK.now()
        leader.order("resign")
        new = first_of(others)
        assert new["at"] - ordered < 0.8
        assert new["token"] > old["token"]

    def test_who_slept_through_its_lease_is_not_leader_when_it_wakes(
        self, three: list[CandidateProcess]
    ) -> None:
        leader, *others = three
        old = leader.wait("standing", leader=True)
        leader.sleep()
        leader.order("check")
        new = first_of(others)
        leader.signal(signal.SIGCONT)
        assert leader.wait("checked")["leader"] is False
        assert new["token"] > old["token"]


def leader_of(store: Store) -> str | None:
    with contextlib.suppress(Exception):
        return Follower(store, KEY).leader()
    return None


def first_of(processes: list[CandidateProcess]) -> dict[str, float]:
    """What the next leader says of its standing, whichever it is."""
    told: list[dict[str, float]] = []
    some = threading.Event()

    def listen(process: CandidateProcess) -> None:
        with contextlib.suppress(AssertionError):
            told.append(process.wait("standing", leader=True))
            some.set()

    for process in processes:
        threading.Thread(target=listen, args=[process], daemon=True).start()
    assert some.wait(20), "nobody leads"
    return told[0]


class TestNodes:
    @pytest.fixture
    def cluster(self) -> PeersCluster:
        return PeersCluster(3)

    @pytest.fixture
    def stores(self, cluster: PeersCluster) -> Iterator[list[Store]]:
        stores = cluster.start(0, 1, 2)
        yield stores
        for store in stores:
            store.close()

    def test_a_leader_cut_off_with_a_minority_says_false_before_another_says_true(
        self, stores: list[Store], pool: ThreadPoolExecutor
    ) -> None:
        leader = Candidate(stores[0], KEY, "a", ttl=1)
        rivals = [
            Candidate(store, KEY, name, ttl=1) for store, name in zip(stores[1:], "bc", strict=True)
        ]
        for _ in range(3):
            term = leader.campaign(timeout=20)
            waiting = [pool.submit(rival.campaign, 20) for rival in rivals]
            with cut_off(stores[0]):
                wait_until(lambda: any(rival.is_leader() for rival in rivals), 20, "another")
                won = next(rival.term for rival in rivals if rival.is_leader())
                assert won is not None
                assert not term.is_valid()
                assert term.valid_until <= won.elected_at
                assert won.token > term.token
            for rival in rivals:
                rival.stop()
            for each in waiting:
                with contextlib.suppress(Exception):
                    each.result(20)
            leader.stop()

    def test_a_minority_elects_nobody(self, stores: list[Store]) -> None:
        with cut_off(stores[1]), cut_off(stores[2]):
            with pytest.raises(TimeoutError):
                Candidate(stores[0], KEY, "a", ttl=1).campaign(timeout=3)
        with Candidate(stores[0], KEY, "a", ttl=1).campaign(timeout=20) as term:
            assert term.is_valid()

    def test_tokens_rise_over_a_rolling_and_a_full_restart(
        self, cluster: PeersCluster, stores: list[Store]
    ) -> None:
        tokens = []

        def lead() -> None:
            with Candidate(stores[0], KEY, "a", ttl=1).campaign(timeout=20) as term:
                tokens.append(term.token)

        lead()
        for number in (2, 1, 0):
            stores[number].close()
            (stores[number],) = cluster.start(number)
            lead()
        for store in stores:
            store.close()
        stores[:] = cluster.start(0, 1, 2)
        lead()
        assert tokens == sorted(set(tokens))

    @pytest.fixture
    def unhurried(self) -> Iterator[list[Store]]:
        """Three nodes in one process, for so many keys that a busy machine needs a while."""
        cluster = PeersCluster(3, ttl_ceiling=4)
        stores = cluster.start(0, 1, 2)
        yield stores
        for store in stores:
            store.close()

    @pytest.mark.long
    def test_a_thousand_keys_cost_as_many_messages_as_one(
        self, unhurried: list[Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[str] = []
        really = Client.call

        async def counted(self: Client, *arguments: object, **more: object) -> object:
            sent.append(str(arguments[1]))
            return await really(self, *arguments, **more)  # type: ignore[arg-type]

        def while_leading(keys: int) -> int:
            candidates = [Candidate(unhurried[0], f"many/{n}", "a", ttl=4) for n in range(keys)]
            with ThreadPoolExecutor(32) as pool:
                terms = list(pool.map(lambda candidate: candidate.campaign(60), candidates))
            with monkeypatch.context() as counting:
                counting.setattr(Client, "call", counted)
                sent.clear()
                assert not terms[0].wait_lost(4)
                count = len(sent)
            assert all(term.is_valid() for term in terms)
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(lambda candidate: candidate.stop(), candidates))
            return count

        one = while_leading(1)
        assert while_leading(1000) <= 2 * one

    def test_whoever_is_no_member_follows_through_any_node(
        self, cluster: PeersCluster, stores: list[Store]
    ) -> None:
        candidate = Candidate(stores[0], KEY, "a", ttl=1)
        with new_store(cluster.url()) as client, Follower(client, KEY).follow_election() as told:
            assert next(told) is None
            candidate.campaign(timeout=20)
            assert next(told) == "a"
            # The node that it asks is gone, and it asks another.
            observer = backend_of(client)._observer
            assert observer is not None
            asked = cluster.addresses.index(observer._members[0])
            stores[asked or 2].close()
            candidate.proclaim("b")
            assert next(told) == "b"
            with pytest.raises(NotSupported, match="only observes"):
                Candidate(client, KEY, "c", ttl=1).campaign(timeout=5)
        candidate.stop()

    def test_an_electio_node_is_told_our_leader_as_its_master(
        self, cluster: PeersCluster, stores: list[Store]
    ) -> None:
        ids = [node_id("c1", address) for address in cluster.addresses]
        with Candidate(stores[1], KEY, "a", ttl=1).campaign(timeout=20):
            for address in cluster.addresses:

                def is_told(address: str = address) -> bool:
                    return ping(address, ids[2])["MasterId"] == ids[1]

                wait_until(is_told, 10, "the master")
        answer = ping(cluster.addresses[0], "nobody")
        assert (answer["Code"], answer["Msg"]) == (1, "fromId:nobody not exist")

    def test_what_is_forged_repeated_or_garbage_has_no_effect_and_is_told_once(
        self, cluster: PeersCluster, stores: list[Store]
    ) -> None:
        events: list[Event] = []
        stores[0].close()
        (stores[0],) = cluster.start(0, hooks=[events.append])
        recorded: list[tuple[dict[str, str], bytes]] = []
        driver = driver_of(stores[1])
        call = driver._client.call

        async def record(*arguments: object, **more: object) -> object:
            _, address, path, *body = arguments
            if path == MESSAGES and address == cluster.addresses[0]:
                recorded.append((dict(more["headers"]), bytes(body[0])))  # type: ignore[call-overload]
            return await call(*arguments, **more)  # type: ignore[arg-type]

        driver._client.call = record  # type: ignore[assignment, method-assign]
        with Candidate(stores[1], KEY, "a", ttl=1).campaign(timeout=20) as term:
            wait_until(lambda: len(recorded) > 5, 10, "some messages")
            forger = Seals(Node(cluster.addresses[1], 77), (b"another secret....",))
            target = driver_of(stores[0])._own
            for _ in range(20):
                for headers, body in recorded[:5]:
                    assert post(cluster.addresses[0], body, headers) == 403
                    sealed, _ = forger.request(target, MESSAGES, body)
                    assert post(cluster.addresses[0], body, sealed) == 403
                assert post(cluster.addresses[0], b"\x00garbage", {}) == 403
            # Refused while it is still being sent, which the sender may see as a reset.
            assert post(cluster.addresses[0], bytes(3 << 20), {}) in (403, None)
            assert term.is_valid()
            assert not term.wait_lost(1)
        told = [event.reason for event in events if isinstance(event, PeerRefused)]
        assert len(told) == len(set(told)), "each reason is told once in a while"
        assert {"it was seen before", "it is not sealed with the secret of this cluster"} <= {*told}


def ping(address: str, sender: str) -> dict[str, object]:
    with urlopen(f"http://{address}/ping?fromId={sender}&masterId=", timeout=10) as answer:
        data = json.loads(answer.read())
    assert isinstance(data, dict)
    return data


def post(address: str, body: bytes, headers: dict[str, str]) -> int | None:
    """The status, or None where the connection was closed on us."""
    try:
        with urlopen(Request(f"http://{address}{MESSAGES}", body, headers), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as refused:
        with refused:
            return refused.code
    except URLError:
        return None


class TestState:
    def test_terms_are_kept_in_the_state_dir(self, tmp_path: Path) -> None:
        def lead(stores: list[Store]) -> int:
            with Candidate(stores[0], KEY, "a", ttl=1).campaign(timeout=20) as term:
                token = term.token
            for store in stores:
                store.close()
            return token

        cluster = PeersCluster(1, state_dir=tmp_path)
        tokens = [lead(cluster.start(0)) for _ in range(3)]
        assert tokens == sorted(set(tokens))
        assert (tmp_path / "peers.log").stat().st_size > 0

    def test_a_second_node_at_the_same_address_is_refused(self) -> None:
        with running(1) as cluster, new_store(cluster.url(0)) as second:
            with pytest.raises(StoreUnavailable, match="cannot listen"):
                second.connect()

    def test_one_that_is_asked_again_tries_again_whoever_heard_that_it_failed(self) -> None:
        cluster = PeersCluster(1)
        (first,) = cluster.start(0)
        with first, new_store(cluster.url(0)) as second:
            backend = backend_of(second)

            async def fail_unheard() -> None:
                asked = asyncio.ensure_future(backend.driver())
                await asyncio.sleep(0)
                starting = backend._starting
                assert starting is not None
                asked.cancel()
                await asyncio.wait([starting])
                assert starting.exception() is not None

            second.core.call(fail_unheard)
            first.close()
            assert driver_of(second).node.id == cluster.addresses[0]

    def test_it_is_not_forgotten_with_who_was_cancelled_as_it_had_started(self) -> None:
        async def cancelled_as_it_has_started() -> bool:
            asked = asyncio.ensure_future(backend.driver())
            await asyncio.sleep(0)
            starting = backend._starting
            assert starting is not None
            # Told in the same turn as who waits for it, and before that one goes on.
            starting.add_done_callback(lambda _: asked.cancel())
            await asyncio.wait([asked])
            assert asked.cancelled()
            return await backend.driver() is starting.result()

        with new_store(PeersCluster(1).url(0)) as store:
            backend = backend_of(store)
            assert store.core.call(cancelled_as_it_has_started)


class TestOptions:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("peers://", "list all members"),
            ("peers://a:1,b:2", "which member is this"),
            ("peers://a:1,a:1?listen=a:1", "listed twice"),
            ("peers://a:1,b:2?listen=a:2", "not in the list of members"),
            ("peers://a,b:2?listen=b:2", "write host:port"),
            ("peers://a:1/x?listen=a:1", "takes no path"),
            ("peers://a:1?listen=a:1&heartbeet=1", "did you mean 'heartbeat'"),
            ("peers://a:1?listen=a:1&secret=short", "at least 16 characters"),
            ("peers://a:1?listen=a:1&ttl_ceiling=0", "give seconds above 0"),
            ("peers://a:1?listen=a:1&ttl_ceiling=1&heartbeat=1", "no room for three lost"),
            ("peers://a:1?listen=a:1&ttl_ceiling=100", "at most 30"),
            ("peers://a:1?listen=a:1&cert=/none", "TLS needs cert and key"),
        ],
    )
    def test_what_can_never_work_is_refused_at_construction(self, url: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            new_store(url)

    def test_a_ttl_over_the_ceiling_is_granted_as_that_and_told(self) -> None:
        events: list[Event] = []
        cluster = PeersCluster(1)
        (store,) = cluster.start(0, hooks=[events.append])
        with store, Candidate(store, KEY, "a", ttl=60).campaign(timeout=20) as term:
            assert term.remaining() <= 1
        granted = [event for event in events if isinstance(event, TtlGranted)]
        assert [(event.asked, event.granted) for event in granted] == [(60, 1)]

    def test_a_node_that_others_reach_without_a_secret_is_told_of(self) -> None:
        events: list[Event] = []
        cluster = PeersCluster(1)
        address = cluster.addresses[0]
        port = address.rpartition(":")[2]
        url = f"peers://{address}?address={address}&listen=0.0.0.0:{port}&ttl_ceiling=1"
        with new_store(url, hooks=[events.append]) as store:
            driver_of(store)
            wait_until(lambda: any(isinstance(e, PeerExposed) for e in events), 10, "the warning")
