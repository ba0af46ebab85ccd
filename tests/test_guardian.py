"""The guardian of a candidate, in programs of their own: what it does at a death, and what not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leadership import Candidate, new_store
from leadership.backend import Contender
from leadership.backends.memory import MemoryBackend
from leadership.clock import SystemClock
from leadership.errors import NotSupported
from leadership.events import Event, Unguarded
from leadership.guardian import Guardian, guardian

from .candidate_process import CandidateProcess
from .conftest import MakeEtcd
from .etcd_elections import told
from .guarded import (
    READY,
    ConsulContest,
    Contest,
    EtcdContest,
    PeersContest,
    ZooKeeperContest,
    is_running,
)
from .leaks import footprint, no_more
from .programs import python
from .servers.etcd import ROOT
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")

CLOCK = SystemClock()

MakeContest = Callable[[float], Contest]

BACKENDS = [
    pytest.param(name, marks=pytest.mark.backend(name))
    for name in ("etcd", "consul", "zookeeper", "peers")
]


@pytest.fixture
def contest_on(request: pytest.FixtureRequest) -> Iterator[Callable[[str, float], Contest]]:
    """Makes a contest on a backend, with that ttl."""
    with contextlib.ExitStack() as contests:

        def make(backend: str, ttl: float) -> Contest:
            if backend == "peers":
                return contests.enter_context(PeersContest(ttl))
            server = request.getfixturevalue(backend)
            kinds: dict[str, Callable[..., Contest]] = {
                "etcd": EtcdContest,
                "consul": ConsulContest,
                "zookeeper": ZooKeeperContest,
            }
            return contests.enter_context(kinds[backend](server, ttl, size=2))

        yield make


@pytest.fixture
def contest(etcd: EtcdClient) -> Iterator[Contest]:
    """On etcd, with a ttl that nobody waits for."""
    with EtcdContest(etcd, 60, size=2) as made:
        yield made


@pytest.mark.parametrize("backend", BACKENDS)
def test_when_the_leader_is_killed_the_next_one_does_not_wait_for_the_ttl(
    contest_on: Callable[[str, float], Contest], backend: str
) -> None:
    ttl = 4.0 if backend == "peers" else 60.0
    contest = contest_on(backend, ttl)
    leader, others = contest.start_all()
    pid = leader.guardian()
    at = leader.kill()
    _, led_at = contest.next_leader(others)
    assert led_at - at < min(5.0, ttl / 2)
    wait_until(lambda: not is_running(pid), what="the guardian's own end")


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("etcd", marks=pytest.mark.backend("etcd")),
        *(
            pytest.param(name, marks=[pytest.mark.backend(name), pytest.mark.long])
            for name in ("consul", "zookeeper", "peers")
        ),
    ],
)
def test_with_the_guardian_killed_too_the_ttl_holds(
    contest_on: Callable[[str, float], Contest], backend: str
) -> None:
    ttl = 2.0
    contest = contest_on(backend, ttl)
    leader, others = contest.start_all()
    pid = leader.guardian()
    # Or it would have started another.
    leader.sleep()
    os.kill(pid, signal.SIGKILL)
    at = leader.kill()
    _, led_at = contest.next_leader(others)
    assert ttl / 3 < led_at - at < 2 * ttl + 2


def test_a_killed_guardian_is_started_again_and_knows_all(contest: Contest) -> None:
    leader, others = contest.start_all()
    first = leader.guardian()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_running(first), what="its end")
    second = wait_until(lambda: another_guardian(leader, first), READY, "another guardian")
    assert is_running(second)
    at = leader.kill()
    _, led_at = contest.next_leader(others)
    assert led_at - at < 10


def another_guardian(leader: CandidateProcess, former: int) -> int | None:
    leader.order("guardian")
    pid = leader.wait("guardian")["pid"]
    return None if pid in (None, former) else int(pid)


def test_a_leader_that_stands_still_is_not_released(etcd: EtcdClient) -> None:
    with EtcdContest(etcd, 3, size=2) as contest:
        leader, others = contest.start_all()
        pid = leader.guardian()
        leader.sleep()
        stopped_at = CLOCK.now()
        _, led_at = contest.next_leader(others)
        # It was renewed a third of the ttl before at the earliest.
        assert led_at - stopped_at > 3 * 0.6
        assert is_running(pid)


def test_a_forked_child_may_go_on_with_the_work_so_nothing_is_released_before_its_end(
    etcd: EtcdClient,
) -> None:
    with EtcdContest(etcd, 60, size=2) as contest, EtcdContest(etcd, 60) as yardstick:
        leader, others = contest.start_all()
        leader.order("fork")
        child = leader.wait("forked")["pid"]
        other_leader, other_others = yardstick.start_all()
        leader.kill()
        # Twice as long as this takes without a child, and it is begun later.
        for _ in range(2):
            other_leader.kill()
            other_leader, _ = yardstick.next_leader(other_others)
            other_others.remove(other_leader)
            other_leader.guardian()
        before = CLOCK.now()
        assert not any(each.leads() for each in others)
        os.kill(child, signal.SIGKILL)
        _, led_at = contest.next_leader(others)
        assert led_at > before


def test_code_that_closes_all_descriptors_is_no_death(contest: Contest) -> None:
    """As daemonizing code does: the leader leads on, and gets another guardian."""
    leader, others = contest.start_all()
    first = leader.guardian()
    leader.order("close-descriptors")
    leader.wait("closed-descriptors")
    wait_until(lambda: another_guardian(leader, first), READY, "another guardian")
    assert not is_running(first)
    leader.order("check")
    assert leader.wait("checked")["leader"] is True
    assert not any(each.leads() for each in others)
    at = leader.kill()
    _, led_at = contest.next_leader(others)
    assert led_at - at < 10


def test_a_terminals_or_supervisors_signals_to_all_do_not_end_it(contest: Contest) -> None:
    leader, others = contest.start_all()
    pid = leader.guardian()
    assert os.getsid(pid) == pid != os.getsid(leader.process.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(pid, number)
    at = leader.kill()
    _, led_at = contest.next_leader(others)
    assert led_at - at < 10


def test_it_ends_with_its_use(etcd: EtcdClient) -> None:
    def cycle() -> None:
        with new_store(etcd.url) as store:
            with Candidate(store, "guardian/use", "a", guardian=True).campaign(READY):
                assert guardian().wait_ready(READY)
                pids.append(guardian().process_id)

    pids: list[int | None] = []
    for _ in range(3):
        cycle()
    held = footprint()
    for _ in range(7):
        cycle()
    # gRPC closes its own a little later.
    wait_until(lambda: no_more(footprint(), held), what=f"no more than {held}")
    assert None not in pids
    assert not any(is_running(pid) for pid in pids if pid is not None)


def test_who_has_left_does_not_wait_for_another_who_comes_meanwhile() -> None:
    """The guardian ends for the one, and is started again for the other."""
    own = Guardian()
    former = own.use(lambda reason: None)
    assert own.wait_ready(READY)
    gone = own.leave(former)
    # Whoever gives up to wait ends nothing that others wait for.
    assert not gone.cancel()
    later = own.use(lambda reason: None)
    try:
        gone.result(READY)
    finally:
        ended = own.leave(later)
    ended.result(READY)
    assert own.process_id is None


def test_a_program_that_ends_in_good_order_leaves_no_guardian(etcd: EtcdClient) -> None:
    printed = python(
        f"""
    from leadership import Candidate, new_store
    from leadership.guardian import Guardian, guardian
    store = new_store({etcd.url!r})
    term = Candidate(store, "guardian/end", "a", guardian=True).campaign(30)
    assert guardian().wait_ready(30)
    print(guardian().process_id)
    """
    )
    pid = int(printed)
    wait_until(lambda: not is_running(pid), what="the guardian's end")


def test_no_secret_is_in_its_arguments_or_environment(make_etcd: MakeEtcd) -> None:
    """And with a token that has grown too old it logs in by itself."""
    server = make_etcd(auth=True, auth_token_ttl=1)
    url = f"etcd://{ROOT.name}:{ROOT.password}@{server.endpoint}"
    with Contest([url] * 2, 60) as contest:
        leader = contest.start(0, LEADERSHIP_STORE=url)
        leader.wait("standing", READY, leader=True)
        other = contest.start(1)
        other.wait("standing", READY, leader=False)
        pid = leader.guardian()
        for name in ("cmdline", "environ"):
            assert ROOT.password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        at = leader.kill()
        _, led_at = contest.next_leader([other])
        assert led_at - at < 10


def test_it_releases_over_tls_with_the_leaders_certificate(make_etcd: MakeEtcd) -> None:
    server = make_etcd(client_certificates=True)
    paths = server.certificates
    assert paths is not None
    url = f"{server.url}?ca={paths.authority}&cert={paths.client}&key={paths.client_key}"
    with Contest([url] * 2, 60) as contest:
        leader = contest.start(0)
        leader.wait("standing", READY, leader=True)
        other = contest.start(1)
        other.wait("standing", READY, leader=False)
        leader.guardian()
        at = leader.kill()
        _, led_at = contest.next_leader([other])
        assert led_at - at < 10


def test_it_loads_little() -> None:
    """What it does not import it does not hold, and needs no time for."""
    program = (
        "import sys, types\n"
        "package = types.ModuleType('leadership')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['leadership'] = package\n"
        "import leadership._guardian\n"
        "heavy = {'asyncio', 'ssl', 'http', 'json', 'logging', 'subprocess', 'threading',"
        " 'typing', 'dataclasses', 'inspect', 'pathlib', 'ctypes', 'msgspec', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    folder = str(Path(__file__).parent.parent / "leadership")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, folder],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['typing']\n"


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.backend(name))
        for name in ("etcd", "consul", "zookeeper")
    ],
)
def test_who_wants_no_guardian_shares_no_session_that_one_ends(
    request: pytest.FixtureRequest, backend: str
) -> None:
    """The default is none, and such a leader's work may go on outside of its process."""

    def session_of(candidate: Candidate) -> object:
        assert candidate._candidacy is not None
        contender: Any = candidate._candidacy._contender
        return contender._session

    with new_store(request.getfixturevalue(backend).url) as store:
        keys = [f"guardian/{uuid.uuid4().hex}" for _ in range(3)]
        candidates = [
            Candidate(store, key, "a", 60, guardian=guarded)
            for key, guarded in zip(keys, (True, False, True), strict=True)
        ]
        for each in candidates:
            each.campaign(READY)
        first, second, third = map(session_of, candidates)
        assert first is third
        assert first is not second


@pytest.mark.backend("memory")
def test_a_program_without_input_and_output_has_a_guardian_too(tmp_path: Path) -> None:
    """Its end of the channel then gets a number that is another's in the guardian."""
    found = tmp_path / "found"
    python(
        f"""
    import os
    from leadership.guardian import guardian
    os.closerange(0, 3)
    use = guardian().use(lambda reason: None)
    ready = guardian().wait_ready(30)
    guardian().leave(use)
    with open({str(found)!r}, "w") as file:
        print(ready, file=file)
    """
    )
    assert found.read_text() == "True\n"


@pytest.mark.backend("memory")
class TestWithout:
    """Where there can be none, that is said once, and the ttl holds."""

    def test_a_system_without_pidfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr("leadership.guardian._guardian", None)
        self.check("pidfd")

    def test_a_backend_or_settings_that_it_cannot_serve(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(*arguments: object) -> Contender:
            raise NotSupported("these settings cannot be served")

        monkeypatch.setattr(MemoryBackend, "guarded_contender", refuses)
        self.check("cannot be served")

    def test_an_interpreter_that_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("leadership.guardian._guardian", None)
        monkeypatch.setattr("leadership.guardian.sys.executable", "/bin/false")
        self.check("cannot be started")

    def test_where_no_thread_can_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start = threading.Thread.start

        def starting(thread: threading.Thread) -> None:
            if thread.name == "leadership-guardian":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr("leadership.guardian._guardian", None)
        monkeypatch.setattr(threading.Thread, "start", starting)
        self.check("no thread")

    def test_where_no_process_can_be_started_it_is_tried_until_one_can(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Guardian] = []
        popen = subprocess.Popen

        def refuse(*arguments: object, **options: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr("leadership.guardian._guardian", None)
        monkeypatch.setattr("leadership.guardian._LONGEST_PAUSE", 0.2)
        monkeypatch.setattr("leadership.guardian.subprocess.Popen", refuse)

        def when_there_is_room_again() -> None:
            monkeypatch.setattr("leadership.guardian.subprocess.Popen", popen)
            made.append(guardian())
            assert guardian().wait_ready(READY)

        self.check("temporarily unavailable", when_there_is_room_again)
        assert made[0].unable is None

    def check(self, reason: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        events: list[Event] = []
        with new_store("memory://unguarded", hooks=[events.append]) as store:
            for key in ("a", "b"):
                with Candidate(store, key, "a", guardian=True).campaign(READY) as term:
                    assert term.is_valid()
                    wait_until(lambda: told(events, Unguarded), READY, "why there is none")
                    meanwhile()
        (only,) = told(events, Unguarded)
        assert reason in only.reason
