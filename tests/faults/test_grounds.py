"""The grounds: what a fault is aimed at is hit, on every store."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leadership import Candidate, Store, new_store
from tests.conftest import require_native
from tests.peers_cluster import driver_of
from tests.servers.fault_proxy import Fate, Mode
from tests.waiting import wait_until

from . import wall_clock
from .ground import KEY, SLOTS, Ground
from .grounds import ground
from .members import RelayedPeersGround

SERVED = ("etcd", "consul", "zookeeper")

each_served = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in SERVED]
)


@contextlib.contextmanager
def stood_on(backend: str, clustered: bool, folder: Path) -> Iterator[Ground]:
    require_native(backend)
    with ground(backend, clustered, folder, random.Random(1)) as here:
        yield here


def comes(here: Ground, slot: int, request: str, cause: Callable[[], object]) -> bool:
    """Whether such a request passes on this slot's line after the cause, and not before."""
    line = here.lines[slot]
    line.catch(here.requests[request], Fate.REPLY_LOST)
    assert not line.has_caught
    cause()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: line.has_caught, 20, f"a request of {request}")
    caught = line.has_caught
    line.set(Mode.PASS)
    return caught


@each_served
def test_each_request_is_known_on_its_line(backend: str, tmp_path: Path) -> None:
    with (
        stood_on(backend, False, tmp_path) as here,
        new_store(here.url(0)) as first,
        new_store(here.url(1)) as second,
    ):
        for slot, (request, store) in enumerate((("session", first), ("entry", second))):
            with leading(store, here) as candidate:
                assert comes(here, slot, request, lambda: won(candidate))
        with leading(first, here) as candidate:
            won(candidate)
            assert comes(here, 0, "renewal", lambda: None)
            won(candidate)
            assert comes(here, 0, "release", candidate.resign)


@pytest.mark.backend("peers")
def test_each_request_of_a_member_is_known_on_its_lanes(tmp_path: Path) -> None:
    here = RelayedPeersGround(None, random.Random(1))
    with here, contextlib.ExitStack() as opened:
        stores = [opened.enter_context(new_store(here.url(slot))) for slot in range(SLOTS)]
        for store in stores:
            driver_of(store)
        with leading(stores[0], here) as candidate:
            assert comes(here, 0, "vote", lambda: won(candidate))
        with leading(stores[0], here) as candidate:
            won(candidate)
            assert comes(here, 0, "renewal", lambda: None)
            won(candidate)
            assert comes(here, 0, "release", candidate.resign)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("etcd", marks=pytest.mark.backend("etcd")),
        pytest.param("consul", marks=[pytest.mark.backend("consul"), pytest.mark.long]),
        pytest.param("zookeeper", marks=[pytest.mark.backend("zookeeper"), pytest.mark.long]),
    ],
)
def test_a_store_s_leader_is_cut_off_from_the_others_and_not_from_us(
    backend: str, tmp_path: Path
) -> None:
    with stood_on(backend, True, tmp_path) as here:
        if here.network is None:
            pytest.skip("needs root and network namespaces")
        former = wait_until(lambda: number(here), 30, "a leader of the store") - 1
        here.network.isolate(former)
        # The cut one is still there for us, so that it may be asked, and may answer wrongly.
        successor = wait_until(lambda: number(here, besides=former), 30, "another leader") - 1
        assert successor != former
        address, _, port = here.servers[former].endpoints[0].rpartition(":")  # type: ignore[attr-defined]
        socket.create_connection((address, int(port)), timeout=10).close()
        here.network.heal()
        wait_until(lambda: number(here), 30, "one leader again")


def number(here: Ground, besides: int | None = None) -> int:
    """Of the server that leads, counted from 1; 0: none, or this one."""
    leading = here.leading_server()
    return 0 if leading is None or leading == besides else leading + 1


@pytest.mark.backend("zookeeper")
def test_a_server_s_wall_clock_is_stepped_and_it_serves_as_before(tmp_path: Path) -> None:
    assert wall_clock.can_be_stepped(), "libfaketime is missing: tests/servers/install.sh faketime"
    with stood_on("zookeeper", False, tmp_path) as here, new_store(here.url(0)) as store:
        assert here.server_clock is not None
        made = store.put("before", b"")
        here.server_clock.step(-86_400)
        operator = here.client.client()  # type: ignore[attr-defined]
        with operator as kazoo:

            def stepped() -> bool:
                kazoo.set("/before", b"")
                _, stat = kazoo.get("/before")
                return bool(stat.mtime < stat.ctime)

            wait_until(stepped, 10, "a write of yesterday")
        written = store.get("before")
        assert written is not None
        assert written.index > made.index


@contextlib.contextmanager
def leading(store: Store, here: Ground) -> Iterator[Candidate]:
    with Candidate(store, KEY, "candidate", ttl=here.ttl) as candidate:
        yield candidate


def won(candidate: Candidate) -> None:
    """It leads, whatever has been lost before."""
    if not candidate.is_leader():
        candidate.campaign(timeout=20)
