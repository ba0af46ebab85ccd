"""What goes to a guardian when there is much of it, and when it does not listen."""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import tracemalloc
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from leadership import Candidate, new_store
from leadership.backend import ReleasePlan
from leadership.backends import _etcd_release
from leadership.guardian import Guardian
from leadership.guardian import guardian as guardian_here
from leadership.guardian_outbox import Outbox

from .guarded import READY
from .programs import python
from .servers.etcd_client import EtcdClient
from .waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")


def plan(number: int, **more: Any) -> ReleasePlan:
    """As of an election with a session of its own."""
    arguments = {"endpoints": ["127.0.0.1:1"], "lease": number, "tls": None, "token": "t" * 200}
    return ReleasePlan(_etcd_release.release, {**arguments, **more})


class Guarded:
    """A guardian of this process, apart from the one that candidates here use."""

    def __init__(self) -> None:
        self.trouble: list[str] = []
        self.guardian = Guardian()
        self._use = self.guardian.use(self.trouble.append)
        assert self.guardian.wait_ready(READY)

    @property
    def pid(self) -> int:
        pid = self.guardian.process_id
        assert pid is not None
        return pid

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", what="it to stand still")

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait_idle(self, size: int = 0) -> None:
        """Until it has taken all that was said before, and a plan of so many bytes.

        That it cannot have that one shows that it was told of it.
        """

        def unknown(arguments: Mapping[str, Any]) -> None: ...

        told = len(self.trouble)
        number = self.guardian.guard(ReleasePlan(unknown, {"filling": "x" * size}), 1.0)
        wait_until(lambda: len(self.trouble) > told, READY, f"its answer to {size} bytes")
        self.guardian.forget(number)

    def memory(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.go_on()
        self.guardian.leave(self._use).result(READY)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    made = Guarded()
    yield made
    made.close()


def test_for_one_that_stands_still_nothing_heaps_up(guarded: Guarded) -> None:
    number: int | None = None

    def churn(times: int) -> None:
        nonlocal number
        for turn in range(times):
            number = guarded.guardian.guard(plan(turn), 60.0, number)
            guarded.guardian.forget(guarded.guardian.guard(plan(-turn), 60.0))
            guarded.guardian.extend(turn)

    guarded.stop()
    # More than the socket holds.
    churn(2000)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        churn(2000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000


@pytest.mark.parametrize("size", [1, 3000, 200_000, 3_000_000])
def test_a_plan_of_any_size_reaches_it(guarded: Guarded, size: int) -> None:
    guarded.wait_idle(size)


def test_where_there_is_no_room_to_write_a_plan_down_that_is_said(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", no_room)
    guarded.guardian.guard(plan(1, filling="x" * 10_000), 60.0)
    assert guarded.trouble == ["it could not be told how to release: Too many open files"]


def test_a_plan_that_could_not_be_told_is_told_when_another_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    outbox = Outbox(told.append)

    def send(message: bytes, descriptors: Sequence[int]) -> bool:
        told.append(marshal.loads(message)[0])
        return True

    def no_room(name: str) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr(os, "memfd_create", no_room)
        outbox.hold(b"x" * 10_000, 60.0)
        assert outbox.flush(send)
    outbox.hold(b"x" * 10_000, 60.0)
    assert outbox.flush(send)
    outbox.hold(b"x" * 10_000, 60.0)
    assert outbox.flush(send)
    assert told == ["it could not be told how to release: Too many open files", "guard"]


def test_ten_thousand_plans_of_their_own_cost_it_little(guarded: Guarded) -> None:
    guarded.wait_idle()
    before = guarded.memory()
    numbers = [guarded.guardian.guard(plan(number), 60.0) for number in range(10_000)]
    wait_until(lambda: guarded.memory() - before > 1_000_000, READY, "it to know them")
    guarded.wait_idle()
    # Each of 300 bytes.
    assert guarded.memory() - before < 10_000 * 1000
    for number in numbers:
        guarded.guardian.forget(number)


def test_a_guardian_that_stands_still_when_it_is_asked_for_a_command_is_replaced() -> None:
    """In a program of its own: when a guardian has died, all that descends from us is ended."""
    printed = python(
        """
    import os, signal
    from leadership import guarded_child
    from leadership.clock import SystemClock
    from leadership.guardian import Guardian

    guarded_child._START = 0.3
    guardian = Guardian()
    use = guardian.use(print)
    assert guardian.wait_ready(30)
    former = guardian.process_id
    os.kill(former, signal.SIGSTOP)
    try:
        guarded_child.GuardedChild(
            guardian, "/bin/true", ["true"], {}, SystemClock().now() + 60
        )
    except guarded_child.GuardianDiedError:
        print("died")
    while not guardian.wait_ready(30) or guardian.process_id == former:
        pass
    child = guarded_child.GuardedChild(
        guardian, "/bin/true", ["true"], {}, SystemClock().now() + 60
    )
    print(child.wait())
    guardian.leave(use).result(30)
    """
    )
    assert printed == "died\n0\n"


@pytest.mark.parametrize(
    "elections", [pytest.param(100), pytest.param(10_000, marks=pytest.mark.long)]
)
def test_elections_that_share_a_session_are_one_plan_and_their_renewals_no_message(
    etcd: EtcdClient, monkeypatch: pytest.MonkeyPatch, elections: int
) -> None:
    said: list[bytes] = []
    send = Outbox.flush

    def listened(outbox: Outbox, take: Any) -> bool:
        def telling(message: bytes, descriptors: Sequence[int]) -> bool:
            said.append(message)
            taken: bool = take(message, descriptors)
            return taken

        return send(outbox, telling)

    monkeypatch.setattr(Outbox, "flush", listened)
    prefix = f"guardian/{uuid.uuid4().hex}"
    with new_store(etcd.url) as store:
        candidates = [
            Candidate(store, f"{prefix}/{number}", "a", 6, guardian=True)
            for number in range(elections)
        ]
        terms = [each.campaign(120) for each in candidates]
        assert guardian_here().wait_ready(READY)
        last = terms[-1]
        until = last.valid_until
        wait_until(lambda: last.valid_until > until + 3, READY, "some renewals")
        assert all(term.is_valid() for term in terms)
        assert len(said) == 1
