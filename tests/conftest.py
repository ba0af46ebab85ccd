"""The servers as fixtures, and the last lines of a run: which backends it really used."""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.servers.etcd import EtcdCluster, EtcdServer, installed_version
from tests.servers.etcd_client import EtcdClient, ExternalEtcd
from tests.servers.programs import ServerMissingError

pytest_plugins = ["pytester", "tests.etcd_elections"]

# A shell's background job ignores SIGINT, what `nohup` starts SIGHUP, and every program
# started from it would too: with a handler here, or none, they begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

MakeEtcd = Callable[..., EtcdServer]

_BUILT_IN = frozenset({"memory", "peers"})
_BACKEND_OF_FIXTURE = {
    "memory": "memory",
    "etcd": "etcd",
    "etcd_server": "etcd",
    "etcd_cluster": "etcd",
    "make_etcd": "etcd",
}

_versions: dict[str, str] = {}
_tests_run: Counter[str] = Counter()


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdClient]:
    """One etcd for the whole run, whose leases may live 1 s; keys of your own, please.

    LEADERSHIP_TEST_ETCD=host:port names a running one to use instead.
    """
    external = os.environ.get("LEADERSHIP_TEST_ETCD")
    if external:
        outside = ExternalEtcd(external)
        _versions["etcd"] = outside.version
        yield outside
    else:
        _require_native_etcd()
        with EtcdServer() as server:
            yield server


@pytest.fixture
def make_etcd() -> Iterator[MakeEtcd]:
    """``make_etcd(**options)`` starts an :class:`EtcdServer`; they stop with the test."""
    _require_native_etcd()
    with contextlib.ExitStack() as servers:
        yield lambda **options: servers.enter_context(EtcdServer(**options))


@pytest.fixture
def etcd_server(make_etcd: MakeEtcd) -> EtcdServer:
    """An etcd of the test's own, to kill, pause and restart."""
    return make_etcd()


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three etcd members of the test's own."""
    _require_native_etcd()
    with EtcdCluster() as cluster:
        yield cluster


def _require_native_etcd() -> None:
    try:
        _versions["etcd"] = installed_version()
    except ServerMissingError as error:
        # A backend without its server is a failure: a skip would look like a proof.
        # Only who chose a server elsewhere, on their own machine, is let off.
        if os.environ.get("LEADERSHIP_TEST_ETCD") and not os.environ.get("CI"):
            pytest.skip(f"needs an etcd of its own to kill: {error}")
        pytest.fail(str(error), pytrace=False)


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
