"""Each recipe's example runs, as it stands but for addresses and the commands of the reader."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from leadership import Candidate, new_store

from .command import PATIENCE, Command
from .servers.etcd_client import EtcdClient
from .servers.ports import free_port
from .servers.programs import CHECKOUT
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")

EXAMPLES = CHECKOUT / "examples"
RECIPES = CHECKOUT / "docs" / "recipes"


@pytest.fixture
def url(etcd: EtcdClient) -> Iterator[str]:
    """The store of examples, whose keys are fixed; nothing of theirs is left."""
    yield etcd.url
    with new_store(etcd.url) as store:
        for root in (
            "cron",
            "celery",
            "jobs",
            "service/web",
            "service/orders",
            "service/swarm",
            "my-group",
            "locks",
        ):
            assert store.list(root) == []


def ran(example: str, *arguments: str) -> list[str]:
    """Run a Python example to its end: what it printed."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def exec_start(unit: str, name: str) -> list[str]:
    """The arguments that systemd would give to `leadership`, on a node of that name."""
    (line,) = re.findall(
        r"^ExecStart=(.*)$", (EXAMPLES / "systemd" / unit).read_text(), re.MULTILINE
    )
    program, *arguments = shlex.split(line.replace("%H", name))
    assert program.endswith("/leadership")
    return [word.replace("8008", "0") for word in arguments]


def with_json(arguments: list[str], *command: str) -> list[str]:
    """To be read by a test, and with another command."""
    return [*arguments[: arguments.index("--")], "--json", "--", *command]


@contextmanager
def two(arguments: dict[str, list[str]], **more: str) -> Iterator[dict[str, Command]]:
    """Two nodes' runners, the first of which leads."""
    (first, its), (second, others) = arguments.items()
    with Command(*its, **more) as leading:
        leading.wait_for("started")
        with Command(*others, **more) as waiting:
            waiting.wait_for("waiting")
            yield {first: leading, second: waiting}


def test_a_cron_job_runs_on_the_leading_node_only(url: str, tmp_path: Path) -> None:
    crontab = (EXAMPLES / "cron/crontab").read_text()
    (line,) = re.findall(r"^\*/5 \* \* \* \*  (.*)$", crontab, re.MULTILINE)
    (asked_path,) = re.findall(r"^LEADING=http://127\.0\.0\.1:8008(/.*)$", crontab, re.MULTILINE)
    runners = {name: exec_start("cron-leader.service", name) for name in ("node-1", "node-2")}
    addresses: dict[str, str] = {}

    def fire() -> list[str]:
        done = tmp_path / "done"
        done.write_text("")
        for name, address in addresses.items():
            job = line.replace("/usr/local/bin/clean-up", f"echo {name} >>{done}")
            leading = f"http://{address}{asked_path}"
            subprocess.run(["sh", "-c", job], env={**os.environ, "LEADING": leading}, check=False)
        return done.read_text().split()

    asked = {name: with_json(each, "sleep", "60") for name, each in runners.items()}
    with two(asked, LEADERSHIP_STORE=url) as nodes:
        for name, node in nodes.items():
            (health,) = [told for told in node.events if told["event"] == "health"]
            addresses[name] = health["address"]
        assert fire() == ["node-1"]
        nodes["node-1"].send(signal.SIGTERM)
        nodes["node-2"].wait_for("started")
        assert fire() == ["node-2"]


@pytest.mark.long
def test_beat_sends_tasks_from_the_leading_node_only(url: str, tmp_path: Path) -> None:
    text = (EXAMPLES / "celery_beat" / "tasks.py").read_text()
    (command,) = re.findall(r"^ +leadership (run .*?\n.*?)$", text, re.MULTILINE)
    logs = {name: tmp_path / f"{name}.log" for name in ("node-1", "node-2")}
    runners = {}
    for name, log in logs.items():
        words = shlex.split(command.replace("\\\\\n", " ").replace("$HOSTNAME", name))
        words[words.index("--store") + 1] = url
        celery = words[words.index("--") + 1 :]
        assert celery[0] == "celery"
        celery[celery.index("--schedule") + 1] = str(tmp_path / f"{name}-schedule")
        beat = shlex.join([sys.executable, "-m", *celery])
        runners[name] = with_json(words, "sh", "-c", f"exec {beat} >{log} 2>&1")
    more = {"BROKER_URL": "memory://", "PYTHONPATH": str(EXAMPLES / "celery_beat")}

    def sends(name: str) -> bool:
        return logs[name].exists() and "Sending due task" in logs[name].read_text()

    with two(runners, **more) as nodes:
        wait_until(lambda: sends("node-1"), 60, "the first beat's task")
        assert not logs["node-2"].exists()
        nodes["node-1"].send(signal.SIGTERM)
        nodes["node-2"].wait_for("started")
        nodes["node-1"].status()
        before = logs["node-1"].read_text()
        wait_until(lambda: sends("node-2"), 60, "the second beat's task")
        assert logs["node-1"].read_text() == before


def test_one_apscheduler_works_and_the_next_takes_over(url: str, tmp_path: Path) -> None:
    text = (EXAMPLES / "apscheduler_jobs.py").read_text()
    (job,) = re.findall(r"^ +print\(name, term\.token, flush=True\)$", text, re.MULTILINE)
    # A job that takes a while, so that one is under way at the end of the term.
    ended = job.replace("print(name", 'threading.Event().wait(1) or print("ended", name')
    slow = tmp_path / "apscheduler_jobs.py"
    slow.write_text(text.replace(job, f"{job}\n{ended}"))
    # One pipe for both, in which their lines are in the order in which they were written.
    reading, writing = os.pipe()
    with open(reading) as lines, ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[bytes]:
            program = [sys.executable, str(slow), url, name]
            # The scheduler says there that a job which still runs is not begun again.
            process = subprocess.Popen(program, stdout=writing, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        first = start("a")
        told = [lines.readline().split()]
        second = start("b")
        os.close(writing)
        with new_store(url) as store:
            # Read as they are written, so that the last one has just begun.
            while len(store.list("jobs/scheduler")) < 2 or told[-1][0] == "ended":
                told.append(lines.readline().split())
        first.terminate()
        while told[-1][-2] == "a":
            told.append(lines.readline().split())
        second.terminate()
        told += [line.split() for line in lines]
        assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    names = [line[-2] for line in told]
    assert names == sorted(names)
    tokens = [int(line[-1]) for line in told]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 2
    assert len([line for line in told if line[0] == "ended"]) * 2 == len(told)


@contextmanager
def fastapi_application(url: str, address: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(EXAMPLES / "fastapi_app.py"), url, address]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def order(address: str) -> dict[str, Any]:
    """What the application says, as soon as it listens."""
    asked = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--data", "{}"),
            *("--retry", "60", "--retry-delay", "1", "--retry-connrefused"),
            f"http://{address}/orders",
        ],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    answer: dict[str, Any] = json.loads(asked.stdout)
    return answer


def test_the_leader_answers_whichever_fastapi_application_is_asked(url: str) -> None:
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with fastapi_application(url, first) as leading, fastapi_application(url, second) as waiting:
        before = order(first)
        assert order(second) == before
        leader, other = (leading, waiting) if before["taken_by"] == first else (waiting, leading)
        leader.terminate()
        assert leader.communicate(timeout=PATIENCE)[1] == ""
        left = second if leader is leading else first
        after = order(left)
        assert after["taken_by"] == left
        assert after["token"] > before["token"]
        other.terminate()
        assert other.communicate(timeout=PATIENCE)[1] == ""


def test_the_systemd_unit_runs_its_program_where_it_leads(url: str, tmp_path: Path) -> None:
    ended, ready = tmp_path / "ended", tmp_path / "ready"
    # The shell would tell of its own child's end where our reports are.
    serve = (
        f"exec 2>{os.devnull}; trap 'echo yes >{ended}; exit 0' TERM; touch {ready}; "
        "while :; do sleep 0.05; done"
    )
    arguments = with_json(exec_start("web.service", "node-1"), "sh", "-c", serve)
    with Command(*arguments, LEADERSHIP_STORE=url) as runner:
        assert runner.wait_for("elected")["id"] == "node-1"
        wait_until(ready.exists, what="the program")
        # What KillMode=mixed sends, and to whom.
        runner.send(signal.SIGTERM)
        runner.wait_for("released")
        assert ended.read_text() == "yes\n"
        assert "killed" not in [told["event"] for told in runner.events]
    unit = (EXAMPLES / "systemd" / "web.service").read_text()
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(patience) > float(arguments[arguments.index("--grace") + 1]) > 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["web.service", "cron-leader.service"])
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    text = (EXAMPLES / "systemd" / unit).read_text()
    # It looks for the programs, too.
    text = re.sub(r"/usr/local/bin/(leadership|serve)", "/bin/sh", text)
    file = tmp_path / unit
    file.write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unit not in verified.stderr, verified.stderr


def test_a_pod_of_the_deployment_runs_and_answers_its_probes(url: str) -> None:
    deployment, service = yaml.safe_load_all(
        (EXAMPLES / "kubernetes" / "deployment.yaml").read_text()
    )
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    probes: dict[str, dict[str, Any]] = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")
    }
    assert {ports[probe["port"]] for probe in probes.values()} == {8008}

    program, *words = container["command"]
    assert program == "leadership"
    known = {"POD_NAME": "web-0", "POD_IP": "10.0.0.1"}
    words = [re.sub(r"\$\((\w+)\)", lambda name: known[name[1]], word) for word in words]
    words = [word.replace("0.0.0.0:8008", "127.0.0.1:0") for word in words]
    with Command(*with_json(words, "sleep", "60"), LEADERSHIP_STORE=url) as runner:
        address = runner.wait_for("health")["address"]
        runner.wait_for("started")
        for probe in probes.values():
            subprocess.run(
                ["curl", "--silent", "--fail", f"http://{address}{probe['path']}"],
                stdout=subprocess.DEVNULL,
                check=True,
            )
    grace = int(next(word for word in words if word.startswith("--grace=")).partition("=")[2])
    assert pod["spec"]["terminationGracePeriodSeconds"] > grace


def test_the_program_of_docker_leadership_leads_and_follows(url: str) -> None:
    program = [sys.executable, "-W", "error", str(EXAMPLES / "from_docker_leadership.py")]
    with new_store(url) as store, Candidate(store, "service/swarm/leader", "other") as other:
        other.campaign(timeout=PATIENCE)
        with subprocess.Popen(
            [*program, url, "node-1"], stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            late = threading.Timer(PATIENCE, running.kill)
            late.start()
            # In two threads: which of them prints first is not said.
            first = {running.stdout.readline().strip() for _ in range(2)}
            assert first == {"leader: other", "elected: False"}
            other.stop()
            rest = [line.strip() for line in running.stdout]
            assert [line for line in rest if line.startswith("elected")] == ["elected: True"]
            late.cancel()
    assert running.returncode == 0


def test_the_program_of_kazoo_leads(zookeeper: ZooKeeperClient) -> None:
    printed = [line.split() for line in ran("from_kazoo.py", zookeeper.url, "a")]
    assert [(line[0], line[-1]) for line in printed] == [("a", "0"), ("a", "1"), ("a", "2")]
    assert len({token for _, token, *_ in printed}) == 1


def test_the_program_of_tooz_leads_and_locks(url: str) -> None:
    first, second, third = ran("from_tooz.py", url, "host-1")
    assert first == "leader: None"
    assert second.startswith("elected: host-1 ")
    assert third.startswith("locked: ")


def test_every_recipe_is_listed_and_every_example_is_linked() -> None:
    pages = [*RECIPES.glob("*.md"), RECIPES.parent / "load-balancers.md"]
    listed = (RECIPES / "README.md").read_text()
    for page in pages:
        assert page.name == "README.md" or page.name in listed
    linked = "".join(page.read_text() for page in pages)
    examples = [each for each in EXAMPLES.rglob("*") if each.is_file() and each.suffix != ".pyc"]
    assert [each.name for each in examples if each.name not in linked] == []
