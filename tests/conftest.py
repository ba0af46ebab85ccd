"""The servers as fixtures, and the last lines of a run: which backends it really used."""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import pytest

from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.consul import installed_version as installed_consul
from tests.servers.consul_client import ConsulClient, ExternalConsul
from tests.servers.etcd import EtcdCluster, EtcdServer
from tests.servers.etcd import installed_version as installed_etcd
from tests.servers.etcd_client import EtcdClient, ExternalEtcd
from tests.servers.programs import ServerMissingError
from tests.servers.zookeeper import (
    ExternalZooKeeper,
    ZooKeeperClient,
    ZooKeeperEnsemble,
    ZooKeeperServer,
)
from tests.servers.zookeeper import installed_version as installed_zookeeper

pytest_plugins = ["pytester", "tests.etcd_elections", "tests.consul_elections"]

# A shell's background job ignores SIGINT, what `nohup` starts SIGHUP, and every program
# started from it would too: with a handler here, or none, they begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

T = TypeVar("T")

MakeEtcd = Callable[..., EtcdServer]
MakeConsul = Callable[..., ConsulServer]
MakeZooKeeper = Callable[..., ZooKeeperServer]

_BUILT_IN = frozenset({"memory", "peers"})
_BACKEND_OF_FIXTURE = {
    "memory": "memory",
    "etcd": "etcd",
    "etcd_server": "etcd",
    "etcd_cluster": "etcd",
    "make_etcd": "etcd",
    "consul": "consul",
    "consul_server": "consul",
    "consul_cluster": "consul",
    "make_consul": "consul",
    "consul_store": "consul",
    "relayed_store": "consul",
    "default_consul": "consul",
    "zookeeper": "zookeeper",
    "zookeeper_server": "zookeeper",
    "zookeeper_ensemble": "zookeeper",
    "shared_ensemble": "zookeeper",
    "cuttable_ensemble": "zookeeper",
    "read_only_ensemble": "zookeeper",
    "make_zookeeper": "zookeeper",
    "own_server": "zookeeper",
}

_INSTALLED: dict[str, Callable[[], str]] = {
    "etcd": installed_etcd,
    "consul": installed_consul,
    "zookeeper": installed_zookeeper,
}

_versions: dict[str, str] = {}
_tests_run: Counter[str] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    # Some tests count all that is on a server: nobody else may use it meanwhile.
    if any(os.environ.get(f"LEADERSHIP_TEST_{backend.upper()}") for backend in _INSTALLED):
        config.option.numprocesses = 0


def require_native(backend: str) -> None:
    try:
        _versions[backend] = _INSTALLED[backend]()
    except ServerMissingError as error:
        # A backend without its server is a failure: a skip would look like a proof.
        # Only who chose a server elsewhere, on their own machine, is let off.
        if os.environ.get(f"LEADERSHIP_TEST_{backend.upper()}") and not os.environ.get("CI"):
            pytest.skip(f"needs a server of its own to kill: {error}")
        pytest.fail(str(error), pytrace=False)


def _one_for_all(
    backend: str, outside: Callable[[str], Any], start: Callable[[], AbstractContextManager[T]]
) -> Iterator[T]:
    """The server that the environment names, or one of ours."""
    external = os.environ.get(f"LEADERSHIP_TEST_{backend.upper()}")
    if external:
        named = outside(external)
        _versions[backend] = named.version
        yield named
    else:
        yield from _own(backend, start)


def _own(backend: str, start: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    require_native(backend)
    with start() as started:
        yield started


def _as_many_as_wanted(
    backend: str, start: Callable[..., AbstractContextManager[T]]
) -> Iterator[Callable[..., T]]:
    require_native(backend)
    with contextlib.ExitStack() as servers:
        yield lambda **options: servers.enter_context(start(**options))


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdClient]:
    """One etcd for the whole run, whose leases may live 1 s; keys of your own, please.

    LEADERSHIP_TEST_ETCD=host:port names a running one to use instead.
    """
    yield from _one_for_all("etcd", ExternalEtcd, EtcdServer)


@pytest.fixture
def make_etcd() -> Iterator[MakeEtcd]:
    """``make_etcd(**options)`` starts an :class:`EtcdServer`; they stop with the test."""
    yield from _as_many_as_wanted("etcd", EtcdServer)


@pytest.fixture
def etcd_server(make_etcd: MakeEtcd) -> EtcdServer:
    """An etcd of the test's own, to kill, pause and restart."""
    return make_etcd()


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three etcd members of the test's own."""
    yield from _own("etcd", EtcdCluster)


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulClient]:
    """One Consul for the whole run, whose sessions may live 1 s; keys of your own, please.

    LEADERSHIP_TEST_CONSUL=host:port names a running one to use instead.
    """
    yield from _one_for_all("consul", ExternalConsul, ConsulServer)


@pytest.fixture(scope="session")
def default_consul() -> Iterator[ConsulServer]:
    """One Consul with its default times for the whole run."""
    yield from _own("consul", partial(ConsulServer, fast=False))


@pytest.fixture
def make_consul() -> Iterator[MakeConsul]:
    """``make_consul(**options)`` starts a :class:`ConsulServer`; they stop with the test."""
    yield from _as_many_as_wanted("consul", ConsulServer)


@pytest.fixture
def consul_server(make_consul: MakeConsul) -> ConsulServer:
    """A Consul of the test's own, to kill, pause and restart."""
    return make_consul()


@pytest.fixture
def consul_cluster() -> Iterator[ConsulCluster]:
    """Three Consul servers of the test's own."""
    yield from _own("consul", ConsulCluster)


@pytest.fixture(scope="session")
def zookeeper() -> Iterator[ZooKeeperClient]:
    """One ZooKeeper for the whole run, whose sessions may live 0.4 s; keys of your own, please.

    LEADERSHIP_TEST_ZOOKEEPER=host:port names a running one to use instead.
    """
    yield from _one_for_all("zookeeper", ExternalZooKeeper, ZooKeeperServer)


@pytest.fixture
def make_zookeeper() -> Iterator[MakeZooKeeper]:
    """``make_zookeeper(**options)`` starts a :class:`ZooKeeperServer`; they stop with the test."""
    yield from _as_many_as_wanted("zookeeper", ZooKeeperServer)


@pytest.fixture(scope="module")
def make_own_zookeeper() -> Iterator[MakeZooKeeper]:
    """:func:`make_zookeeper` for a whole file's tests."""
    yield from _as_many_as_wanted("zookeeper", ZooKeeperServer)


@pytest.fixture
def zookeeper_server(make_zookeeper: MakeZooKeeper) -> ZooKeeperServer:
    """A ZooKeeper of the test's own, to kill, pause and restart."""
    return make_zookeeper()


@pytest.fixture(scope="session")
def shared_ensemble() -> Iterator[ZooKeeperEnsemble]:
    """Three ZooKeepers for the whole run, for tests that leave them be."""
    yield from _own("zookeeper", ZooKeeperEnsemble)


@pytest.fixture
def zookeeper_ensemble() -> Iterator[ZooKeeperEnsemble]:
    """Three ZooKeepers of the test's own."""
    yield from _own("zookeeper", ZooKeeperEnsemble)


@pytest.fixture
def cuttable_ensemble() -> Iterator[ZooKeeperEnsemble]:
    """Three whose followers can be cut from their leader, and go on answering for a while."""
    yield from _own("zookeeper", partial(ZooKeeperEnsemble, cuttable=True))


@pytest.fixture
def read_only_ensemble() -> Iterator[ZooKeeperEnsemble]:
    """Three that answer reads when they are alone."""
    yield from _own("zookeeper", partial(ZooKeeperEnsemble, read_only=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marked = {marker.args[0] for marker in item.iter_markers("backend")}
        used = {
            _BACKEND_OF_FIXTURE[name]
            for name in getattr(item, "fixturenames", ())
            if name in _BACKEND_OF_FIXTURE
        }
        # A property of the report's, and so told to the process that counts too.
        item.user_properties.extend(("backend", name) for name in sorted(marked | used))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        _tests_run.update(str(value) for name, value in report.user_properties if name == "backend")


def pytest_sessionfinish(session: pytest.Session) -> None:
    told = getattr(session.config, "workeroutput", None)
    if told is not None:  # one of several processes, that run the tests side by side
        told["versions"] = _versions


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _versions.update(getattr(node, "workeroutput", {}).get("versions", {}))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    # After everybody else's summary: these are to be the last lines.
    yield
    told = [
        f"{backend} {'(built in)' if backend in _BUILT_IN else _versions.get(backend, '')}: "
        f"{count} tests"
        for backend, count in sorted(_tests_run.items(), key=_built_in_first)
    ]
    terminalreporter.section("backends that ran")
    terminalreporter.write_line(f"backends: {', '.join(told) or 'none'}")


def _built_in_first(entry: tuple[str, int]) -> tuple[bool, str]:
    backend, _ = entry
    return backend not in _BUILT_IN, backend
