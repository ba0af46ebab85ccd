"""The command line, as processes, on a real etcd: what it runs, prints, and exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from leadership import Candidate, Store, new_store
from leadership.clock import SystemClock

from .command import PATIENCE, PROGRAM, Command, environment, leadership
from .conftest import MakeEtcd
from .servers.etcd import EtcdServer
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy, Mode
from .waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")

_CLOCK = SystemClock()

# Nothing listens on the first port, so it refuses at once.
NOWHERE = "etcd://127.0.0.1:1"

# A command that writes down when it lives: `at what`, on the clock that all processes share.
# Its arguments: the file, how to take SIGTERM (end, ignore, drain), and whether a child
# of its own does the same in its place.
WORK = """
import os, signal, subprocess, sys
from threading import Event
from leadership.clock import SystemClock

path, manner, how = sys.argv[1:]
log = open(path, "a", buffering=1)

def say(what):
    log.write(f"{SystemClock().now()} {what}\\n")

def told(number, frame):
    say("told")
    if manner == "end":
        say("ended")
        sys.exit(5)
    if manner == "drain":
        while not os.path.exists(path + ".go"):
            Event().wait(0.005)
        say("ended")
        sys.exit(0)

signal.signal(signal.SIGTERM, told)
if how == "by-child":
    child = subprocess.Popen([sys.executable, __file__, path, manner, "self"])
    say(f"child {child.pid}")
    if manner != "ignore":
        child.wait()
elif how == "leaving":
    child = subprocess.Popen([sys.executable, __file__, path, manner, "self"])
    while "works" not in open(path).read():
        Event().wait(0.005)
    sys.exit(0)
else:
    say(f"works {os.getpid()}")
while True:
    Event().wait(0.005)
    if how == "self":
        say("alive")
"""


# Runs its arguments as `leadership run` does, with an engine that is stuck once they run.
STUCK = """
import json, os, sys, threading
from leadership import Candidate, new_store
from leadership.reporting import Reporter
from leadership.runner import Runner

class Stopper(Reporter):
    def say(self, event, sentence, **fields):
        if event == "started":
            store.core.post(threading.Event().wait)
        if event in ("stopping", "ended"):
            print(json.dumps(fields), flush=True)
        if event == "ended":
            os._exit(0)

store = new_store("memory://stuck")
candidate = Candidate(store, "k", "a", ttl=3, grace=1)
runner = Runner(
    candidate, sys.argv[1:], grace=1, once=False, clock=store.clock, reporter=Stopper(True)
)
runner.run()
"""


class Log:
    """What `WORK` wrote down."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "work.py"
        self.script.write_text(WORK)
        self.path = folder / "log"
        self.path.touch()

    def command(self, manner: str, how: str = "self") -> list[str]:
        return ["--", sys.executable, str(self.script), str(self.path), manner, how]

    def lines(self) -> list[tuple[float, str]]:
        complete = self.path.read_text().rpartition("\n")[0].splitlines()
        return [(float(at), what) for at, _, what in (line.partition(" ") for line in complete)]

    def at(self, what: str) -> float:
        """When it was written for the first time; waits for it."""
        return wait_until(lambda: self._find(what), PATIENCE, f"{what!r} in the log")

    def last(self) -> float:
        return self.lines()[-1][0]

    def count(self, what: str) -> int:
        return sum(said.startswith(what) for _, said in self.lines())

    def let_go(self) -> None:
        Path(f"{self.path}.go").touch()

    def pid(self) -> int:
        """The process that works."""
        self.at("works")
        return int(next(what for _, what in self.lines() if what.startswith("works")).split()[1])

    def _find(self, what: str) -> float | None:
        return next((at for at, said in self.lines() if said.startswith(what)), None)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.fixture
def key() -> str:
    return f"test-cli/{uuid.uuid4().hex}"


@pytest.fixture
def store(etcd: EtcdClient) -> Iterator[Store]:
    with new_store(etcd.url) as opened:
        yield opened


@pytest.fixture
def proxy(etcd: EtcdClient) -> Iterator[FaultProxy]:
    host, _, port = etcd.endpoints[0].rpartition(":")
    with FaultProxy(int(port), host) as relay:
        yield relay


def entries(etcd: EtcdClient, key: str) -> list[str]:
    """The keys that stand at the election."""
    return etcd.ctl("get", "--prefix", "--keys-only", key).split()


def run(url: str, key: str, *more: str, id: str = "a", ttl: float = 60) -> Command:
    options = ["--store", url, "--key", key, "--id", id, "--ttl", str(ttl)]
    return Command("run", "--json", *options, *more)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie that nobody has reaped yet is as dead.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return Path("/proc/self").exists()


class TestRun:
    def test_the_command_knows_its_term(self, etcd: EtcdClient, key: str) -> None:
        show = (
            "import json, os; print(json.dumps("
            "{k: v for k, v in os.environ.items() if k.startswith('LEADERSHIP')}))"
        )
        with run(etcd.url, key, "--", sys.executable, "-c", show) as command:
            told = json.loads(command.line())
            token = command.wait_for("elected")["token"]
            assert told == {
                "LEADERSHIP_KEY": key,
                "LEADERSHIP_ID": "a",
                "LEADERSHIP_TOKEN": str(token),
            }
            assert command.status() == 0

    @pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -KILL $$", 137)])
    def test_the_commands_own_end_ends_us_with_its_status(
        self, etcd: EtcdClient, key: str, script: str, status: int
    ) -> None:
        with run(etcd.url, key, "--", "sh", "-c", script) as command:
            assert command.status() == status
            assert entries(etcd, key) == []
            assert command.told() == ["waiting", "elected", "started", "ended", "released"]

    def test_input_output_and_signals_of_the_command_are_as_if_it_ran_alone(
        self, etcd: EtcdClient, key: str
    ) -> None:
        # `yes` ends by SIGPIPE, or else complains.
        script = "yes | head -n 1; cat; trap"
        options = ["--store", etcd.url, "--key", key, "--id", "a", "--ttl", "60"]
        done = subprocess.run(
            [*PROGRAM, "run", *options, "--", "sh", "-c", script],
            input="from stdin\n",
            capture_output=True,
            text=True,
            env=environment(),
            timeout=PATIENCE,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("y\nfrom stdin\n", 0)
        assert all(line.startswith("leadership: ") for line in done.stderr.splitlines())

    def test_a_command_that_vanished_is_told_from_one_that_failed(
        self, etcd: EtcdClient, key: str, tmp_path: Path
    ) -> None:
        script = tmp_path / "script"
        script.write_text("#!/nowhere/interpreter\n")
        script.chmod(0o755)
        with run(etcd.url, key, "--", str(script)) as command:
            assert command.status() == 127
            assert entries(etcd, key) == []

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
    )
    def test_a_signal_stops_the_command_and_then_the_key_is_released(
        self, etcd: EtcdClient, key: str, log: Log, number: signal.Signals, status: int
    ) -> None:
        with run(etcd.url, key, *log.command("drain")) as first:
            log.at("alive")
            with run(etcd.url, key, "--", "true", id="b") as second:
                wait_until(lambda: len(entries(etcd, key)) == 2, PATIENCE, "the second's entry")
                first.send(number)
                log.at("told")
                assert first.wait_for("stopping")["reason"] == f"we were sent {number.name}"
                # However long it takes, it still leads, and nobody else does.
                assert len(entries(etcd, key)) == 2
                log.let_go()
                ended = log.at("ended")
                assert first.status() == status
                assert first.wait_for("released")["at"] > ended
                assert second.wait_for("elected")["at"] > ended
                assert second.status() == 0

    def test_a_candidate_that_waits_leaves_at_a_signal(
        self, etcd: EtcdClient, key: str, store: Store
    ) -> None:
        with (
            Candidate(store, key, "other", ttl=60).campaign(timeout=PATIENCE),
            run(etcd.url, key, "--", "true") as command,
        ):
            wait_until(lambda: len(entries(etcd, key)) == 2, PATIENCE, "its entry")
            command.send(signal.SIGTERM)
            assert command.status() == 143
            assert len(entries(etcd, key)) == 1

    def test_a_deaf_command_is_killed_when_its_grace_is_over(
        self, etcd: EtcdClient, key: str, log: Log
    ) -> None:
        with run(etcd.url, key, "--grace", "0.5", *log.command("ignore")) as command:
            log.at("alive")
            command.send(signal.SIGTERM)
            assert command.status() == 143
            assert "killed" in command.told()
            assert is_gone(log.pid())

    def test_a_second_signal_kills_at_once(self, etcd: EtcdClient, key: str, log: Log) -> None:
        # Its grace alone would outlast the patience of `status`.
        with run(etcd.url, key, "--grace", "100", *log.command("ignore"), ttl=300) as command:
            log.at("alive")
            command.send(signal.SIGINT)
            log.at("told")
            command.send(signal.SIGINT)
            assert command.status() == 130
            assert is_gone(log.pid())
            assert entries(etcd, key) == []

    def test_what_the_command_leaves_behind_ends_before_the_release(
        self, etcd: EtcdClient, key: str, log: Log
    ) -> None:
        with run(etcd.url, key, "--grace", "0.5", *log.command("ignore", "leaving")) as command:
            assert command.status() == 0
            assert command.wait_for("released")["at"] > log.last()
            assert is_gone(log.pid())

    @pytest.mark.parametrize("options", [[], ["--no-guardian"]], ids=["guarded", "by itself"])
    def test_a_cut_store_kills_a_deaf_command_before_its_deadline(
        self,
        etcd: EtcdClient,
        key: str,
        log: Log,
        proxy: FaultProxy,
        store: Store,
        options: list[str],
    ) -> None:
        url = f"etcd://{proxy.endpoint}"
        # The one that is deaf is its child: the whole group is meant.
        with run(url, key, *options, *log.command("ignore", "by-child"), ttl=3) as command:
            log.at("alive")
            proxy.set(Mode.STALL)
            with Candidate(store, key, "other", ttl=60).campaign(timeout=PATIENCE) as term:
                stopping = command.wait_for("stopping")
                assert "renewed in time" in stopping["reason"]
                ended = command.wait_for("ended")["at"]
                assert log.last() < ended < stopping["valid_until"] < term.elected_at
                assert is_gone(log.pid())
                proxy.set(Mode.PASS)
                command.wait_for("waiting")
            # It contends again, and wins again once the other has gone.
            assert command.wait_for("elected")["token"] > term.token
            command.wait_for("started")

    def test_a_stuck_engine_does_not_save_the_command(self, tmp_path: Path, log: Log) -> None:
        script = tmp_path / "stuck.py"
        script.write_text(STUCK)
        done = subprocess.run(
            [sys.executable, str(script), *log.command("ignore")[1:]],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=PATIENCE,
            check=False,
        )
        stopping, ended = (json.loads(line) for line in done.stdout.splitlines())
        assert "renewed in time" in stopping["reason"]
        assert log.last() < ended["at"] < stopping["valid_until"]

    def test_with_once_a_lost_term_is_the_end(self, etcd: EtcdClient, key: str, log: Log) -> None:
        with run(etcd.url, key, "--once", *log.command("end")) as command:
            log.at("alive")
            etcd.ctl("del", "--prefix", key)
            assert command.status() == 3
            told = command.told()
            assert told.index("stopping") < told.index("ended")
            assert log.at("told")
            assert entries(etcd, key) == []

    def test_a_deleted_entry_stops_the_command_and_a_new_term_starts_it_anew(
        self, etcd: EtcdClient, key: str, log: Log
    ) -> None:
        with run(etcd.url, key, *log.command("end")) as command:
            first = command.wait_for("elected")["token"]
            log.at("alive")
            etcd.ctl("del", "--prefix", key)
            assert command.wait_for("ended")["status"] == 5
            assert command.wait_for("elected")["token"] > first
            wait_until(lambda: log.count("works") == 2, PATIENCE, "its second start")

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of this")
    def test_the_command_dies_with_us(self, etcd: EtcdClient, key: str, log: Log) -> None:
        with run(etcd.url, key, *log.command("ignore"), ttl=2) as command:
            log.at("alive")
            command.send(signal.SIGKILL)
            command.status()
            wait_until(lambda: is_gone(log.pid()), PATIENCE, "the command's end")

    def test_one_that_slept_through_its_lease_kills_its_command_on_waking(
        self, etcd: EtcdClient, key: str, log: Log, store: Store
    ) -> None:
        with run(etcd.url, key, *log.command("ignore"), ttl=2) as command:
            log.at("alive")
            command.send(signal.SIGSTOP)
            with Candidate(store, key, "other", ttl=60).campaign(timeout=PATIENCE):
                command.send(signal.SIGCONT)
                command.wait_for("killed")
                command.wait_for("waiting")
                assert is_gone(log.pid())

    def test_ctrl_z_does_not_suspend_us(self, etcd: EtcdClient, key: str, log: Log) -> None:
        with run(etcd.url, key, *log.command("end")) as command:
            log.at("alive")
            command.send(signal.SIGTSTP)
            command.wait_for("not-suspended")

    def test_a_reader_that_reads_nothing_does_not_save_the_command(
        self, etcd: EtcdClient, key: str, log: Log
    ) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            while os.write(writing, b"x" * 4096):
                pass
        except BlockingIOError:
            os.set_blocking(writing, True)
        options = ["--store", etcd.url, "--key", key, "--id", "a", "--ttl", "60", "--grace", "0.5"]
        process = subprocess.Popen(
            [*PROGRAM, "run", *options, *log.command("ignore")], stderr=writing, env=environment()
        )
        try:
            log.at("alive")
            process.terminate()
            assert process.wait(PATIENCE) == 143
            assert is_gone(log.pid())
            assert entries(etcd, key) == []
        finally:
            process.kill()
            process.wait()
            os.close(reading)
            os.close(writing)

    def test_rights_below_the_key_suffice(self, make_etcd: MakeEtcd) -> None:
        server = make_etcd(auth=True)
        role = ["role", "grant-permission", "narrow", "readwrite", "service/leader/"]
        server.ctl("role", "add", "narrow")
        server.ctl(*role, "--prefix=true")
        server.ctl("user", "add", "narrow:secret")
        server.ctl("user", "grant-role", "narrow", "narrow")
        url = f"etcd://narrow:secret@{server.endpoint}"
        with run(url, "service/leader", "--", "sh", "-c", "cat; exit 4") as command:
            assert command.status() == 4
        assert leadership("leader", "--store", url, "--key", "service/leader").returncode == 1
        refused = leadership("leader", "--store", url, "--key", "elsewhere")
        assert refused.returncode == 2
        assert re.fullmatch(r"leadership: .*\n", refused.stderr)
        assert "secret" not in refused.stderr

    def test_memory_is_called_what_it_is(self) -> None:
        done = leadership("run", "--store", "memory://x", "--key", "k", "--id", "a", "--", "true")
        assert done.returncode == 0
        assert "nobody else takes part" in done.stderr


class TestFollow:
    def test_each_change_is_a_line(self, etcd: EtcdClient, key: str, store: Store) -> None:
        with Command("follow", "--store", etcd.url, "--key", key) as command:
            assert command.line() == "-"
            with Candidate(store, key, "a", ttl=60, value="10.0.0.5:80\n").campaign(PATIENCE):
                assert command.line() == "10.0.0.5:80\\n"
            assert command.line() == "-"

    def test_json_has_all_that_is_known(self, etcd: EtcdClient, key: str, store: Store) -> None:
        with Command("follow", "--json", "--store", etcd.url, "--key", key) as command:
            told = json.loads(command.line())
            assert (told["leader"], told["token"], told["state"]) == (None, None, "none")
            with Candidate(store, key, "a", ttl=60).campaign(PATIENCE) as term:
                told = json.loads(command.line())
                assert (told["leader"], told["token"]) == ("a", term.token)
                assert told["state"] == "known"
                assert told["since"] <= _CLOCK.now()

    def test_ignorance_is_not_taken_for_nobody(
        self, key: str, proxy: FaultProxy, store: Store
    ) -> None:
        with (
            Candidate(store, key, "a", ttl=60).campaign(PATIENCE),
            Command("follow", "--store", f"etcd://{proxy.endpoint}", "--key", key) as command,
        ):
            assert command.line() == "a"
            proxy.set(Mode.RESET)
            assert command.line() == "?"
            proxy.set(Mode.PASS)
            assert command.line() == "a"

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_ends_it_without_a_word(
        self, etcd: EtcdClient, key: str, number: signal.Signals, status: int
    ) -> None:
        with Command("follow", "--store", etcd.url, "--key", key) as command:
            command.line()
            command.send(number)
            assert command.status() == status
            assert command.errors() == []

    def test_it_ends_when_its_reader_goes(self, etcd: EtcdClient, key: str) -> None:
        with Command("follow", "--store", etcd.url, "--key", key) as command:
            command.line()
            command.close_output()
            assert command.status() == 0
            assert command.errors() == []


class TestLeader:
    def test_it_prints_the_value(self, etcd: EtcdClient, key: str, store: Store) -> None:
        with Candidate(store, key, "a", ttl=60, value="there:80").campaign(PATIENCE) as term:
            done = leadership("leader", "--store", etcd.url, "--key", key)
            assert (done.stdout, done.stderr, done.returncode) == ("there:80\n", "", 0)
            done = leadership("leader", "--json", "--store", etcd.url, "--key", key)
            told = json.loads(done.stdout)
            assert (told["leader"], told["token"], told["state"]) == (
                "there:80",
                term.token,
                "known",
            )

    def test_status_1_means_nobody(self, etcd: EtcdClient, key: str) -> None:
        done = leadership("leader", "--key", key, LEADERSHIP_STORE=etcd.url)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 1)
        done = leadership("leader", "--key", key, "--json", LEADERSHIP_STORE=etcd.url)
        assert (json.loads(done.stdout)["leader"], done.returncode) == (None, 1)

    def test_it_waits_for_one(self, etcd_server: EtcdServer, key: str) -> None:
        etcd = etcd_server
        options = ["--store", etcd.url, "--key", key, "--timeout", str(PATIENCE)]
        with new_store(etcd.url) as store, Command("leader", *options) as command:
            # It has looked, found nobody, and watches.
            wait_until(lambda: etcd.count("etcd_debugging_mvcc_watcher_total") > 0, PATIENCE)
            with Candidate(store, key, "a", ttl=60).campaign(PATIENCE):
                assert command.line() == "a"
            assert command.status() == 0

    def test_it_does_not_wait_for_ever(self, etcd: EtcdClient, key: str) -> None:
        done = leadership("leader", "--store", etcd.url, "--key", key, "--timeout", "0.3")
        assert (done.stdout, done.returncode) == ("", 1)


RUN = ("run", "--store", "memory://x", "--key", "k", "--id", "a")


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["run", "--store", "etdc://x", "--key", "k", "--id", "a", "true"], "'etcd'"),
            (["leader", "--store", "nonsense", "--key", "k"], "scheme://host:port"),
            (["leader", "--store", "etcd://h?color=1", "--key", "k"], "no option 'color'"),
            (["leader", "--store", "memory://x", "--key", ""], "key is empty"),
            (["follow", "--store", "memory://x", "--key", "a//b"], "segment"),
            (["follow", "--key", "k"], "--store"),
            (["run", "--store", "memory://x", "--key", "k", "--id", " ", "true"], "id="),
            ([*RUN, "--ttl", "0", "true"], "seconds above 0"),
            ([*RUN, "--ttl", "-5", "true"], "seconds above 0"),
            ([*RUN, "--ttl", "soon", "true"], "--ttl"),
            ([*RUN, "--ttl", "6", "--grace", "5", "true"], "half the ttl"),
            ([*RUN, "--ttl", "6", "--grace", "-1", "true"], "grace"),
            ([*RUN, "--connect-timeout", "0", "true"], "connect-timeout"),
            (RUN, "CMD"),
            (["run", "--store", NOWHERE, "--key", "k", "--id", "a", "--ttl", "0.2", "true"], "1 s"),
            (["leader", "--store", "memory://x", "--key", "k", "--timeout", "-1"], "timeout"),
            (["demo", "--store", "memory://x"], "memory://"),
            (["demo", "--store", NOWHERE, "--ttl", "0"], "seconds above 0"),
            (["led"], "led"),
        ],
    )
    def test_it_gets_one_line_and_status_2(self, arguments: list[str], says: str) -> None:
        done = leadership(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert re.fullmatch(r"leadership: .*\n", done.stderr), done.stderr
        assert says in done.stderr

    def test_a_value_over_the_limit(self) -> None:
        limit = 1_600_000
        # An argument may be long, but not so long: it is read from the start of the program.
        script = (
            "import sys; from leadership.cli import main; "
            f"main(['run', '--store', '{NOWHERE}', '--key', 'k', '--id', 'a', "
            f"'--value', 'x' * {limit}, 'true'])"
        )
        done = _python(script)
        assert done.returncode == 2
        assert re.fullmatch(rf"leadership: .*{limit} bytes.*\n", done.stderr)

    @pytest.mark.parametrize("command", ["run", "follow", "leader", "demo"])
    def test_an_unreachable_store_is_given_up(self, command: str) -> None:
        more = {"run": ["--key", "k", "--id", "a", "true"], "demo": []}
        options = ["--store", "etcd://u:secret@127.0.0.1:1", "--connect-timeout", "0.5"]
        done = leadership(command, *options, *more.get(command, ["--key", "k"]))
        assert done.returncode == 2
        says = r"leadership: could not reach etcd://127\.0\.0\.1:1 within 0\.5 s: .*\n"
        assert re.fullmatch(says, done.stderr), done.stderr
        assert "secret" not in done.stderr

    def test_a_store_that_never_answers_is_given_up(self, proxy: FaultProxy) -> None:
        proxy.set(Mode.STALL)
        # A single request may take longer than the test.
        url = f"etcd://{proxy.endpoint}?request_timeout={2 * PATIENCE}"
        options = ["--store", url, "--connect-timeout", "0.5"]
        begun = _CLOCK.now()
        done = leadership("leader", *options, "--key", "k")
        assert done.returncode == 2
        assert "within 0.5 s" in done.stderr
        # Left to itself gRPC gives up after 20 s.
        assert _CLOCK.now() - begun < 15

    @pytest.mark.parametrize(
        ("command", "status"), [("nowhere-to-be-found", 127), ("/", 126), (__file__, 126)]
    )
    def test_a_command_that_cannot_run_is_told_before_anything_is_sent(
        self, command: str, status: int
    ) -> None:
        done = leadership("run", "--store", NOWHERE, "--key", "k", "--id", "a", "--", command)
        assert done.returncode == status
        assert re.fullmatch(rf"leadership: '{command}' .*\n", done.stderr)

    @pytest.mark.parametrize(
        ("module", "extra"), [("typer", "leadership[cli]"), ("etcd3", "leadership[etcd]")]
    )
    def test_a_missing_extra_is_named_with_its_pip_command(self, module: str, extra: str) -> None:
        done = _python(
            f"import sys; sys.modules[{module!r}] = None; from leadership.cli import main; "
            f"main(['leader', '--store', '{NOWHERE}', '--key', 'k'])"
        )
        assert done.returncode == 2
        assert re.fullmatch(r"leadership: .*\n", done.stderr)
        assert f"pip install '{extra}'" in done.stderr

    def test_what_should_not_happen_is_one_line_too(self) -> None:
        done = _python(
            "import leadership.commands, leadership.cli\n"
            "def broken(*given, **more): raise RuntimeError('broken')\n"
            "leadership.commands.new_store = broken\n"
            "leadership.cli.main(['leader', '--store', 'memory://x', '--key', 'k'])"
        )
        assert done.returncode == 70
        assert re.fullmatch(r"leadership: internal error: .*broken.*\n", done.stderr)


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )


class TestHelp:
    def test_without_arguments_it_helps(self) -> None:
        done = leadership()
        assert done.returncode == 0
        assert all(command in done.stdout for command in ("run", "follow", "leader", "demo"))

    @pytest.mark.parametrize("command", ["run", "follow", "leader", "demo"])
    def test_each_command_shows_an_example(self, command: str) -> None:
        done = leadership(command, "--help")
        assert done.returncode == 0
        assert f"leadership {command} --store etcd://127.0.0.1:2379" in done.stdout

    def test_the_version(self) -> None:
        assert re.fullmatch(r"leadership \d+\.\d+.*\n", leadership("--version").stdout)

    def test_the_shell_completes(self) -> None:
        done = leadership(
            _LEADERSHIP_COMPLETE="complete_bash", COMP_WORDS="leadership fo", COMP_CWORD="1"
        )
        assert done.stdout.split() == ["follow"]

    def test_the_installed_program_is_this_one(self) -> None:
        program = Path(sys.executable).with_name("leadership")
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == leadership("--version").stdout

    def test_the_start_loads_no_more_than_it_needs(self) -> None:
        done = _python(
            "import sys, leadership.commands\n"
            "heavy = {'rich', 'grpc', 'leadership.demo', 'leadership.runner'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        assert done.stdout == "[]\n"
