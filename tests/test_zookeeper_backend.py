"""ZooKeeper's keys, names, options and access; what elections do is in the files beside this."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.security import make_digest_acl

from leadership import Candidate, Follower, Store, new_store
from leadership.backends._zookeeper_connection import Connection
from leadership.backends._zookeeper_names import NAMES, in_order
from leadership.errors import (
    AccessDenied,
    ConfigurationError,
    KeyModified,
    StoreError,
    StoreUnavailable,
)

from .conftest import MakeZooKeeper
from .etcd_elections import CLOCK
from .leaks import Footprint, footprint, no_more
from .servers.ports import free_port
from .servers.zookeeper import PASSWORD, USER, ZooKeeperClient, ZooKeeperServer
from .waiting import wait_until
from .zookeeper_elections import backend_of, entries


@pytest.fixture
def store(zookeeper: ZooKeeperClient) -> Iterator[Store]:
    with new_store(zookeeper.url) as opened:
        yield opened


@pytest.fixture
def client(zookeeper: ZooKeeperClient) -> Iterator[KazooClient]:
    with zookeeper.client() as started:
        yield started


@pytest.fixture(scope="module")
def own_server(make_own_zookeeper: MakeZooKeeper) -> ZooKeeperServer:
    return make_own_zookeeper()


class TestNames:
    def test_an_entry_is_named_as_kazoos_or_curators(self) -> None:
        kazoo = NAMES["kazoo"].unique(0x1FF, 0xABC)
        curator = NAMES["curator"].unique(0x1FF, 0xABC)
        assert kazoo == "00000000000001ff0000000000000abc__lock__"
        assert curator == "_c_00000000-0000-01ff-0000-000000000abc-latch-"

    def test_a_negative_session_id_gives_a_name_of_the_same_length(self) -> None:
        assert NAMES["kazoo"].unique(-1, 0).startswith("f" * 16 + "0" * 16 + "__")

    def test_only_contenders_count(self) -> None:
        names = ["a__lock__0000000002", "x", "0000000000", "b__rlock__0000000000", "c__lock__1"]
        assert in_order(NAMES["kazoo"], names) == ["a__lock__0000000002"]

    def test_the_counter_gives_the_order_and_not_the_name(self) -> None:
        names = ["a__lock__0000000010", "z__lock__0000000009", "m__lock__1000000000"]
        assert in_order(NAMES["kazoo"], names) == [names[1], names[0], names[2]]

    @pytest.mark.parametrize(
        "names",
        [
            ["a__lock__-2147483648", "b__lock__2147483646"],
            ["a__lock__-000000001", "b__lock__0000000001"],
            ["a__lock__0000000007", "b__lock__0000000007"],
            ["a__lock__2147483647"],
        ],
    )
    def test_where_the_counter_wraps_or_stands_still_it_decides_nothing(
        self, names: list[str]
    ) -> None:
        assert in_order(NAMES["kazoo"], names) is None


class TestKeys:
    def test_the_index_of_a_node_just_created_tells_it_from_its_forerunner(
        self, store: Store, key: str
    ) -> None:
        first = store.atomic_put(key, "1")
        store.delete(key)
        second = store.atomic_put(key, "1")
        assert second.index > first.index
        with pytest.raises(KeyModified):
            store.atomic_delete(key, first)
        store.atomic_delete(key, second)

    def test_no_empty_value_is_ever_seen(self, store: Store, client: KazooClient, key: str) -> None:
        seen: list[bytes] = []
        store.put(f"{key}/first", "x")

        def look(event: Any) -> None:
            names = client.get_children(f"/{key}")
            seen.extend(client.get(f"/{key}/{name}")[0] for name in names)

        for number in range(50):
            client.get_children(f"/{key}", watch=look)
            store.put(f"{key}/{number}", "x", ttl=5 if number % 2 else None)
        assert set(seen) == {b"x"}

    def test_a_node_above_a_key_is_no_key_and_another_clients_empty_one_is(
        self, store: Store, client: KazooClient, key: str
    ) -> None:
        store.put(f"{key}/a/b", "x")
        client.create(f"/{key}/c", b"")
        assert store.get(f"{key}/a") is None
        assert not store.delete(f"{key}/a")
        assert [pair.key for pair in store.list(key)] == [f"{key}/a/b", f"{key}/c"]
        store.atomic_put(f"{key}/a", "a key now")
        assert [pair.key for pair in store.list(key)] == [f"{key}/{n}" for n in ("a", "a/b", "c")]

    def test_an_elections_key_shows_nothing_and_its_list_the_contenders(
        self, store: Store, key: str
    ) -> None:
        with Candidate(store, key, "a", ttl=5).campaign(timeout=10):
            assert store.get(key) is None
            (entry,) = store.list(key)
            assert entry.value == b"a"
            assert entry.key.startswith(f"{key}/")
            assert all("leadership-sessions" not in pair.key for pair in store.list())

    def test_a_key_with_a_ttl_takes_no_key_below_it_and_stands_above_none(
        self, store: Store, key: str
    ) -> None:
        store.put(f"{key}/lamp", "on", ttl=5)
        with pytest.raises(StoreError, match="below a key with a ttl"):
            store.put(f"{key}/lamp/socket", "x")
        with pytest.raises(StoreError, match="ttl"):
            Candidate(store, f"{key}/lamp", "a", ttl=5).campaign(timeout=10)
        store.put(f"{key}/a/b", "x")
        with pytest.raises(StoreError, match="keys below it"):
            store.put(f"{key}/a", "x", ttl=5)

    def test_a_key_with_a_ttl_outlives_its_store_by_that_much(
        self, zookeeper: ZooKeeperClient, store: Store, key: str
    ) -> None:
        with new_store(zookeeper.url) as other:
            other.put(key, "x", ttl=1.5)
            written = CLOCK.now()
        assert store.exists(key)
        wait_until(lambda: not store.exists(key), 10, "the lapse")
        assert CLOCK.now() - written >= 1.4

    def test_a_key_that_another_store_wrote_since_is_not_removed_in_our_time(
        self, zookeeper: ZooKeeperClient, store: Store, key: str
    ) -> None:
        with new_store(zookeeper.url) as other:
            for name, ttl in (("stays", None), ("lives", 20)):
                store.put(f"{key}/{name}", "x", ttl=0.8)
                other.put(f"{key}/{name}", "y", ttl=ttl)
            store.put(f"{key}/sign", "x", ttl=0.8)
            wait_until(lambda: not store.exists(f"{key}/sign"), 10, "the lapse")
            assert [pair.value for pair in store.list(key)] == [b"y", b"y"]

    def test_a_watch_of_a_tree_tells_of_what_is_deep_and_of_changed_values(
        self, store: Store, client: KazooClient, key: str
    ) -> None:
        with store.watch_tree(key) as trees:
            assert next(trees) == []
            store.put(f"{key}/a/b/c", "1")
            assert [(p.key, p.value) for p in self.told(trees)] == [(f"{key}/a/b/c", b"1")]
            client.set(f"/{key}/a/b/c", b"2")
            assert [p.value for p in self.told(trees)] == [b"2"]
            client.delete(f"/{key}", recursive=True)
            assert next(trees) == []

    def told(self, trees: Any) -> Any:
        # The nodes above a key are made before it, which changes nothing.
        return next(trees)

    @pytest.mark.parametrize("key", ["zookeeper", "zookeeper/quota", "a\x85b", "a\ue000"])
    def test_what_zookeeper_takes_in_no_path_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(ConfigurationError):
            store.put(key, "x")
        with pytest.raises(ConfigurationError):
            Candidate(store, key, "a", ttl=5).campaign(timeout=5)


class TestOptions:
    @pytest.mark.parametrize(
        ("address", "match"),
        [
            ("zookeeper://", "at least one server"),
            ("zk://h:1,h:x", "no host:port"),
            ("zk://h?names=java", "does not fit"),
            ("zk://h?sasl=DIGEST-MD5", "needs user"),
            ("zk://h?password=x", "without a user"),
            ("zk://h?cert=/nowhere", "both cert and key"),
            ("zk://h?ca=/nowhere/ca.pem", "cannot be read"),
            ("zk://h?session_timeout=0", "session_timeout"),
            ("zk://h?user_name=x", "did you mean"),
        ],
    )
    def test_what_can_never_work_is_refused_at_once(self, address: str, match: str) -> None:
        with pytest.raises((ConfigurationError, ValueError), match=match):
            new_store(address)

    def test_a_file_that_is_no_certificate_is_refused(self, tmp_path: Any) -> None:
        (tmp_path / "ca.pem").write_text("nothing")
        with pytest.raises(ConfigurationError, match="TLS"):
            new_store("zk://h", ca=str(tmp_path / "ca.pem"))

    def test_a_chroot_is_made_and_holds_all(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        with new_store(f"{zookeeper.url}/{key}/chroot") as store:
            assert store.get("a") is None
            assert store.list() == []
            with Candidate(store, "service", "x", ttl=5).campaign(timeout=10):
                assert Follower(store, "service").leader() == "x"
                assert sorted(client.get_children(f"/{key}/chroot")) == [
                    "leadership-sessions",
                    "service",
                ]
            store.put("zookeeper", "one's own here")
            assert [pair.key for pair in store.list()] == ["zookeeper"]

    def test_a_server_that_is_not_there_is_passed_over(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        gone = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))
        with new_store(f"zk://{gone},{zookeeper.endpoint}") as store:
            with Candidate(store, key, "a", ttl=5).campaign(timeout=10) as term:
                assert term.is_valid()

    def test_no_server_at_all_is_said_so(self) -> None:
        with new_store(f"zk://127.0.0.1:{free_port()}", request_timeout=0.5) as store:
            with pytest.raises(StoreUnavailable, match="has let us in"):
                store.get("a")

    def test_a_connection_to_a_server_that_only_reads_does_not_count(self, store: Store) -> None:
        async def scenario() -> None:
            backend = backend_of(store)
            connection = Connection(backend._settings, backend.context, 5)
            connection._changed(KazooState.CONNECTED, KeeperState.CONNECTED_RO, 1, 5.0, 1.0)
            assert not connection.is_connected
            connection._changed(KazooState.CONNECTED, KeeperState.CONNECTED, 1, 5.0, 1.0)
            assert connection.is_connected
            await connection.close()

        store.core.call(scenario)


class TestAccess:
    @pytest.fixture
    def zookeeper(self, own_server: ZooKeeperServer) -> ZooKeeperServer:
        """Not that of all others, who could not read what is left here."""
        with own_server.client() as operator:
            operator.ensure_path("/test")
        return own_server

    def test_a_user_of_a_digest_keeps_others_out(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        address = zookeeper.url.replace("//", "//swarm:secret-word@")
        sessions = f"{key}-sessions"
        with (
            new_store(address, sessions=sessions) as ours,
            new_store(zookeeper.url) as stranger,
            Candidate(ours, key, "a", ttl=5).campaign(timeout=10),
        ):
            for act in (
                lambda: Follower(stranger, key).leader(),
                lambda: Candidate(stranger, key, "b", ttl=5).campaign(timeout=5),
                lambda: stranger.list(key),
            ):
                with pytest.raises(AccessDenied, match="user, password"):
                    act()
            assert Follower(ours, key).leader() == "a"
        client.add_auth("digest", "swarm:secret-word")
        (acl,) = client.get_acls(f"/{key}")[0]
        assert acl.id.scheme == "digest"
        assert acl.id.id.startswith("swarm:")

    def test_others_may_be_let_in_to_read_or_to_take_part(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        address = zookeeper.url.replace("//", "//swarm:secret-word@")
        for acl, allowed in (("creator-read", False), ("open", True)):
            with (
                new_store(address, acl=acl, sessions=f"{key}-{acl}-s") as ours,
                new_store(zookeeper.url) as stranger,
                Candidate(ours, f"{key}-{acl}", "a", ttl=5).campaign(timeout=10),
            ):
                assert Follower(stranger, f"{key}-{acl}").leader() == "a"
                rival = Candidate(stranger, f"{key}-{acl}", "b", ttl=5)
                with pytest.raises(TimeoutError if allowed else AccessDenied):
                    rival.campaign(timeout=0.5)

    def test_nodes_made_for_us_by_an_operator_may_be_all_that_we_can_write(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        ours = make_digest_acl("swarm", "secret-word", all=True)
        client.create(f"/{key}", b"", acl=[ours], makepath=True)
        address = zookeeper.url.replace("//", "//swarm:secret-word@")
        with new_store(f"{address}/{key}") as store:
            with Candidate(store, "leader", "a", ttl=5).campaign(timeout=10):
                assert Follower(store, "leader").leader() == "a"
        client.add_auth("digest", "swarm:secret-word")
        client.delete(f"/{key}", recursive=True)

    def test_sasl_lets_in_who_knows_the_password(self, make_zookeeper: MakeZooKeeper) -> None:
        server = make_zookeeper(sasl=True)
        options: dict[str, Any] = {"sasl": "DIGEST-MD5", "user": USER}
        with new_store(server.url, password=PASSWORD, **options) as store:
            with Candidate(store, "leader", "a", ttl=5).campaign(timeout=10):
                login = {"mechanism": "DIGEST-MD5", "username": USER, "password": PASSWORD}
                with server.client(sasl_options=login) as client:
                    (acl,) = client.get_acls("/leader")[0]
                    assert (acl.id.scheme, acl.id.id) == ("sasl", USER)
        with new_store(server.url, password="wrong", **options) as store:
            # By the answer to our first request, or by the state of the connection.
            with pytest.raises(AccessDenied, match="check user"):
                store.get("a")

    def test_tls_with_a_client_certificate(self, make_zookeeper: MakeZooKeeper, key: str) -> None:
        server = make_zookeeper(client_certificates=True)
        made = server.certificates
        address = f"zk://{server.secure_endpoint}"
        client: dict[str, Any] = {"cert": str(made.client), "key": str(made.client_key)}
        with new_store(address, ca=str(made.authority), **client) as store:
            with Candidate(store, key, "a", ttl=5).campaign(timeout=10):
                assert Follower(store, key).leader() == "a"
            large = b"x" * 500_000
            store.put(f"{key}-large", large)
            pair = store.get(f"{key}-large")
            assert pair is not None
            assert pair.value == large
        refused: list[dict[str, Any]] = [
            {"ca": str(made.authority)},
            {"ca": str(made.stranger_authority), **client},
        ]
        for options in refused:
            with new_store(address, request_timeout=1, **options) as store:
                with pytest.raises(StoreUnavailable):
                    store.get("a")

    def test_no_secret_is_in_a_log_a_repr_or_an_error(
        self, zookeeper: ZooKeeperClient, key: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        address = zookeeper.url.replace("//", "//swarm:secret-word@")
        with caplog.at_level(1):
            with new_store(address, sessions=f"{key}-s") as store:
                with Candidate(store, key, "a", ttl=5).campaign(timeout=10):
                    pass
                shown = repr(store) + repr(backend_of(store)._settings)
            with pytest.raises(ConfigurationError) as error:
                new_store(f"{address}/?no_such=1")
        shown += str(error.value) + caplog.text
        assert "secret-word" not in shown
        assert not any(r.levelno < logging.INFO for r in caplog.records if "zoo" in r.name)


def test_nothing_is_left_behind_after_many_cycles(
    zookeeper_server: ZooKeeperServer, key: str
) -> None:
    first: Footprint | None = None
    with ThreadPoolExecutor(1) as thread:
        for cycle in range(1, 31):
            with new_store(zookeeper_server.url) as store:
                candidate = Candidate(store, key, "a", ttl=5)
                with candidate.run_for_election() as standings:
                    assert [next(standings), next(standings)] == [False, True]
                    candidate.resign()
                    with Follower(store, key).follow_election() as leaders:
                        next(leaders)
                with store.lock(f"{key}-lock", ttl=5) as lock:
                    assert lock.is_held()
                thread.submit(store.put, f"{key}-value", "x").result(10)
            if cycle == 3:
                first = footprint()
    assert first is not None
    limit = first
    wait_until(lambda: no_more(footprint(), limit), 10, f"no more than {first}")
    assert threading.active_count() < 20
    with zookeeper_server.client() as client:
        assert entries(client, key) == []
        assert client.get_children("/leadership-sessions") == []
    wait_until(lambda: zookeeper_server.count("zk_num_alive_connections") <= 1, 10, "no connection")


def test_a_certificate_of_another_name_is_refused(make_zookeeper: MakeZooKeeper) -> None:
    context = ssl.create_default_context()
    with new_store("zk://h", tls=True) as store:
        tls = backend_of(store)._settings.tls
        assert tls is not None
        assert tls.check_hostname is context.check_hostname is True
        assert tls.verify_mode is ssl.CERT_REQUIRED
