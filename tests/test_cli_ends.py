"""`leadership run` ends, and says the truth, also where its surroundings are odd."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from leadership.runner import LOST

from .command import PATIENCE, PROGRAM, Command, environment
from .programs import python
from .waiting import wait_until

pytestmark = [
    pytest.mark.backend("memory"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

RUN = ("run", "--store", "memory://x", "--key", "k", "--id", "a")


@pytest.mark.parametrize("descriptor", ["1", "2"])
def test_a_closed_output_costs_nobody_the_commands_status(descriptor: str) -> None:
    """As a supervisor's that closes what it does not want."""
    ended = subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$@" {descriptor}>&-',
            "sh",
            *PROGRAM,
            *RUN,
            "--",
            "sh",
            "-c",
            "exit 7",
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 7


def test_nothing_of_ours_takes_the_place_of_an_input_or_output_that_is_closed(
    tmp_path: Path,
) -> None:
    """Or lines that are meant for stderr would go to the store, or to the guardian."""
    found = tmp_path / "found"
    look = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "def open_ones(pid):\n"
        "    places = [Path(f'/proc/{pid}/fd/{number}') for number in range(3)]\n"
        "    return [str(place.readlink()) for place in places if place.is_symlink()]\n"
        "guardian = os.getppid()\n"
        "stat = Path(f'/proc/{guardian}/stat').read_text()\n"
        "runner = stat.rpartition(')')[2].split()[1]\n"
        "is_guarded = b'_guardian' in Path(f'/proc/{guardian}/cmdline').read_bytes()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    print(is_guarded, open_ones(runner), file=file)\n"
    )
    ended = subprocess.run(
        [
            *("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, *RUN, "--"),
            *(sys.executable, "-c", look, str(found)),
        ],
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0
    assert found.read_text() == f"True {['/dev/null'] * 3}\n"


def test_where_no_thread_can_be_started_that_is_said_with_what_to_do() -> None:
    printed = python(
        """
    import sys, threading
    from leadership.cli import main

    def refuse(thread):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = refuse
    sys.stderr = sys.stdout
    try:
        main(["leader", "--store", "memory://x", "--key", "k"])
    except SystemExit as ended:
        print(ended.code)
    """
    )
    assert "can't start new thread; raise its limits\n71\n" in printed
    assert "internal error" not in printed


def test_following_ends_at_once_where_nobody_can_read_it() -> None:
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "follow", *RUN[1:5]],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_dead_process_that_nobody_reaps_is_not_waited_for() -> None:
    """A daemon leaves for a session of its own, and never reaps the child that it had before."""
    daemon = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os.setsid()
    time.sleep(25)
"""
    with Command(*RUN, "--ttl", "2", "--json", "--", sys.executable, "-c", daemon) as running:
        running.wait_for("released")
        assert running.status() == 0


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv"
)
def test_a_command_that_we_may_not_signal_is_not_told_as_killed() -> None:
    """As `sudo ./serve` by another user; here root without that right."""
    ours = subprocess.Popen(
        [
            *("setpriv", "--bounding-set=-kill", *PROGRAM, *RUN, "--ttl", "2", "--json"),
            # Which may end it as a control group, without that right.
            *("--no-guardian", "--"),
            *("setpriv", "--reuid", "65534", "--clear-groups", "sleep", "20"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert ours.stderr is not None
    events = map(json.loads, ours.stderr)
    with ours:
        child = next(event["pid"] for event in events if event["event"] == "started")
        try:
            name = Path(f"/proc/{child}/comm")
            wait_until(lambda: name.read_text().strip() == "sleep", PATIENCE, "the command")
            ours.send_signal(signal.SIGTERM)
            told = []
            for event in events:
                told.append(event["event"])
                if event["event"] == "not-permitted" and event["name"] == "SIGKILL":
                    break
            assert "killed" not in told
            assert "released" not in told
            os.kill(child, signal.SIGKILL)
            assert ours.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            ours.kill()


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="needs root, setpriv and unshare",
)
@pytest.mark.parametrize("ends", ["guardian", "runner"])
def test_while_something_of_the_command_cannot_be_ended_that_is_told_and_nothing_released(
    ends: str,
) -> None:
    """It changed its user. The guardian dies, or we are asked to end; neither may kill it."""
    # Without that right, and without a control group that would end it all the same.
    lone = 'mount -t tmpfs none /sys/fs/cgroup; exec setpriv --bounding-set=-kill "$@"'
    command = ("setpriv", "--reuid", "65534", "--clear-groups", "sleep", "60")
    ours = subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-c", lone, "sh", *PROGRAM, *RUN),
            *("--ttl", "2", "--grace", "0.1", "--json", "--", *command),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert ours.stderr is not None
    events = map(json.loads, ours.stderr)
    with ours:
        child = next(event["pid"] for event in events if event["event"] == "started")
        try:
            name = Path(f"/proc/{child}/comm")
            wait_until(lambda: name.read_text().strip() == "sleep", PATIENCE, "the command")
            if ends == "guardian":
                os.kill(_parent(child), signal.SIGKILL)
            else:
                ours.send_signal(signal.SIGTERM)
            told: list[dict[str, Any]] = []
            for event in events:
                told.append(event)
                surviving = [each for each in told if each["event"] == "surviving"]
                if len(surviving) == 3:
                    break
            assert [each["pids"] for each in surviving] == [[child]] * 3
            first, second, third = (each["at"] for each in surviving)
            assert third - second > second - first
            assert not {"killed", "again", "ended"} & {event["event"] for event in told}
            [stopping] = [e["valid_until"] for e in told if e["event"] == "stopping"] or [
                float("inf")
            ]
            # After the deadline another may lead, whatever we do.
            assert all(e["at"] >= stopping for e in told if e["event"] == "released")
            os.kill(child, signal.SIGKILL)
            after = "again" if ends == "guardian" else "ended"
            assert after in (event["event"] for event in events)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            ours.kill()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_impatient_to_the_very_end_gets_the_same_status(number: signal.Signals) -> None:
    """Also where the last of many signals comes when all is done but our own exit."""
    with Command(*RUN, "--ttl", "20", "--json", "--", "sleep", "60") as running:
        running.wait_for("started")
        with contextlib.suppress(ProcessLookupError):
            while running.process.poll() is None:
                running.send(number)
                # About as long as the end takes: some come in each part of it.
                Event().wait(0.01)
        assert running.status() == 128 + number
        told = running.told()
    assert told.count("signal") == told.count("released") == 1


def test_a_command_is_not_started_where_its_guard_cannot_be() -> None:
    """As under a limit on threads; and what was started is not left when something else fails."""
    printed = python(
        """
    import threading
    from leadership import Candidate, events, new_store, runner
    from leadership.clock import SystemClock
    from leadership.reporting import Reporter

    class Child(runner.Child):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            children.append(self)
        def wait(self):
            if fault == "wait" and not waited:
                waited.append(1)
                raise RuntimeError("for the test")
            return super().wait()
    runner.Child = Child

    start = threading.Thread.start
    def starting(thread):
        if fault == "thread" and thread.name == "leadership-loss":
            raise RuntimeError("for the test")
        start(thread)
    threading.Thread.start = starting

    told = []
    for fault in ("thread", "wait"):
        waited, children = [], []
        # Hooks are told on a thread of their own, of the first perhaps while the next goes on.
        def hook(event, fault=fault, children=children):
            if isinstance(event, events.Released):
                told.append((fault, [child.gone for child in children]))

        with new_store("memory://x", hooks=[hook]) as store:
            candidate = Candidate(store, "k", "a", ttl=60, grace=0)
            try:
                runner.Runner(
                    candidate, ["sleep", "60"], grace=0, once=False,
                    clock=SystemClock(), reporter=Reporter(True, 1),
                ).run()
            except RuntimeError as error:
                pass
    print(told)
    """
    )
    told = printed.splitlines()[-1]
    assert told == "[('thread', []), ('wait', [True])]"


def test_a_term_that_is_over_before_the_command_can_start_runs_nothing() -> None:
    printed = python(
        """
    from leadership import Candidate, new_store, runner
    from leadership.reporting import Reporter
    from leadership.testing import ManualClock

    clock = ManualClock()

    class SlowGuardian:
        def wait_ready(self, timeout):
            clock.advance(20)
            return False
        def give_up(self, reason): pass

    children = []
    runner.Child = lambda *arguments: children.append(1)
    with new_store("memory://late", clock=clock) as store:
        made = runner.Runner(
            Candidate(store, "k", "a", ttl=10, grace=0), ["sleep", "60"], grace=0, once=True,
            clock=clock, reporter=Reporter(True, 1), guardian=SlowGuardian(),
        )
        print("status", made.run(), children)
    """
    )
    lines = [line for line in printed.splitlines() if not line.startswith("{")]
    assert lines == [f"status {LOST} []"]


def in_a_terminal(session: Callable[[], str]) -> str:
    """What `session` returns, run in a session with a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.write(1, f"RESULT {session()}".encode())
        finally:
            os._exit(0)
    told = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            told += chunk
    os.close(terminal)
    os.waitpid(pid, 0)
    return told.decode().rpartition("RESULT ")[2]


def test_a_terminal_that_stops_who_writes_in_the_background_does_not_stop_us() -> None:
    stubborn = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")

    def session() -> str:
        with open(os.devnull) as nothing:
            ours = subprocess.Popen(
                [*PROGRAM, *RUN, "--ttl", "2", "--", *stubborn],
                process_group=0,
                stdin=nothing,
                stdout=subprocess.PIPE,
                env=environment(),
            )
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"ready\n"
        attributes = termios.tcgetattr(0)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        ours.send_signal(signal.SIGTERM)
        try:
            return str(ours.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            os.killpg(ours.pid, signal.SIGKILL)
            return "stopped for ever"

    assert in_a_terminal(session) == str(128 + signal.SIGTERM)
