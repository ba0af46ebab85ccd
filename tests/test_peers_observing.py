"""Who is no member follows through any node, whichever of them hang, lag, or are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leadership import Candidate, Follower, Store, new_store
from leadership.backends._peers_http import Answer, Asked
from leadership.backends._peers_knowledge import LEADER, LeaderAnswer
from leadership.backends._peers_observer import Observer
from leadership.errors import StoreUnavailable

from .peers_cluster import PeersCluster, backend_of, driver_of
from .waiting import wait_until

pytestmark = pytest.mark.backend("peers")

KEY = "service/leader"


@pytest.fixture
def cluster() -> PeersCluster:
    # Whoever stands still for a second on a busy machine is not deposed then.
    return PeersCluster(4, ttl_ceiling=2)


@pytest.fixture
def stores(cluster: PeersCluster, tmp_path: Path) -> Iterator[list[Store]]:
    """Three nodes, and one that waits to be added."""
    first, new = cluster.addresses[:3], cluster.addresses[3]
    options = dict(cluster.options)
    with contextlib.ExitStack() as stack:

        def start(address: str, **more: object) -> Store:
            directory = tmp_path / address.rpartition(":")[2]
            given = {**options, "state_dir": str(directory), **more}
            store = new_store("peers", first, listen=address, **given)  # type: ignore[arg-type]
            stack.enter_context(store)
            driver_of(store)
            return store

        stores = [start(address) for address in first]
        for store in stores:
            store.connect()
        yield [*stores, start(new, join=True, bootstrap=False)]


@pytest.fixture
def client(cluster: PeersCluster) -> Iterator[Store]:
    with new_store(
        "peers", cluster.addresses[:3], observe=True, secret=cluster.options["secret"]
    ) as store:
        yield store


def observer_of(client: Store) -> Observer:
    observer = backend_of(client)._observer
    assert observer is not None
    return observer


def asked_first(client: Store, cluster: PeersCluster) -> int:
    return cluster.addresses.index(observer_of(client)._members[0])


@contextlib.contextmanager
def answering_with(store: Store, answer: Answer | None) -> Iterator[threading.Event]:
    """Its node says this of leaders, or nothing at all; the event tells that it was asked."""
    server = driver_of(store)._server
    handler = server._handler
    was_asked = threading.Event()

    async def instead(asked: Asked) -> Answer:
        if asked.path != LEADER:
            return await handler(asked)
        was_asked.set()
        if answer is None:
            await asyncio.sleep(3600)
        assert answer is not None
        return answer

    server._handler = instead
    try:
        yield was_asked
    finally:
        server._handler = handler


def test_a_node_that_hangs_is_left_for_another(
    cluster: PeersCluster, stores: list[Store], client: Store
) -> None:
    candidate = Candidate(stores[0], KEY, "a", ttl=2)
    candidate.campaign(timeout=20)
    with Follower(client, KEY).follow_election() as told:
        assert next(told) == "a"
        with answering_with(stores[asked_first(client, cluster)], None) as was_asked:
            assert was_asked.wait(10)
            candidate.proclaim("b")
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(next, told).result(10) == "b"
    candidate.stop()


@pytest.mark.parametrize("lags", ["a term", "a value of the term"])
def test_what_a_node_tells_that_lags_behind_is_not_believed(
    cluster: PeersCluster, stores: list[Store], client: Store, lags: str
) -> None:
    candidate = Candidate(stores[0], KEY, "before", ttl=2)
    candidate.campaign(timeout=20)
    observer = observer_of(client)
    before = client.core.call(observer.ask, KEY)
    candidate.proclaim("a")
    told = client.core.call(observer.ask, KEY, before.tag, 10.0, before.moment)
    assert told.value == b"a"
    old = before
    if lags == "a term":
        old = LeaderAnswer("1-0", True, b"before", told.term - 1)
    body = msgspec.json.encode(old)
    with contextlib.ExitStack() as stack:
        for store in stores[:2]:
            stack.enter_context(answering_with(store, Answer(200, body)))
        for _ in range(4):
            now = client.core.call(observer.ask, KEY, "", 0.0, told.moment)
            assert now.value == b"a"
        stack.enter_context(answering_with(stores[2], Answer(200, body)))
        with pytest.raises(StoreUnavailable, match="does not know"):
            client.core.call(observer.ask, KEY, "", 0.0, told.moment)
    candidate.stop()


def test_what_is_known_is_confirmed_while_nothing_changes(
    stores: list[Store], client: Store
) -> None:
    with Candidate(stores[0], KEY, "a", ttl=2).campaign(timeout=20):
        follower = Follower(client, KEY)
        with follower.observe() as leaders:
            before = next(leaders).confirmed_at
            wait_until(lambda: follower.leader(max_age=60) == "a", what="the leader")
            observation = next(iter(client.core.observations))
            assert before is not None
            wait_until(lambda: (observation.confirmed_at or 0) > before + 1.5, what="confirmations")


def test_it_follows_on_when_the_nodes_that_it_knew_are_gone(
    cluster: PeersCluster, stores: list[Store], client: Store
) -> None:
    candidate = Candidate(stores[2], KEY, "a", ttl=2)
    candidate.campaign(timeout=20)
    with Follower(client, KEY).follow_election() as told:
        assert next(told) == "a"
        client.change_members(add=cluster.addresses[3], remove=cluster.addresses[:2], timeout=40)
        new = cluster.addresses[3]
        wait_until(lambda: new in observer_of(client)._members, what="the new one to be known")
        for store in stores[:2]:
            store.close()
        # Of the two that are left it was given one, and that one hangs.
        with answering_with(stores[2], None):
            candidate.proclaim("b")
            assert next(each for each in told if each == "b")
    candidate.stop()


def test_a_client_is_told_of_elections_by_whatever_name_it_reaches_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only pages in browsers are held to the names that a node's page is served by."""
    alias, look_up = "nodes.example", socket.getaddrinfo

    def found(host: str | None, *given: Any, **options: Any) -> Any:
        return look_up("127.0.0.1" if host == alias else host, *given, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    cluster = PeersCluster(1)
    [store] = cluster.start(0)
    address = cluster.addresses[0].replace("127.0.0.1", alias)
    client = new_store("peers", [address], observe=True, secret=cluster.options["secret"])
    with store, client, Candidate(store, KEY, "a", ttl=1).campaign(20):

        async def first() -> list[str]:
            async with contextlib.aclosing(observer_of(client).follow_elections("")) as elections:
                return [each.key for each in await anext(elections)]

        def told() -> list[str]:
            try:
                return client.core.call_within(20, first)
            except StoreUnavailable as error:
                # It may have started just now.
                if "does not know" not in str(error):
                    raise
                return []

        wait_until(lambda: told() == [KEY], what="the election")
