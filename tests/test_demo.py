"""The demo, as a process, on a real etcd: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leadership import new_store
from leadership.demo import Demo
from leadership.errors import ConfigurationError

from .command import PATIENCE, PROGRAM, Command, environment
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy, Mode
from .waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

TTL = 1
AFTER_KILL = re.compile(r"hand-over after SIGKILL: (\w) leads (\d+\.\d\d) s later")
AFTER_RESIGN = re.compile(r"hand-over after resign: (\w) leads (\d+\.\d) ms later")


def candidates(key: str) -> list[str]:
    """The candidates' processes of one demo that run now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if f"-m leadership.demo {key}" in line:
                found.append(line)
    return found


def demo(etcd: EtcdClient) -> Command:
    return Command("demo", "--store", etcd.url, "--ttl", str(TTL))


def key_of(command: Command) -> str:
    found = re.search(r"leadership-demo/\w+", command.line())
    assert found is not None
    return found[0]


def assert_nothing_is_left(etcd: EtcdClient, key: str) -> None:
    assert etcd.ctl("get", "--prefix", "--keys-only", key) == ""
    assert candidates(key) == []


def test_it_times_both_hand_overs_and_cleans_up(etcd: EtcdClient) -> None:
    with demo(etcd) as command:
        key = key_of(command)
        assert command.status() == 0
        assert command.errors() == []
        shown = "\n".join(command.lines())
    after_kill, after_resign = AFTER_KILL.search(shown), AFTER_RESIGN.search(shown)
    assert after_kill is not None
    assert after_resign is not None
    # The ttl counts from the last renewal, a third of it before; and etcd looks twice a second.
    assert TTL / 2 < float(after_kill[2]) < TTL + 5
    assert float(after_resign[2]) < 2000
    tokens = [int(token) for token in re.findall(r"leads, token (\d+)", shown)]
    assert len(tokens) == 3
    assert tokens == sorted(set(tokens))
    leaders = re.findall(r"(\w) \(process \d+\) leads", shown)
    assert leaders[1:] == [after_kill[1], after_resign[1]]
    assert len(set(leaders)) == 3
    assert re.search(rf"{leaders[0]} \(process \d+\) ended by signal 9", shown)
    assert_nothing_is_left(etcd, key)


def test_on_a_terminal_it_shows_a_table(etcd: EtcdClient) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "demo", "--store", etcd.url, "--ttl", str(TTL)],
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm", COLUMNS="100"),
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            shown += os.read(ours, 65536)
    except OSError:
        # Linux says so when the last process has closed its end.
        pass
    finally:
        os.close(ours)
    assert process.wait(PATIENCE) == 0
    text = shown.decode()
    assert "standing" in text
    assert AFTER_KILL.search(text)
    assert AFTER_RESIGN.search(text)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing(
    etcd: EtcdClient, number: signal.Signals, status: int
) -> None:
    with demo(etcd) as command:
        key = key_of(command)
        wait_until(lambda: "leads" in command.line(), what="a leader")
        if number == signal.SIGINT:
            command.press(number)
        else:
            command.send(number)
        assert command.status() == status
        assert_nothing_is_left(etcd, key)
        assert command.errors() == []


@pytest.mark.backend("peers")
def test_with_no_server_at_all_it_shows_the_same() -> None:
    with Command("demo", "--ttl", str(TTL)) as command:
        key = key_of(command)
        told = "\n".join(command.lines())
        assert command.status() == 0
    assert AFTER_KILL.search(told)
    assert AFTER_RESIGN.search(told)
    assert candidates(key) == []


def test_killed_it_leaves_nothing_either(etcd: EtcdClient) -> None:
    with demo(etcd) as command:
        key = key_of(command)
        wait_until(lambda: "leads" in command.line(), what="a leader")
        command.send(signal.SIGKILL)
        command.status()
        wait_until(lambda: candidates(key) == [], PATIENCE, "the candidates' end")
        assert_nothing_is_left(etcd, key)


def test_a_store_that_goes_away_is_a_failure(
    etcd: EtcdClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("leadership.demo._PATIENCE", 0.5)
    host, _, port = etcd.endpoints[0].rpartition(":")
    with FaultProxy(int(port), host) as proxy:
        url = f"etcd://{proxy.endpoint}"
        with new_store(url) as store:
            proxy.set(Mode.RESET)
            assert Demo(store, dict.fromkeys("abc", url), TTL).run() == 1
    assert "FAILED: a new leader did not come in time" in capsys.readouterr().out


def test_a_candidate_that_fails_is_named(
    etcd: EtcdClient, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_store(etcd.url) as store:
        urls = dict.fromkeys("abc", "etcd://127.0.0.1:1?color=1")
        assert Demo(store, urls, TTL).run() == 1
    assert "no option 'color'" in capsys.readouterr().out


def test_one_processes_memory_is_no_stage_for_three() -> None:
    with new_store("memory://demo") as store, pytest.raises(ConfigurationError, match="etcd"):
        Demo(store, dict.fromkeys("abc", "memory://demo"), TTL)
