"""`leadership run` ends, and says the truth, also where its surroundings are odd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .command import PATIENCE, PROGRAM, Command, environment
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
            *("setpriv", "--bounding-set=-kill", *PROGRAM, *RUN, "--ttl", "2", "--json", "--"),
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
