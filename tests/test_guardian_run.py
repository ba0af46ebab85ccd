"""`leadership run` and its guardian: what is killed, when, and what is released after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from leadership import Candidate, Store, new_store
from leadership._guardian_work import Cgroup
from leadership.clock import SystemClock
from leadership.guardian import group_name

from .command import PATIENCE, PROGRAM, Command, environment
from .guarded import guardians, is_running
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")

CLOCK = SystemClock()

# Writes down when it lives, as `at who`, and so does a grandchild that left for a session of
# its own by a double fork. Neither listens to SIGTERM.
WORK = """
import os, signal, sys
from threading import Event
from leadership.clock import SystemClock

signal.signal(signal.SIGTERM, signal.SIG_IGN)
path, manner = sys.argv[1:]
log = open(path, "a", buffering=1)
who = "command"
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    who = "daemon"
elif manner == "leaves":
    os.wait()
    while "daemon" not in open(path).read():
        Event().wait(0.005)
    sys.exit(5)
log.write(f"{SystemClock().now()} {who} {os.getpid()}\\n")
while True:
    Event().wait(0.005)
    log.write(f"{SystemClock().now()} {who} {os.getpid()}\\n")
"""


class Log:
    """What `WORK` wrote down."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "work.py"
        self.script.write_text(WORK)
        self.path = folder / "log"
        self.path.touch()

    def command(self, manner: str = "stays") -> list[str]:
        return ["--", sys.executable, str(self.script), str(self.path), manner]

    def lines(self) -> list[tuple[float, str, int]]:
        complete = self.path.read_text().rpartition("\n")[0].splitlines()
        split = (line.split() for line in complete)
        return [(float(at), who, int(pid)) for at, who, pid in split]

    def pids(self) -> dict[str, int]:
        """Of the command and its grandchild, once both are at work; the latest."""

        def both() -> dict[str, int] | None:
            found = {who: pid for _, who, pid in self.lines()}
            return found if len(found) == 2 else None

        return wait_until(both, PATIENCE, "both at work")

    def last(self) -> float:
        return max(at for at, _, _ in self.lines())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    for _, _, pid in made.lines():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def key() -> str:
    return f"test-guardian/{uuid.uuid4().hex}"


@pytest.fixture
def store(etcd: EtcdClient) -> Iterator[Store]:
    with new_store(etcd.url) as opened:
        yield opened


def run(etcd: EtcdClient, key: str, *more: str, ttl: float = 60) -> Command:
    options = ["--store", etcd.url, "--key", key, "--id", "a", "--ttl", str(ttl)]
    return Command("run", "--json", *options, *more)


def guardian_of(command: Command) -> int:
    """Its process id, once there is one."""
    return wait_until(lambda: guardians_of(command), PATIENCE, "a guardian")[0]


def guardians_of(command: Command) -> list[int]:
    def parent(pid: int) -> int:
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return 0

    return [pid for pid in guardians() if parent(pid) == command.process.pid]


def next_term(store: Store, key: str) -> float:
    """When another led next."""
    with Candidate(store, key, "other", ttl=60).campaign(timeout=PATIENCE):
        return CLOCK.now()


def test_after_the_runners_death_all_of_the_command_is_dead_before_another_leads(
    etcd: EtcdClient, key: str, log: Log, store: Store
) -> None:
    with run(etcd, key, *log.command()) as command:
        pids = log.pids()
        guardian = guardian_of(command)
        at = CLOCK.now()
        command.send(signal.SIGKILL)
        led_at = next_term(store, key)
        assert not any(is_running(pid) for pid in pids.values())
        assert log.last() < led_at < at + 10
        wait_until(lambda: not is_running(guardian), what="the guardian's own end")


def test_while_the_runner_stands_still_the_command_ends_before_the_deadline(
    etcd: EtcdClient, key: str, log: Log, store: Store
) -> None:
    with run(etcd, key, *log.command(), ttl=2) as command:
        pids = log.pids()
        command.send(signal.SIGSTOP)
        led_at = next_term(store, key)
        assert not any(is_running(pid) for pid in pids.values())
        command.send(signal.SIGCONT)
        assert log.last() < command.wait_for("killed")["valid_until"] < led_at
        # It was no end of the command's own: we contend again.
        command.wait_for("waiting")


def test_with_the_guardian_killed_too_the_command_dies_and_the_ttl_holds(
    etcd: EtcdClient, key: str, log: Log, store: Store
) -> None:
    with run(etcd, key, *log.command(), ttl=2) as command:
        pid = log.pids()["command"]
        guardian = guardian_of(command)
        command.send(signal.SIGSTOP)
        at = CLOCK.now()
        os.kill(guardian, signal.SIGKILL)
        command.send(signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what="the command's end")
        assert at + 2 / 3 < next_term(store, key) < at + 6


def test_a_killed_guardian_takes_the_command_with_it_and_both_are_started_again(
    etcd: EtcdClient, key: str, log: Log, store: Store
) -> None:
    with run(etcd, key, *log.command()) as command:
        before = log.pids()
        token = command.wait_for("elected")["token"]
        first = guardian_of(command)
        os.kill(first, signal.SIGKILL)
        command.wait_for("again")
        # Also what had left its group: it is dead before anything could be released.
        assert not any(is_running(pid) for pid in before.values())
        after = wait_until(
            lambda: pids if not {*before.values()} & {*(pids := log.pids()).values()} else None,
            PATIENCE,
            "both at work again",
        )
        second = guardian_of(command)
        assert second != first
        assert store.core.call(_token, store, key) == token
        command.send(signal.SIGKILL)
        led_at = next_term(store, key)
        assert not any(is_running(pid) for pid in after.values())
        assert log.last() < led_at


async def _token(store: Store, key: str) -> int | None:
    async with contextlib.aclosing(store.core.backend.observe(key)) as states:
        entry = await anext(states)
        return None if entry is None else entry.token


def test_a_guardian_that_stands_still_does_not_save_the_command(
    etcd: EtcdClient, key: str, log: Log
) -> None:
    with run(etcd, key, "--grace", "0.2", *log.command()) as command:
        pids = log.pids()
        os.kill(guardian_of(command), signal.SIGSTOP)
        command.send(signal.SIGTERM)
        assert command.status() == 128 + signal.SIGTERM
        assert not any(is_running(pid) for pid in pids.values())
        assert "released" in command.told()


def test_what_left_for_a_session_of_its_own_ends_before_the_key_is_released(
    etcd: EtcdClient, key: str, log: Log, store: Store
) -> None:
    with run(etcd, key, "--grace", "0.2", *log.command("leaves")) as command:
        command.wait_for("ended")
        assert command.status() == 5
        assert "released" in command.told()
        ended = {pid for _, _, pid in log.lines()}
        assert not any(is_running(pid) for pid in ended)
        assert log.last() < next_term(store, key)


# Thirty that fork, and are gone, as fast as they can; for a while, if nothing ends them.
FLEEING = """
import os, signal, sys
from leadership.clock import SystemClock
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = SystemClock().now() + 40
for _ in range(30):
    if os.fork() == 0:
        break
else:
    open(sys.argv[1], "w").close()
    signal.pause()
while SystemClock().now() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"
)
def test_what_forks_as_fast_as_it_can_ends_also_without_a_control_group(
    key: str, tmp_path: Path
) -> None:
    script = tmp_path / "fleeing.py"
    script.write_text(FLEEING)
    flees = tmp_path / "flees"
    hidden = 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"'
    store = ("--store", "memory://x", "--key", key, "--id", "a")
    options = (*store, "--ttl", "60", "--grace", "0.2", "--json")
    command = subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-c", hidden, "sh", *PROGRAM, "run", *options),
            *("--", sys.executable, str(script), str(flees)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with command:
        assert command.stderr is not None
        events = map(json.loads, command.stderr)
        wait_until(flees.exists, PATIENCE, "all of them")
        at = CLOCK.now()
        command.send_signal(signal.SIGTERM)
        assert "killed" in (event["event"] for event in events)
        assert command.wait(60) == 128 + signal.SIGTERM
        assert CLOCK.now() - at < 20


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"
)
def test_as_process_number_1_it_reaps_strangers_too(key: str, tmp_path: Path) -> None:
    """As in a container without an init, where somebody else's orphans come to it."""
    # It has the runner for its parent, which has not started it.
    stranger = 'sleep 0.1 & echo $! > "$0"; exec "$@"'
    look = (
        "import os, sys, threading\n"
        "pid = open(sys.argv[1]).read().strip()\n"
        "while os.path.exists(f'/proc/{pid}'):\n"
        "    threading.Event().wait(0.01)\n"
    )
    number = tmp_path / "number"
    ended = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", stranger, str(number), *PROGRAM, "run", "--store", "memory://x"),
            *("--key", key, "--id", "a", "--ttl", "60", "--", sys.executable, "-c", look),
            str(number),
        ],
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0


def test_ctrl_c_reaches_the_runner_alone(etcd: EtcdClient, key: str, log: Log) -> None:
    with run(etcd, key, "--grace", "0.2", *log.command()) as command:
        log.pids()
        guardian = guardian_of(command)
        command.press(signal.SIGINT)
        assert command.status() == 128 + signal.SIGINT
        told = command.told()
        assert told[-1] == "released"
        assert "again" not in told
        assert not is_running(guardian)


def test_a_signal_that_comes_while_the_command_starts_ends_it(etcd: EtcdClient, key: str) -> None:
    with run(etcd, key, "--", "sleep", "60") as command:
        command.wait_for("elected")
        command.send(signal.SIGTERM)
        assert command.status() == 128 + signal.SIGTERM
        told = command.told()
    assert "killed" not in told
    ended = [event["status"] for event in command.events if event["event"] == "ended"]
    # It may have come before there was anything to end.
    assert ended in ([], [128 + signal.SIGTERM])


def test_no_control_group_is_left(etcd: EtcdClient, key: str) -> None:
    # As of one who was killed together with its guardian.
    dead = subprocess.Popen(["true"])
    dead.wait()
    space = group_name().rpartition("-")[0]
    Cgroup.make(f"{space}-{dead.pid}")
    with run(etcd, key, "--", "true") as command:
        assert command.status() == 0
        pid = command.process.pid
    for each in (pid, dead.pid):
        assert list(Path("/sys/fs/cgroup").glob(f"**/{space}-{each}")) == []


def test_without_a_guardian_there_is_none(etcd: EtcdClient, key: str) -> None:
    with run(etcd, key, "--no-guardian", "--", "sleep", "60") as command:
        command.wait_for("started")
        assert guardians_of(command) == []
