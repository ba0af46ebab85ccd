"""`leadership top` in a terminal and without one, and what the shell offers at Tab."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import uuid
from collections.abc import Iterator
from typing import Protocol

import pytest
from rich.console import Console

from leadership import Candidate, new_store
from leadership.survey import Look, SeenElection, SeenTerm, Survey
from leadership.top import _drawn

from .command import PROGRAM, environment, leadership, leadership_here
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"


class AtTab(Protocol):
    def __call__(self, line: str, url: str | None = None) -> str: ...


class Terminal:
    """The command in a terminal of 80 columns and 24 lines."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.written = ""
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=subprocess.PIPE,
            env=environment(TERM="xterm-256color", **more),
            start_new_session=True,
        )

    def _read(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            self.written += os.read(self._ours, 65536).decode(errors="replace")

    def screen(self) -> str:
        """The last picture that was drawn."""
        self._read()
        return ESCAPES.sub("", self.written.rpartition("\x1b[H")[2])

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.screen(), 30, f"{text!r} on {self.screen()!r}")

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def status(self) -> int:
        def ended() -> bool:
            # Who is not read from cannot end.
            self._read()
            return self.process.poll() is not None

        wait_until(ended, 30, "its end")
        self._read()
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._ours)
        os.close(self.theirs)


@pytest.fixture
def prefix(etcd: EtcdClient) -> Iterator[str]:
    """Where thirty elections are led, one by a name that would act on a terminal."""
    name = f"top-{uuid.uuid4()}"
    with new_store(etcd.url) as store:
        for number in range(30):
            leader = "e\x1b[31mvil" if number == 0 else f"leader-{number}"
            Candidate(store, f"{name}/{number:02}", leader, ttl=60).campaign(timeout=20)
        yield name


@contextlib.contextmanager
def top(etcd: EtcdClient, prefix: str) -> Iterator[Terminal]:
    terminal = Terminal("top", "--prefix", f"{prefix}/", LEADERSHIP_STORE=etcd.url)
    try:
        yield terminal
    finally:
        terminal.close()


def test_it_is_live_fits_its_terminal_scrolls_and_leaves_it_as_it_was(
    etcd: EtcdClient, prefix: str
) -> None:
    with top(etcd, prefix) as terminal:
        terminal.wait_for("leader-3")
        terminal.wait_for("30 elections, 30 led")
        lines = terminal.screen().splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        # What the store says does not act.
        assert "\\x1b[31m" in terminal.screen()
        assert "leader-29" not in terminal.screen()
        terminal.press("  ")
        terminal.wait_for("leader-29")
        with new_store(etcd.url) as store:
            with Candidate(store, f"{prefix}/99", "newcomer", ttl=60).campaign(timeout=20):
                terminal.press("\x1b[6~")
                terminal.wait_for("31 elections, 31 led")
                terminal.press("j")
                terminal.wait_for("newcomer")
            terminal.wait_for("31 elections, 30 led")
        terminal.press("q")
        assert terminal.status() == 0
        assert ALTERNATE in terminal.written
        assert terminal.written.rpartition(BACK)[1]
        assert ALTERNATE not in terminal.written.rpartition(BACK)[2]
        assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(
    etcd: EtcdClient, number: signal.Signals, status: int
) -> None:
    with top(etcd, "nothing-here") as terminal:
        terminal.wait_for("no election here yet")
        terminal.process.send_signal(number)
        assert terminal.status() == status
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        assert terminal.written.rfind(BACK) > terminal.written.rfind(ALTERNATE)


def drawn(width: int, *elections: SeenElection, cut_since: float | None = None) -> str:
    """What stands on a terminal of this width."""
    look = Look(1000.0, 400.0, elections, 0, {"l": 1006.2}, cut_since, "no answer")
    with new_store("memory://drawn") as store:
        console = Console(width=width, height=12, file=io.StringIO())
        console.print(_drawn(Survey(store.core.backend, ""), look, console, 0, 7))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


ELECTION = SeenElection(
    "web/leader", SeenTerm("10.0.0.5:8080", 42, 940.0, True), ("10.0.0.6:8080",), lease="l"
)


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (40, ["web/leader", "10.0.0.5", "1 min 00 s"]),
        (60, ["web/leader", "10.0.0.5:8080", "42", "1 min 00 s", "6.2 s"]),
        (90, ["web/leader", "10.0.0.5:8080", "42", "1 min 00 s", "6.2 s", "1: 10.0.0.6"]),
    ],
)
def test_in_a_narrow_terminal_who_leads_what_is_shown_first(width: int, told: list[str]) -> None:
    shown = drawn(width, ELECTION)
    assert all(each in shown for each in told)
    assert "1 election, 1 led" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_before_the_store_has_answered_it_is_not_said_that_there_is_no_election() -> None:
    assert "no election here yet" in drawn(80)
    shown = drawn(80, cut_since=990.0)
    assert "nothing is known" in shown
    assert "no election" not in shown


def test_without_a_terminal_it_prints_one_table(etcd: EtcdClient, prefix: str) -> None:
    ended = leadership("top", "--prefix", prefix, LEADERSHIP_STORE=etcd.url)
    assert ended.returncode == 0, ended.stderr
    heading, first, *rest = ended.stdout.splitlines()
    assert heading.split("  ")[0] == "election"
    assert first.startswith(f"{prefix}/00")
    assert "e\\x1b[31mvil" in first
    assert re.search(r" \d+\.\d s ", first)
    assert len(rest) == 29


def test_a_store_that_does_not_answer_is_one_line_and_status_2(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ended = leadership_here(capfd, "top", "--store", "etcd://127.0.0.1:1", "--connect-timeout", "1")
    assert ended.returncode == 2
    assert "could not reach" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# --- at Tab ---


@pytest.fixture
def at_tab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> AtTab:
    """What zsh is told at Tab behind a line, with a store in the environment or none."""

    def offered(line: str, url: str | None = None) -> str:
        monkeypatch.setenv("_LEADERSHIP_COMPLETE", "complete_zsh")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        monkeypatch.delenv("LEADERSHIP_STORE", raising=False)
        if url is not None:
            monkeypatch.setenv("LEADERSHIP_STORE", url)
        ended = leadership_here(capfd)
        assert ended.stderr == ""
        return ended.stdout

    return offered


def test_commands_and_options_complete(at_tab: AtTab) -> None:
    assert '"dashboard"' in at_tab("leadership da")
    assert '"--store"' in at_tab("leadership run --st")
    told = at_tab("leadership leader --store et")
    assert "etcd" in told
    assert "memory" not in told


def test_keys_complete_from_the_store(etcd: EtcdClient, at_tab: AtTab) -> None:
    name = f"tab-{uuid.uuid4()}"
    with (
        new_store(etcd.url) as store,
        Candidate(store, f"{name}/a/leader", "x", ttl=60).campaign(timeout=20),
    ):
        told = at_tab(f"leadership leader --key {name}", etcd.url)
        assert f'"{name}/a/leader"' in told
        told = at_tab(f"leadership top --prefix {name}", etcd.url)
        assert f'"{name}/"' in told
        assert f'"{name}/a/"' in told


@pytest.mark.parametrize("url", ["etcd://127.0.0.1:1", "nonsense://", ""])
def test_a_store_that_cannot_be_asked_offers_nothing_and_says_nothing(
    url: str, at_tab: AtTab
) -> None:
    told = at_tab("leadership leader --key x", url)
    assert "x" not in told.replace("_arguments", "")


def test_completion_can_be_installed(tmp_path: object) -> None:
    ended = subprocess.run(
        [*PROGRAM, "--install-completion", "bash"],
        env=environment(HOME=str(tmp_path), SHELL="/bin/bash"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "bash completion installed" in ended.stdout
