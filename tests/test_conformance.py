"""The kit, on our own backends, and on one that lacks what the kit must then skip."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import ClassVar

import pytest

from leadership import Store, new_store
from leadership.backend import Capability
from leadership.backends.memory import MemoryBackend
from leadership.testing import BackendConformance, Cuttable, FaultyBackend

from .peers_cluster import PeersCluster, backend_of, cut_off, running
from .servers.consul_client import ConsulClient
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy, Mode
from .servers.zookeeper import ZooKeeperClient, ZooKeeperEnsemble


@pytest.mark.backend("memory")
class TestMemory(BackendConformance):
    ttl = 0.5

    @pytest.fixture(autouse=True)
    def _space(self) -> None:
        self.name = uuid.uuid4().hex

    def make_store(self) -> Store:
        return new_store(f"memory://{self.name}")

    def make_cuttable_store(self) -> Cuttable:
        store = self.make_store()
        return store, FaultyBackend.under(store).cut_off


class TestEtcd(BackendConformance):
    ttl = 1.0

    @pytest.fixture(autouse=True)
    def _server(self, etcd: EtcdClient) -> Iterator[None]:
        self.url = etcd.url
        with contextlib.ExitStack() as self.proxies:
            yield

    def make_store(self) -> Store:
        return new_store(self.url)

    def make_cuttable_store(self) -> Cuttable:
        host, _, port = self.url.removeprefix("etcd://").rpartition(":")
        proxy = self.proxies.enter_context(FaultProxy(int(port), host))

        @contextlib.contextmanager
        def cut_off() -> Iterator[None]:
            proxy.set(Mode.RESET)
            yield
            proxy.set(Mode.PASS)

        return new_store(f"etcd://{proxy.endpoint}"), cut_off


class TestConsul(BackendConformance):
    ttl = 1.0

    @pytest.fixture(autouse=True)
    def _server(self, consul: ConsulClient) -> Iterator[None]:
        self.server = consul
        with contextlib.ExitStack() as self.proxies:
            yield

    def make_store(self) -> Store:
        return new_store(self.server.url)

    def make_cuttable_store(self) -> Cuttable:
        host, _, port = self.server.endpoint.rpartition(":")
        proxy = self.proxies.enter_context(FaultProxy(int(port), host))

        @contextlib.contextmanager
        def cut_off() -> Iterator[None]:
            proxy.set(Mode.RESET)
            yield
            proxy.set(Mode.PASS)

        return new_store(self.server.url_of(proxy.endpoint)), cut_off


@pytest.mark.long
class TestConsulAsItComes(TestConsul):
    """With the server's own settings, under which no session is shorter than 10 s."""

    ttl = 10.0

    @pytest.fixture(autouse=True)
    def _server(self, default_consul: ConsulClient) -> Iterator[None]:
        self.server = default_consul
        with contextlib.ExitStack() as self.proxies:
            yield

    def make_store(self) -> Store:
        return new_store(f"consul://{self.server.endpoint}")


class OnZooKeeper(BackendConformance):
    __test__ = False
    ttl = 1.2
    url: str

    @pytest.fixture(autouse=True)
    def _proxies(self) -> Iterator[None]:
        with contextlib.ExitStack() as self.proxies:
            yield

    def make_store(self) -> Store:
        return new_store(self.url)

    def make_cuttable_store(self) -> Cuttable:
        # Through one server of the ensemble only: else the client goes on to the next.
        host, _, port = self.url.partition("://")[2].partition(",")[0].rpartition(":")
        proxy = self.proxies.enter_context(FaultProxy(int(port), host))

        @contextlib.contextmanager
        def cut_off() -> Iterator[None]:
            proxy.set(Mode.RESET)
            yield
            proxy.set(Mode.PASS)

        return new_store(f"zookeeper://{proxy.endpoint}"), cut_off


class TestZooKeeper(OnZooKeeper):
    __test__ = True

    @pytest.fixture(autouse=True)
    def _server(self, zookeeper: ZooKeeperClient) -> None:
        self.url = zookeeper.url


@pytest.mark.long
class TestZooKeeperEnsemble(OnZooKeeper):
    __test__ = True

    @pytest.fixture(autouse=True)
    def _server(self, shared_ensemble: ZooKeeperEnsemble) -> None:
        self.url = shared_ensemble.url


@pytest.fixture(scope="module")
def four_of_seven() -> Iterator[PeersCluster]:
    """A majority that runs: the kit's own nodes come and go."""
    with running(7, 4, ttl_ceiling=1) as cluster:
        yield cluster


@pytest.mark.backend("peers")
class TestPeers(BackendConformance):
    ttl = 1.0

    @pytest.fixture(autouse=True)
    def _cluster(self, four_of_seven: PeersCluster) -> Iterator[None]:
        self.cluster = four_of_seven
        self.opened: list[Store] = []
        yield
        for store in self.opened:  # one that failed halfway must not fail the rest
            store.close()

    def make_store(self) -> Store:
        free = set(range(4, 7)) - {
            self.number(each) for each in self.opened if not each.core.closed
        }
        # Its silence after the start is the kit's to wait for, as a user's.
        store = new_store(self.cluster.url(min(free)))
        store.core.call(backend_of(store).driver)
        self.opened.append(store)
        return store

    def make_cuttable_store(self) -> Cuttable:
        store = self.make_store()
        return store, lambda: cut_off(store)

    def number(self, store: Store) -> int:
        return self.cluster.addresses.index(backend_of(store)._settings.address)


class PlainBackend(MemoryBackend):
    """A store that has nothing but keys."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.KV})


def test_a_group_that_the_backend_does_not_offer_shows_as_skipped(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from leadership.backend import Address
        from leadership.core import Core
        from leadership.store import Store
        from leadership.testing import BackendConformance
        from tests.test_conformance import PlainBackend

        class TestPlain(BackendConformance):
            def make_store(self):
                return Store(Core(Address("plain", ("kit",)), PlainBackend))
        """
    )
    result = pytester.runpytest("-q", "-rs", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 23
    assert set(outcomes) == {"passed", "skipped"}
    result.stdout.fnmatch_lines(["*the backend does not offer lock*"])


def test_without_pytest_the_clock_and_the_faults_are_there_and_the_kit_says_what_to_install() -> (
    None
):
    code = """
import sys
sys.modules["pytest"] = None
from leadership.errors import MissingExtra
from leadership.testing import FaultyBackend, ManualClock
try:
    from leadership.testing import BackendConformance
except MissingExtra as error:
    print(error)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "pip install 'leadership[testing]'" in printed


def test_an_assert_of_the_kit_that_fails_shows_what_it_compared(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from leadership.backends.memory import MemoryBackend
        from leadership.backend import Address
        from leadership.core import Core
        from leadership.store import Store
        from leadership.testing import BackendConformance

        class Forgetful(MemoryBackend):
            async def list(self, directory):
                return []

        class TestForgetful(BackendConformance):
            def make_store(self):
                return Store(Core(Address("forgetful", ("kit",)), Forgetful))
        """
    )
    result = pytester.runpytest_subprocess(
        "-q", "-p", "no:cacheprovider", "-k", "test_a_directory_is_a_path_and_no_prefix"
    )
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["E*assert [[]] == *"])
