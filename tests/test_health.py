"""What probes are told: exactly by the clock, over HTTP and without."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.error import HTTPError

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from leadership import Candidate, Store, aio, new_store
from leadership.errors import ConfigurationError
from leadership.health import NOT_RENEWED, OUTLIVED, Health
from leadership.health_server import HealthServer, health_application
from leadership.testing import FaultyBackend, ManualClock

from .command import Command, leadership_here
from .leaks import count_descriptors, count_threads
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

KEY = "service/leader"
TTL = 10.0

pytestmark = pytest.mark.backend("memory")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    opened = new_store(f"memory://{uuid.uuid4()}", clock=clock)
    yield opened
    closing = threading.Thread(target=opened.close)
    closing.start()

    def closed() -> bool:
        # Who rides out an outage waits by this clock too.
        clock.advance(1)
        return not closing.is_alive()

    wait_until(closed, what="the store's closing")


@pytest.fixture
def candidate(store: Store) -> Candidate:
    return Candidate(store, KEY, "a", ttl=TTL)


class Stuck:
    """A time in which the library's own thread does nothing."""

    def __init__(self, store: Store) -> None:
        self._free = threading.Event()
        stands = threading.Event()

        def stand() -> None:
            stands.set()
            self._free.wait()

        store.core.post(stand)
        assert stands.wait(10)

    def end(self) -> None:
        self._free.set()


def statuses(health: Health) -> dict[str, int]:
    return {path: health.answer(path).status for path in ("/leader", "/follower", "/healthz")}


def fetched(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


# --- without a server --------------------------------------------------------------------


def test_a_candidate_that_never_ran_follows_and_is_well(candidate: Candidate) -> None:
    assert statuses(Health(candidate)) == {"/leader": 503, "/follower": 200, "/healthz": 200}


def test_leader_and_follower_exclude_each_other(candidate: Candidate) -> None:
    health = Health(candidate)
    with candidate.campaign(timeout=10):
        assert statuses(health) == {"/leader": 200, "/follower": 503, "/healthz": 200}
        body = json.loads(health.answer("/leader").body)
        assert body[0]["token"] == candidate.term.token  # type: ignore[union-attr]
    assert statuses(health) == {"/leader": 503, "/follower": 200, "/healthz": 200}


def test_leader_is_503_at_the_first_question_after_the_lease_though_no_thread_ran(
    store: Store, clock: ManualClock, candidate: Candidate
) -> None:
    health = Health(candidate)
    candidate.campaign(timeout=10)
    stuck = Stuck(store)
    try:
        clock.advance(TTL * 0.9)
        assert health.answer("/leader").status == 200
        clock.advance(TTL * 0.1)
        assert health.answer("/leader").status == 503
        assert health.answer("/follower").status == 200
    finally:
        stuck.end()


def test_a_leader_that_is_not_renewed_is_unhealthy_until_it_is(
    store: Store, clock: ManualClock, candidate: Candidate
) -> None:
    health = Health(candidate)
    candidate.campaign(timeout=10)
    stuck = Stuck(store)
    try:
        clock.advance(TTL * 0.4)
        assert statuses(health) == {"/leader": 200, "/follower": 503, "/healthz": 200}
        clock.advance(TTL * 0.2)
        assert statuses(health) == {"/leader": 200, "/follower": 503, "/healthz": 503}
        assert NOT_RENEWED in health.answer("/healthz").body.decode()
    finally:
        stuck.end()
    wait_until(lambda: health.answer("/healthz").status == 200, what="a renewal")
    assert candidate.is_leader()


def test_in_an_outage_only_who_believes_that_it_leads_is_unhealthy(
    store: Store, clock: ManualClock
) -> None:
    faults = FaultyBackend.under(store)
    leads, waits = Candidate(store, KEY, "a", ttl=TTL), Candidate(store, KEY, "b", ttl=TTL)
    leads.campaign(timeout=10)
    waiting = iter(waits.run_for_election())
    assert next(waiting) is False
    with faults.cut_off():
        clock.advance(TTL * 0.6)
        assert Health(leads).answer("/healthz").status == 503
        assert Health(waits).answer("/healthz").status == 200
        clock.advance(TTL)
        # By then it knows that it does not lead.
        wait_until(lambda: Health(leads).answer("/healthz").status == 200, what="the loss")
        assert Health(leads).answer("/leader").status == 503


def test_code_that_outlives_its_term_is_unhealthy_until_it_ends(
    store: Store, clock: ManualClock, candidate: Candidate
) -> None:
    health = Health(candidate)
    faults = FaultyBackend.under(store)
    standings = candidate.run_for_election()
    assert [next(standings), next(standings)] == [False, True]
    with faults.cut_off():
        clock.advance(TTL * 2)
        wait_until(lambda: OUTLIVED in health.answer("/healthz").body.decode())
        assert statuses(health) == {"/leader": 503, "/follower": 200, "/healthz": 503}
        assert next(standings) is False
        assert health.answer("/healthz").status == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forks_child_does_not_lead_and_is_well(
    candidate: Candidate, clock: ManualClock, store: Store
) -> None:
    health = Health(candidate)
    with candidate.campaign(timeout=10):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            clock.advance(TTL * 0.6)
            os.write(writing, json.dumps(statuses(health)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with open(reading) as pipe:
            told = json.load(pipe)
    assert told == {"/leader": 503, "/follower": 200, "/healthz": 200}


def test_of_several_elections_one_may_be_asked_for_by_key(store: Store) -> None:
    first, second = Candidate(store, "first", "a"), Candidate(store, "second", "a")
    health = Health(first, second)
    with first.campaign(timeout=10):
        assert statuses(health) == {"/leader": 503, "/follower": 503, "/healthz": 200}
        assert health.answer("/leader?key=first").status == 200
        assert health.answer("/leader?key=second").status == 503
        assert health.answer("/follower?key=second").status == 200
        assert health.answer("/leader?key=third").status == 404


def test_an_async_candidate_is_answered_for_too() -> None:
    async def main() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
            candidate = aio.Candidate(store, KEY, "a")
            health = Health(candidate)
            async with candidate.campaign(timeout=10):
                assert statuses(health) == {"/leader": 200, "/follower": 503, "/healthz": 200}
            assert health.answer("/leader").status == 503

    asyncio.run(main())


def test_other_paths_and_metrics_without_any_are_404(candidate: Candidate) -> None:
    health = Health(candidate)
    assert [health.answer(path).status for path in ("/", "/leaders", "/metrics")] == [404] * 3
    with pytest.raises(ConfigurationError, match="candidates"):
        Health()


# --- over HTTP ---------------------------------------------------------------------------


def test_the_application_answers_below_a_path_of_the_users(candidate: Candidate) -> None:
    async def main() -> list[tuple[str, int, str]]:
        application = web.Application()
        application.add_subapp("/health", health_application(Health(candidate)))
        async with TestClient(TestServer(application)) as client:
            told = []
            for method, path in (
                ("GET", "/health/leader"),
                ("HEAD", "/health/follower"),
                ("OPTIONS", "/health/healthz"),
                ("POST", "/health/leader"),
                ("GET", "/leader"),
            ):
                async with client.request(method, path) as answer:
                    told.append((method, answer.status, answer.headers.get("Cache-Control", "")))
            return told

    assert asyncio.run(main()) == [
        ("GET", 503, "no-store"),
        ("HEAD", 200, "no-store"),
        ("OPTIONS", 200, "no-store"),
        ("POST", 405, ""),
        ("GET", 404, ""),
    ]


def test_the_server_answers_while_the_librarys_thread_is_stuck(
    store: Store, clock: ManualClock, candidate: Candidate
) -> None:
    with HealthServer(Health(candidate), "127.0.0.1:0") as server:
        candidate.campaign(timeout=10)
        stuck = Stuck(store)
        try:
            assert fetched(server.address, "/leader")[0] == 200
            clock.advance(TTL)
            assert fetched(server.address, "/leader?key=service/leader")[0] == 503
            assert fetched(server.address, "/healthz")[0] == 503
        finally:
            stuck.end()


def test_a_server_leaves_nothing_behind_though_a_probe_keeps_its_connection(
    candidate: Candidate,
) -> None:
    def cycle() -> tuple[int, int]:
        server = HealthServer(Health(candidate), "127.0.0.1:0")
        probe = HTTPConnection(server.address, timeout=10)
        probe.request("GET", "/leader")
        assert probe.getresponse().read()
        server.close()
        server.close()
        probe.close()
        return count_threads(), count_descriptors()

    held = [cycle() for _ in range(20)]
    assert held[2] == held[-1]


def test_nonsense_on_the_port_is_answered_and_fills_no_log(
    candidate: Candidate, caplog: pytest.LogCaptureFixture
) -> None:
    with HealthServer(Health(candidate), "127.0.0.1:0") as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
            assert stranger.recv(100).startswith(b"HTTP/1.0 400")
    assert caplog.text == ""


def test_an_address_that_cannot_be_listened_at_is_refused_at_once(candidate: Candidate) -> None:
    health = Health(candidate)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigurationError, match="cannot serve health at"):
            HealthServer(health, f"127.0.0.1:{taken.getsockname()[1]}")
    for listen in ("8008", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000"):
        with pytest.raises(ConfigurationError, match="give host:port"):
            HealthServer(health, listen)
    with pytest.raises(ConfigurationError, match="cannot serve health at"):
        HealthServer(health, "name.invalid:8008")


# --- leadership run ----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_run_serves_health_for_the_one_that_leads_and_the_one_that_waits(etcd: EtcdClient) -> None:
    key = f"service/{uuid.uuid4()}"

    def arguments(id: str) -> list[str]:
        store = ["--store", etcd.url, "--key", key, "--id", id, "--ttl", "2"]
        return ["run", *store, "--health", "127.0.0.1:0", "--json", "--", "sleep", "60"]

    with Command(*arguments("a")) as leader:
        first = leader.wait_for("health")["address"]
        leader.wait_for("started")
        with Command(*arguments("b")) as follower:
            second = follower.wait_for("health")["address"]
            follower.wait_for("waiting")
            assert fetched(first, "/leader")[0] == 200
            assert fetched(second, "/leader")[0] == 503
            assert fetched(second, "/follower")[0] == 200
            assert fetched(second, "/healthz")[0] == 200
            status, text = fetched(first, "/metrics")
            assert status == 200
            assert f'leadership_leader{{backend="etcd",key="{key}"}} 1.0' in text
            leader.send(signal.SIGTERM)
            follower.wait_for("started")
            assert fetched(second, "/leader")[0] == 200


def test_run_refuses_a_health_address_before_anything_is_sent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ended = leadership_here(
        capfd,
        *("run", "--store", "etcd://127.0.0.1:1", "--key", "k", "--id", "a"),
        *("--health", "nowhere", "--", "true"),
    )
    assert ended.returncode == 2
    assert "give host:port" in ended.stderr
