"""The guardian's own rules, in this process: a leader that is another, and a clock that is ours."""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from leadership._guardian import QUICK_ROUNDS, Channel, Guardian
from leadership.backends import _etcd_release, _peers_release, _zookeeper_release
from leadership.backends._peers_code import code, digest
from leadership.clock import SystemClock
from leadership.store import Store

from .conftest import MakeEtcd
from .etcd_elections import leases
from .servers.etcd import ROOT
from .servers.etcd_client import EtcdClient
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until

CLOCK = SystemClock()

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")


def write(arguments: Mapping[str, Any]) -> None:
    """A release: writes down that it was done."""
    with open(arguments["path"], "a") as file:
        file.write("released\n")


def fail(arguments: Mapping[str, Any]) -> None:
    write(arguments)
    raise OSError("for the test")


class Clock:
    """Goes on a second with each look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Survivor:
    """Work that nothing ends."""

    pid = 0
    gone = False

    def __init__(self) -> None:
        self.kills = 0

    def kill(self) -> bool:
        self.kills += 1
        return True

    def signal(self, number: int) -> bool:
        return self.kill()

    def reap(self) -> int | None:
        return None

    def close(self) -> None: ...


class Rig:
    """A guardian on a thread, and the leader: another process, and our end of the channel."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "released"
        self.leader = subprocess.Popen(["sleep", "60"])
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(theirs)
        self._pidfd = os.pidfd_open(self.leader.pid)
        self.guardian = Guardian(self.channel, self._pidfd, Clock())
        self._theirs = theirs
        self._thread = threading.Thread(target=self.guardian.run, daemon=True)

    def plan(self, release: Callable[[Mapping[str, Any]], None]) -> None:
        plan = (release.__module__, __file__, release.__name__, {"path": str(self.path)})
        self.end.send(marshal.dumps(("guard", 1, 5.0, marshal.dumps(plan))))

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self.guardian._plans, what="the plan to be known")

    def kill_leader(self) -> None:
        self.leader.kill()
        self.leader.wait()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def finish(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def released(self) -> int:
        return len(self.path.read_text().split()) if self.path.exists() else 0

    def close(self) -> None:
        self.kill_leader()
        self.end.close()
        if self._thread.ident is not None:
            self._thread.join(20)
        self._theirs.close()
        os.close(self._pidfd)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_a_death_releases_what_was_planned(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    rig.end.close()
    rig.kill_leader()
    rig.finish()
    assert rig.released() == 1


def test_an_end_of_file_with_a_living_leader_is_no_death(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    rig.end.close()
    wait_until(lambda: rig.channel.ended, what="the end of file to be seen")
    assert rig.is_running()
    assert rig.released() == 0
    rig.kill_leader()
    rig.finish()
    assert rig.released() == 1


def test_a_command_whose_time_is_over_when_it_is_asked_for_never_runs(rig: Rig) -> None:
    ran = rig.path.with_name("ran")
    order = os.memfd_create("order")
    content: Any = (
        b"/usr/bin/touch",
        [b"touch", os.fsencode(ran)],
        {},
        (),
        "leadership-test",
    )
    os.write(order, marshal.dumps(content))
    folder = os.open(".", os.O_PATH)
    # The guardian's clock is past that already: it, or who asked, has stood still.
    socket.send_fds(rig.end, [marshal.dumps(("start", 900.0))], [order, folder])
    rig.plan(write)
    rig.start()
    assert marshal.loads(rig.end.recv(1000)) == ("ready",)
    assert marshal.loads(rig.end.recv(1000)) == ("late",)
    assert rig.guardian._work is None
    assert not ran.exists()
    os.close(order)
    os.close(folder)


def test_if_anything_of_the_command_survives_nothing_is_released(rig: Rig) -> None:
    work: Any = Survivor()
    rig.guardian._work = work
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    rig.guardian._wake = reading
    rig.plan(write)
    rig.start()
    rig.end.close()
    rig.kill_leader()
    rig.finish()
    assert work.kills > 1
    assert rig.released() == 0
    os.close(reading)
    os.close(writing)


def test_what_was_forked_while_it_was_killed_is_killed_next(rig: Rig) -> None:
    """Long before its time is over: whoever asks for it waits for the end of all."""
    work: Any = Survivor()
    rig.guardian._work, rig.guardian._until = work, float("inf")
    rig.plan(write)
    rig.start()
    rig.end.send(marshal.dumps(("signal", int(signal.SIGKILL), 1)))
    wait_until(lambda: work.kills > 5, what="further rounds")
    rig.guardian._work = None
    rig.end.send(marshal.dumps(("end",)))
    rig.finish()


def test_what_cannot_be_ended_does_not_keep_a_processor_busy(rig: Rig) -> None:
    work: Any = Survivor()
    rig.guardian._work, rig.guardian._until = work, 0.0
    rig.plan(write)
    at = CLOCK.now()
    rig.start()
    wait_until(lambda: work.kills > 40, what="it to be tried again and again")
    assert CLOCK.now() - at > 40 * 0.004
    rig.guardian._work = None
    rig.end.send(marshal.dumps(("end",)))
    rig.finish()


def test_an_end_that_is_told_after_it_was_seen_does_not_keep_a_processor_busy(rig: Rig) -> None:
    """Of two that end at the same time one may be reaped with the other, and told later."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    rig.guardian._wake = reading
    rig.plan(write)
    rig.start()
    os.write(writing, b"\0")
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    wait_until(lambda: poll.poll(0) == [], what="it to be taken note of")
    rig.end.send(marshal.dumps(("end",)))
    rig.finish()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("leader_lives", [True, False])
def test_what_survives_many_rounds_is_killed_less_often(rig: Rig, leader_lives: bool) -> None:
    """There may be many of them, and each round looks at all."""
    work: Any = Survivor()
    rig.guardian._clock = CLOCK.now
    rig.guardian._work, rig.guardian._until = work, 0.0 if leader_lives else float("inf")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    rig.guardian._wake = reading
    rig.plan(write)
    rig.start()
    if not leader_lives:
        rig.kill_leader()
    wait_until(lambda: work.kills > QUICK_ROUNDS, what="many rounds")
    at, kills = CLOCK.now(), work.kills
    wait_until(lambda: work.kills >= kills + 5, what="further rounds")
    assert CLOCK.now() - at > 4 * 0.04
    work.gone = True
    if leader_lives:
        rig.end.send(marshal.dumps(("end",)))
    else:
        rig.end.close()
    rig.finish()
    os.close(reading)
    os.close(writing)


def test_while_another_process_holds_the_leaders_end_nothing_is_released(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    rig.kill_leader()
    # By the clock of this test more than the ttl has passed.
    rig.finish()
    assert rig.released() == 0


def test_what_was_released_in_good_order_is_forgotten(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    rig.end.send(marshal.dumps(("forget", 1)))
    rig.end.close()
    rig.kill_leader()
    rig.finish()
    assert rig.released() == 0


def test_a_release_that_fails_is_tried_until_it_has_lapsed(rig: Rig) -> None:
    rig.plan(fail)
    rig.start()
    rig.end.close()
    rig.kill_leader()
    rig.finish()
    assert rig.released() > 1


def test_one_that_is_dismissed_goes_without_a_release(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    rig.end.send(marshal.dumps(("end",)))
    rig.finish()
    assert rig.released() == 0


def test_a_plan_that_cannot_be_had_is_told_and_the_former_one_is_void(rig: Rig) -> None:
    rig.plan(write)
    rig.start()
    nowhere = marshal.dumps(("no_such_module", "/nowhere.py", "release", {}))
    rig.end.send(marshal.dumps(("guard", 1, 5.0, nowhere)))
    assert marshal.loads(rig.end.recv(65536)) == ("ready",)
    told = marshal.loads(rig.end.recv(65536))
    assert told[0] == "cannot"
    assert "FileNotFoundError" in told[1]
    rig.end.close()
    rig.kill_leader()
    rig.finish()
    assert rig.released() == 0


class TestEtcd:
    """The release by itself."""

    def test_a_lease_that_is_gone_needs_no_more(self, etcd: EtcdClient) -> None:
        _etcd_release.release(etcd_arguments(etcd, 123))

    def test_what_hangs_on_the_lease_goes_with_it(
        self, etcd: EtcdClient, store: Store, key: str
    ) -> None:
        before = leases(etcd)
        store.put(key, b"value", ttl=60)
        (lease,) = leases(etcd) - before
        nobody = f"127.0.0.1:{_unused_port()}"
        arguments = etcd_arguments(etcd, int(lease, 16))
        arguments["endpoints"] = [nobody, *arguments["endpoints"]]
        _etcd_release.release(arguments)
        assert store.get(key) is None

    def test_with_a_token_that_is_too_old_it_logs_in(self, make_etcd: MakeEtcd) -> None:
        server = make_etcd(auth=True)
        lease = int(server.ctl("lease", "grant", "60").split()[1], 16)
        server.ctl("put", "key", "value", f"--lease={lease:x}")
        for token in ("old.token", ""):
            arguments = etcd_arguments(server, lease)
            arguments |= {"token": token, "login": (ROOT.name, ROOT.password)}
            _etcd_release.release(arguments)
        assert f"{lease:x}" not in server.ctl("lease", "list")

    def test_a_login_where_nobody_has_to_does_no_harm(self, etcd: EtcdClient) -> None:
        _etcd_release.release({**etcd_arguments(etcd, 123), "login": ("nobody", "needed")})

    def test_a_refusal_is_no_release(self, make_etcd: MakeEtcd) -> None:
        server = make_etcd(auth=True)
        lease = int(server.ctl("lease", "grant", "60").split()[1], 16)
        # Of a lease on which nothing hangs anybody may dispose.
        server.ctl("put", "key", "value", f"--lease={lease:x}")
        with pytest.raises(OSError, match="does not revoke"):
            _etcd_release.release({**etcd_arguments(server, lease), "login": (ROOT.name, "wrong")})
        assert f"{lease:x}" in server.ctl("lease", "list")


def etcd_arguments(etcd: EtcdClient, lease: int) -> dict[str, Any]:
    return {
        "endpoints": list(etcd.endpoints),
        "lease": lease,
        "tls": None,
        "token": "",
        "login": None,
    }


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_zookeeper_session_that_has_expired_needs_no_more(zookeeper: ZooKeeperClient) -> None:
    _zookeeper_release.release(
        {
            "endpoints": list(zookeeper.endpoints),
            "tls": None,
            "session": 123,
            "password": bytes(16),
            "timeout": 4.0,
        }
    )


class Member:
    """A node that answers as it is told to, one request after the other."""

    def __init__(self, *answers: str) -> None:
        self.asked: list[bytes] = []
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._socket.accept()
            with connection:
                self.asked.append(connection.recv(65536))
                connection.sendall(answer.encode())

    def close(self) -> None:
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive(), "it was asked less often than it should"


DONE = "HTTP/1.0 200 OK\r\n\r\n[]"
DROPPED = ""
RESTARTED = "HTTP/1.0 409 Conflict\r\nLeadership-From-Incarnation: 77\r\n\r\n[]"


class TestPeers:
    """What is told to nodes that do not answer as they should."""

    SECRET = b"for the tests only"

    def arguments(self, *members: Member) -> dict[str, Any]:
        return {
            "fields": {"Wire": "1", "From": "dead:1", "From-Incarnation": "5"},
            "secret": self.SECRET,
            "path": "/leadership/messages",
            "members": [
                {"address": each.address, "incarnation": "6", "body": each.address.encode()}
                for each in members
            ],
            "tls": None,
            "timeout": 20.0,
        }

    def test_one_that_was_not_told_is_told_again_and_nobody_else(self) -> None:
        """Its promise to the dead may be the one that the next leader lacks."""
        first, second = Member(DONE), Member(DROPPED, DONE)
        arguments = self.arguments(first, second)
        with pytest.raises(OSError, match="HTTP"):
            _peers_release.release(arguments)
        _peers_release.release(arguments)
        first.close()
        second.close()
        assert (len(first.asked), len(second.asked)) == (1, 2)

    def test_one_that_was_restarted_is_told_by_the_name_of_its_new_run(self) -> None:
        member = Member(RESTARTED, DONE)
        _peers_release.release(self.arguments(member))
        member.close()
        runs = [field(asked, "To-Incarnation") for asked in member.asked]
        assert runs == ["6", "77"]
        first, second = (int(field(asked, "Number")) for asked in member.asked)
        assert first < second

    def test_what_it_says_is_sealed(self) -> None:
        member = Member(DONE)
        _peers_release.release(self.arguments(member))
        member.close()
        (asked,) = member.asked
        names = ("Wire", "From", "From-Incarnation", "To", "To-Incarnation", "Number", "Digest")
        fields = {name: field(asked, name) for name in names}
        assert fields["Digest"] == digest(member.address.encode())
        assert field(asked, "Seal") == code(self.SECRET, fields, "/leadership/messages")


def field(request: bytes, name: str) -> str:
    lines = request.decode().split("\r\n")
    return next(line.partition(": ")[2] for line in lines if line.startswith(f"Leadership-{name}:"))
