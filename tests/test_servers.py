"""The servers and the relay that the other tests stand on do what they say."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.conftest import MakeEtcd
from tests.leaks import footprint
from tests.servers.etcd import LIMITED, ROOT, EtcdCluster, EtcdServer
from tests.servers.etcd_client import EtcdClient, EtcdctlError, User
from tests.servers.fault_proxy import Fate, FaultProxy, Mode
from tests.servers.ports import LOOPBACK, PortTakenError
from tests.servers.process import ServerDiedError
from tests.servers.programs import CHECKOUT
from tests.waiting import NotInTimeError, wait_until

RUN_ETCD = (sys.executable, "-m", "tests.servers.run", "etcd", "--")

WRONG = User(ROOT.name, "wrong-password")


def process_state(pid: int) -> str:
    """One letter, as ps tells it: T for stopped, Z for a zombie; or ``gone``."""
    if not Path("/proc/self/stat").exists():
        asked = ["ps", "-o", "state=", "-p", str(pid)]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        return told.strip()[:1] or "gone"
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def answers_tls(port: int, context: ssl.SSLContext) -> bool:
    # How a refusal shows, as an alert, a reset or an end, is up to who is first.
    try:
        with (
            socket.create_connection((LOOPBACK, port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=LOOPBACK) as connection,
        ):
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.")
    except OSError:
        return False


# --- etcd --------------------------------------------------------------------------------


def test_a_started_server_takes_writes_and_counts_requests(etcd: EtcdClient) -> None:
    before = etcd.requests("Put")
    assert etcd.ctl("put", "test_servers/key", "value") == "OK\n"
    assert etcd.ctl("get", "--print-value-only", "test_servers/key") == "value\n"
    assert etcd.requests("Put") == before + 1
    assert etcd.ctl("del", "test_servers/key") == "1\n"


def test_a_lease_may_live_one_second(etcd: EtcdClient) -> None:
    assert "granted with TTL(1s)" in etcd.ctl("lease", "grant", "1")


def test_a_lease_lives_two_seconds_at_least_with_default_timing(make_etcd: MakeEtcd) -> None:
    assert "granted with TTL(2s)" in make_etcd(fast=False).ctl("lease", "grant", "1")


def test_etcdctl_elect_leads_while_it_runs(etcd: EtcdClient) -> None:
    with etcd.popen_ctl("elect", "test_servers/election", "me") as electing:
        assert electing.stdout is not None
        key = electing.stdout.readline().strip()
        assert key.startswith("test_servers/election/")
        assert electing.stdout.readline() == "me\n"
        electing.send_signal(signal.SIGINT)
        electing.communicate(timeout=10)
    assert etcd.ctl("get", "--prefix", "test_servers/election") == ""


def test_a_killed_server_is_gone_and_comes_back_with_its_data(etcd_server: EtcdServer) -> None:
    etcd_server.ctl("put", "key", "value")
    address, pid = etcd_server.url, etcd_server.pid
    etcd_server.kill()
    assert not etcd_server.is_running
    assert process_state(pid) == "gone"
    etcd_server.start()
    assert etcd_server.url == address
    assert etcd_server.ctl("get", "--print-value-only", "key") == "value\n"


def test_a_restarted_server_keeps_its_data(etcd_server: EtcdServer) -> None:
    etcd_server.ctl("put", "key", "value")
    etcd_server.restart()
    assert etcd_server.ctl("get", "--print-value-only", "key") == "value\n"


def test_a_paused_server_answers_only_when_resumed(etcd_server: EtcdServer) -> None:
    etcd_server.pause()
    wait_until(lambda: process_state(etcd_server.pid) == "T", what="the server stopped")
    with pytest.raises(EtcdctlError, match="deadline exceeded"):
        etcd_server.ctl("--command-timeout=200ms", "put", "key", "value")
    etcd_server.resume()
    assert etcd_server.ctl("put", "key", "value") == "OK\n"


def test_a_stopped_server_leaves_no_file_and_stops_twice(etcd_server: EtcdServer) -> None:
    assert etcd_server.folder.is_dir()
    etcd_server.stop()
    assert not etcd_server.folder.exists()
    etcd_server.stop()


def test_a_taken_port_is_refused(etcd_server: EtcdServer) -> None:
    etcd_server.kill()
    with socket.create_server((LOOPBACK, etcd_server.client_port)):
        with pytest.raises(PortTakenError, match=str(etcd_server.client_port)):
            etcd_server.start()
        assert not etcd_server.is_running


@pytest.mark.usefixtures("make_etcd")
def test_a_server_that_cannot_start_is_reported_with_its_log() -> None:
    server = EtcdServer()
    server.initial_cluster = "nobody=http://127.0.0.1:1"
    with pytest.raises(ServerDiedError, match="couldn't find local name"), server:
        pass
    assert not server.folder.exists()


@pytest.mark.usefixtures("make_etcd")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    starting = textwrap.dedent(
        """
        from tests.servers.etcd import EtcdServer
        server = EtcdServer()
        server.start()
        print(server.pid, flush=True)
        input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", starting],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert process_state(pid) in "RSD"
        parent.kill()
        parent.wait()
    wait_until(lambda: process_state(pid) in ("gone", "Z"), what="the orphaned server's end")


def test_tls_is_asked_for(make_etcd: MakeEtcd) -> None:
    server = make_etcd(tls=True)
    assert server.ctl("put", "key", "value") == "OK\n"
    plain = EtcdClient(server.endpoints, "")
    with pytest.raises(EtcdctlError):
        plain.ctl("--command-timeout=500ms", "put", "key", "value")


def test_client_certificates_are_asked_for(make_etcd: MakeEtcd) -> None:
    server = make_etcd(client_certificates=True)
    assert server.ctl("put", "key", "value") == "OK\n"
    assert server.certificates is not None
    context = ssl.create_default_context(cafile=str(server.certificates.authority))
    assert not answers_tls(server.client_port, context)
    context.load_cert_chain(server.certificates.client, server.certificates.client_key)
    assert answers_tls(server.client_port, context)


def test_auth_lets_each_user_do_what_they_may(make_etcd: MakeEtcd) -> None:
    server = make_etcd(auth=True, auth_token_ttl=5)
    assert server.ctl("put", "elsewhere", "value") == "OK\n"
    assert server.ctl("put", "limited/key", "value", user=LIMITED) == "OK\n"
    with pytest.raises(EtcdctlError, match="permission denied"):
        server.ctl("put", "elsewhere", "value", user=LIMITED)
    with pytest.raises(EtcdctlError, match="invalid user ID or password"):
        server.ctl("put", "elsewhere", "value", user=WRONG)
    server.restart()
    assert server.ctl("put", "elsewhere", "value") == "OK\n"


def test_a_cluster_survives_its_leader(etcd_cluster: EtcdCluster) -> None:
    first = etcd_cluster.leader()
    etcd_cluster.ctl("put", "key", "value")
    first.kill()
    second = etcd_cluster.leader()
    assert second is not first
    assert etcd_cluster.followers() == [
        member for member in etcd_cluster.members if member not in (first, second)
    ]
    assert second.ctl("get", "--print-value-only", "key") == "value\n"
    first.start()
    assert first.ctl("get", "--print-value-only", "key") == "value\n"


def test_a_cluster_replaces_a_paused_leader(etcd_cluster: EtcdCluster) -> None:
    first = etcd_cluster.leader()
    first.pause()
    assert etcd_cluster.leader() is not first
    first.resume()
    assert etcd_cluster.leader() is not first


# --- the command beside a server ---------------------------------------------------------


def test_run_gives_the_command_a_server_and_returns_its_status() -> None:
    told = "import os, sys; print(sys.argv[1] == os.environ['LEADERSHIP_STORE']); sys.exit(7)"
    done = subprocess.run(
        [*RUN_ETCD, sys.executable, "-c", told, "{url}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "True\n"), done.stderr


def test_run_hands_signals_on() -> None:
    waiting = "import signal; print('up', flush=True); signal.pause()"
    with subprocess.Popen(
        [*RUN_ETCD, sys.executable, "-c", waiting],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 128 + signal.SIGTERM


# --- the relay ---------------------------------------------------------------------------


class Echo:
    """A connection through a relay to a socket that the test holds as well."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.proxy = FaultProxy(self._listener.getsockname()[1])
        self.client, self.server = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((LOOPBACK, self.proxy.port), timeout=10)
        server, _ = self._listener.accept()
        server.settimeout(10)
        return client, server

    def close(self) -> None:
        self.proxy.close()
        for used in (self.client, self.server, self._listener):
            used.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo()) as pair:
        yield pair


def silent(connection: socket.socket) -> bool:
    """Nothing comes for a while: long enough for bytes that nobody holds back."""
    connection.settimeout(0.05)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)


def test_the_relay_passes_both_ways(echo: Echo) -> None:
    echo.client.sendall(b"up")
    assert echo.server.recv(10) == b"up"
    echo.server.sendall(b"down")
    assert echo.client.recv(10) == b"down"


def test_a_stall_holds_both_ways_back_until_it_ends(echo: Echo) -> None:
    echo.proxy.set(Mode.STALL)
    echo.client.sendall(b"up")
    echo.server.sendall(b"down")
    assert silent(echo.server)
    assert silent(echo.client)
    echo.proxy.set(Mode.PASS)
    assert echo.server.recv(10) == b"up"
    assert echo.client.recv(10) == b"down"


def test_a_stall_of_the_way_up_lets_the_way_down_pass(echo: Echo) -> None:
    echo.proxy.set(Mode.UP)
    echo.client.sendall(b"up")
    echo.server.sendall(b"down")
    assert echo.client.recv(10) == b"down"
    assert silent(echo.server)
    echo.proxy.set(Mode.PASS)
    assert echo.server.recv(10) == b"up"


def test_a_stall_of_the_way_down_loses_only_the_reply(echo: Echo) -> None:
    echo.proxy.set(Mode.DOWN)
    echo.client.sendall(b"up")
    assert echo.server.recv(10) == b"up"
    echo.server.sendall(b"down")
    assert silent(echo.client)
    echo.proxy.set(Mode.PASS)
    assert echo.client.recv(10) == b"down"


def test_a_reset_breaks_old_connections_and_new_ones(echo: Echo) -> None:
    echo.proxy.set("reset")
    with pytest.raises(ConnectionResetError):
        echo.client.recv(1)
    # The reset may come as early as during the connect.
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection((LOOPBACK, echo.proxy.port), timeout=10) as late,
    ):
        late.recv(1)
    echo.proxy.set("pass")
    client, server = echo.connect()
    client.sendall(b"again")
    assert server.recv(10) == b"again"
    client.close()
    server.close()


def test_a_delay_hands_bytes_on_later(echo: Echo) -> None:
    echo.proxy.set("delay", 0.1)
    sent = time.monotonic()
    echo.client.sendall(b"up")
    assert echo.server.recv(10) == b"up"
    assert time.monotonic() - sent >= 0.1


def test_a_reply_is_lost_to_the_request_that_was_named_and_to_all_after_it(echo: Echo) -> None:
    echo.proxy.catch(b"create", Fate.ALL_UNANSWERED)
    echo.client.sendall(b"read")
    assert echo.server.recv(10) == b"read"
    echo.server.sendall(b"down")
    assert echo.client.recv(10) == b"down"
    echo.client.sendall(b"create it")
    assert echo.server.recv(10) == b"create it"
    assert echo.proxy.mode is Mode.DOWN
    echo.server.sendall(b"down")
    assert silent(echo.client)
    echo.proxy.set(Mode.PASS)
    assert echo.client.recv(10) == b"down"


def test_a_reply_is_lost_with_its_connection_and_no_other(echo: Echo) -> None:
    other, beyond = echo.connect()
    echo.proxy.catch(re.compile(b"re(new|lease)"), Fate.REPLY_LOST)
    echo.client.sendall(b"renew it")
    assert echo.server.recv(10) == b"renew it"
    assert echo.proxy.has_caught
    echo.server.sendall(b"down")
    with pytest.raises(ConnectionResetError):
        echo.client.recv(10)
    other.sendall(b"renew it")
    assert beyond.recv(10) == b"renew it"
    beyond.sendall(b"down")
    assert other.recv(10) == b"down"
    other.close()
    beyond.close()


def test_a_reply_is_late_on_its_connection_and_no_other(echo: Echo) -> None:
    other, beyond = echo.connect()
    echo.proxy.catch(b"renew", Fate.REPLY_LATE)
    echo.client.sendall(b"renew it")
    assert echo.server.recv(10) == b"renew it"
    echo.server.sendall(b"down")
    assert silent(echo.client)
    beyond.sendall(b"down")
    assert other.recv(10) == b"down"
    echo.proxy.set(Mode.PASS)
    assert echo.client.recv(10) == b"down"
    other.close()
    beyond.close()


def test_a_request_is_late_even_if_its_sender_has_gone(echo: Echo) -> None:
    echo.proxy.catch(b"create", Fate.REQUEST_LATE)
    echo.client.sendall(b"create it")
    assert silent(echo.server)
    assert echo.proxy.has_caught
    echo.client.close()
    assert silent(echo.server)
    echo.proxy.set(Mode.PASS)
    assert echo.server.recv(10) == b"create it"
    assert echo.server.recv(10) == b""


def test_what_is_lost_is_sent_again_later_and_in_order(echo: Echo) -> None:
    echo.proxy.set(Mode.LOSS)
    sent = b"".join(bytes([number]) for number in range(20))
    began = time.monotonic()
    received = b""
    for number in sent:
        echo.client.sendall(bytes([number]))
        received += echo.server.recv(1)
    assert received == sent
    assert time.monotonic() - began >= 0.2


def test_a_relay_cuts_a_client_off_its_server(etcd_server: EtcdServer) -> None:
    with FaultProxy(etcd_server.client_port) as proxy:
        through = EtcdClient([proxy.endpoint], "")
        assert through.ctl("put", "key", "value") == "OK\n"
        proxy.set("stall")
        with pytest.raises(EtcdctlError):
            through.ctl("--command-timeout=200ms", "put", "key", "value")


# --- servers that somebody else runs -------------------------------------------------------


def test_on_a_server_that_others_may_use_tests_run_one_after_the_other() -> None:
    """Some count all that is on a server; where each process has its own, they run together."""
    asked = (sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "worksteal", "-q")
    printed = [
        subprocess.run(
            [*asked, "tests/test_lease.py"],
            cwd=CHECKOUT,
            env={**os.environ, "LEADERSHIP_TEST_ETCD": given},
            capture_output=True,
            text=True,
            timeout=55,
            check=True,
        ).stdout
        for given in ("", "127.0.0.1:2379")
    ]
    assert ["bringing up nodes" in each for each in printed] == [True, False]


def test_the_composed_stores_are_where_the_tests_look_for_them() -> None:
    composed = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    script = (CHECKOUT / "tests" / "servers" / "with_servers.sh").read_text()
    readme = (CHECKOUT / "README.md").read_text()
    assert set(composed) == {"etcd", "consul", "zookeeper"}
    for name, service in composed.items():
        (published,) = service["ports"]
        address = published.rpartition(":")[0]
        assert f"LEADERSHIP_TEST_{name.upper()}:-{address}}}" in script
        assert f"LEADERSHIP_TEST_{name.upper()}={address}" in readme
        # Else `up --wait` returns before they answer, or another day's image is tested.
        assert service["healthcheck"]["test"]
        assert re.search(r":v?\d+\.\d+", service["image"])


# --- what the tests count with -----------------------------------------------------------


def test_a_relay_leaves_nothing_behind() -> None:
    def cycle() -> None:
        with closing(Echo()) as echo:
            echo.proxy.set("stall")
            echo.client.sendall(b"up")

    cycle()
    before = footprint()
    for _ in range(20):
        cycle()
    assert footprint() == before


def test_the_footprint_sees_a_socket() -> None:
    before = footprint()
    with socket.socket():
        assert footprint() != before
    assert footprint() == before


def test_waiting_ends_at_the_deadline_and_says_for_what() -> None:
    with pytest.raises(
        NotInTimeError, match=r"not within 0\.01 s: the impossible \(last seen: 0\)"
    ):
        wait_until(lambda: 0, 0.01, "the impossible")


def test_waiting_returns_what_was_waited_for() -> None:
    answers = iter([None, "", "found"])
    assert wait_until(lambda: next(answers)) == "found"
