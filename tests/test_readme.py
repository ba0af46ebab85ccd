"""The README's examples run, and its trees and lists are the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from leadership import Candidate, Store, errors, events, new_store
from leadership.backend import Backend
from leadership.clock import SystemClock
from leadership.testing import BackendConformance

from .peers_cluster import backend_of
from .servers.etcd_client import EtcdClient
from .servers.ports import free_port
from .waiting import wait_until

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
CLOCK = SystemClock()
ADDRESS = "etcd://127.0.0.1:2379"

EXAMPLES = dict(re.findall(r"<!-- ([\w-]+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))

Names = dict[str, Any]


class Example:
    """One block, run as it stands but for the store's address and what it leaves to the reader."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.printed: list[Any] = []
        self.names: Names = {"__name__": "readme", "print": self._print}
        self.at_print: Callable[[], object] = lambda: None

    def _print(self, *what: Any) -> None:
        self.printed.append(what)
        self.at_print()

    def run(self, name: str) -> Names:
        return self.run_code(name, EXAMPLES[name].replace(ADDRESS, self.url))

    def run_code(self, name: str, code: str) -> Names:
        try:
            exec(compile(code, f"README.md: {name}", "exec"), self.names)
        finally:
            for value in list(self.names.values()):
                if isinstance(value, Store):
                    value.close()
        return self.names


def on_free_ports(code: str) -> tuple[str, list[str]]:
    """An example with three nodes on this machine, and their addresses here."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    for number, address in enumerate(addresses, start=7001):
        code = code.replace(f"127.0.0.1:{number}", address)
    return code, addresses


@pytest.fixture
def example() -> Example:
    return Example(f"memory://{uuid.uuid4()}")


def test_every_example_is_named_and_run() -> None:
    assert TEXT.count("```python") == len(EXAMPLES)
    tested = {test.removeprefix("test_example_").replace("_", "-") for test in globals()}
    assert set(EXAMPLES) <= tested


@pytest.mark.backend("peers")
def test_example_the_loop(tmp_path: Path) -> None:
    # The first thing that anybody tries: from nothing to the third leader in this time.
    deadline = CLOCK.now() + 20
    code, _ = on_free_ports(EXAMPLES["the-loop"])
    program = tmp_path / "lead.py"
    program.write_text(code)
    tokens: queue.Queue[int] = queue.Queue()

    def read(lines: IO[str]) -> None:
        for line in lines:
            tokens.put(int(line.removeprefix("leading, fencing token ")))

    with contextlib.ExitStack() as stack:
        for number in range(3):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(program), str(number)], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            threading.Thread(target=read, args=[process.stdout], daemon=True).start()
        told = [tokens.get(timeout=max(0.0, deadline - CLOCK.now())) for _ in range(3)]
    assert len(set(told)) == 3


def run_the_loop_on_etcd(example: Example) -> None:
    example.at_print = lambda: len(example.printed) == 3 and example.names["candidate"].stop()
    example.run("etcd")
    tokens = [token for _, token in example.printed]
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 3


@pytest.mark.backend("memory")
def test_example_etcd(example: Example) -> None:
    run_the_loop_on_etcd(example)


def test_the_loop_on_etcd(etcd: EtcdClient) -> None:
    run_the_loop_on_etcd(Example(etcd.url))
    assert etcd.ctl("get", "--prefix", "--keys-only", "service/swarm/leader") == ""


@pytest.mark.backend("peers")
def test_example_following(example: Example) -> None:
    code, addresses = on_free_ports(EXAMPLES["following"])
    members = f"peers://{','.join(addresses)}?ttl_ceiling=1&bootstrap=1&wall_clock_skew=0&listen="
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(new_store(members + each)) for each in addresses]
        for store in stores:
            store.core.call(backend_of(store).driver)
        for store in stores:
            store.connect()
        candidate = Candidate(stores[0], "service/swarm/leader", "10.0.0.5:8080", ttl=1)

        def change() -> None:
            if example.printed == [(None,)]:
                candidate.campaign(timeout=10)
            elif len(example.printed) == 2:
                candidate.stop()
            else:
                raise InterruptedError

        example.at_print = change
        with pytest.raises(InterruptedError):
            example.run_code("following", code)
    assert example.printed == [(None,), ("10.0.0.5:8080",), (None,)]


@pytest.mark.backend("peers")
def test_example_members(example: Example, tmp_path: Path) -> None:
    code, addresses = on_free_ports(EXAMPLES["members"])
    members = f"peers://{','.join(addresses)}?ttl_ceiling=1&bootstrap=1&wall_clock_skew=0"
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(
                new_store(members, listen=each, state_dir=str(tmp_path / str(number)))
            )
            for number, each in enumerate(addresses)
        ]
        for store in stores:
            store.core.call(backend_of(store).driver)
        for store in stores:
            store.connect()
        example.run_code("members", code)
    assert example.printed == [
        (tuple(sorted(addresses)),),
        (tuple(sorted(addresses[:2])), (addresses[2],)),
    ]


@pytest.mark.backend("peers")
def test_example_peers(example: Example) -> None:
    code, addresses = on_free_ports(EXAMPLES["peers"])
    with contextlib.ExitStack() as stack:
        for each in addresses[1:]:
            store = stack.enter_context(new_store("peers", addresses, listen=each, ttl_ceiling=2))
            store.core.call(backend_of(store).driver)
        example.run_code("peers", code)
    assert example.printed[0][1] > 0


@pytest.mark.backend("memory")
def test_example_campaign(example: Example) -> None:
    candidate = example.run("campaign")["candidate"]
    assert not candidate.is_leader()


@pytest.mark.backend("memory")
def test_example_run(example: Example) -> None:
    worked: list[int] = []

    def do_a_little(token: int) -> None:
        worked.append(token)
        example.names["candidate"].stop()

    example.names["do_a_little"] = do_a_little
    example.run("run")
    assert len(worked) == 1


@pytest.mark.backend("memory")
def test_example_routing(example: Example) -> None:
    code = EXAMPLES["routing"].replace(ADDRESS, example.url)
    exec(compile(code, "README.md: routing", "exec"), example.names)
    app, candidate = example.names["app"], example.names["candidate"]
    wait_until(candidate.is_leader)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with asyncio.Runner() as runner:
        runner.run(app(scope, None, send))
    assert sent[1]["body"] == f"answered under token {candidate.term.token}".encode()
    candidate.stop()
    example.names["store"].close()


def test_example_fencing(example: Example) -> None:
    register = example.run("fencing")["register"]
    assert register.value == b"by the new leader"
    assert str(example.printed[0][0]) == "token 7 is older than 8"


@pytest.mark.backend("memory")
def test_example_follower(example: Example) -> None:
    example.run("follower")
    assert example.printed[0][0] == "a"


@pytest.mark.backend("memory")
def test_example_aio(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    example.run("aio")
    assert [what[0] for what in example.printed] == [
        "leading, fencing token",
        "a",
        "working under token",
    ]
    asyncio.set_event_loop(None)


@pytest.mark.backend("memory")
def test_example_store(example: Example) -> None:
    example.run("store")
    assert ("somebody was faster",) in example.printed
    assert (["config/colour", "config/lamp"],) in example.printed
    assert example.printed[-1][0].value == b"red"


@pytest.mark.backend("memory")
def test_example_lock(example: Example) -> None:
    lock = example.run("lock")["lock"]
    assert example.printed[0][-1] is True
    assert not lock.is_held()


@pytest.mark.backend("memory")
def test_example_hooks(example: Example) -> None:
    example.run("hooks")
    wait_until(lambda: len(example.printed) >= 2, what="both events")
    assert [what[0] for what in example.printed] == ["elected for", "the term ended:"]


@pytest.mark.backend("memory")
def test_example_health(example: Example) -> None:
    names = example.run("health")
    assert example.printed[0][1] == 200
    assert example.printed[1][0] == 503
    assert b"leadership_transitions_total" in names["health"].answer("/metrics").body


@pytest.mark.backend("memory")
def test_example_testing(example: Example) -> None:
    example.run("testing")


@pytest.mark.backend("memory")
def test_example_faults(example: Example) -> None:
    example.run("faults")
    assert example.printed[0][0] == "cut off:"


def test_example_backend(example: Example) -> None:
    backend = example.run("backend")["MyBackend"]
    assert issubclass(backend, Backend)
    assert not backend.__abstractmethods__


def test_example_conformance(example: Example) -> None:
    kit = example.run("conformance")["TestMyBackend"]
    assert issubclass(kit, BackendConformance)
    with pytest.raises(errors.UnknownBackend):
        kit().make_store()


def test_its_tree_of_errors_is_the_real_one() -> None:
    block = re.search(r"```text\n(LeadershipError\n.*?)```", TEXT, re.DOTALL)
    assert block is not None
    parents: list[str] = []
    shown: dict[str, str] = {}
    for line in block[1].splitlines()[1:]:
        indented, name, rest = re.findall(r"^( +)(\w+)(.*)$", line)[0]
        del parents[len(indented) // 4 - 1 :]
        shown[name] = parents[-1] if parents else "LeadershipError"
        parents.append(name)
        for also in re.findall(r"also an? (\w+)", rest):
            assert also in [base.__name__ for base in getattr(errors, name).__mro__]
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LeadershipError)
    }
    assert shown == {name: base for name, base in real.items() if base != "Exception"}


def test_it_names_every_event() -> None:
    kinds = [
        name
        for name, kind in vars(events).items()
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
    ]
    assert [name for name in kinds if f"`{name}`" not in TEXT] == []
