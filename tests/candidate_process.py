"""A candidate in a process of its own: what it sees goes out as JSON lines, orders come in.

    python -m tests.candidate_process URL KEY ID TTL [guardian]

Orders, a line each: resign, resign ID, check, guardian, fork, close-descriptors.
Every line out carries `at`, the
machine's CLOCK_BOOTTIME, which all processes share.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from leadership import Candidate, new_store
from leadership.clock import SystemClock
from leadership.errors import NoSuccessor
from leadership.events import (
    Elected,
    Event,
    LeaseRenewed,
    PeerReady,
    PeerRefused,
    Released,
    TermEnded,
    Unguarded,
)
from leadership.guardian import guardian
from tests.waiting import wait_until

_CLOCK = SystemClock()


def _say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"at": _CLOCK.now(), "event": event, **fields}) + "\n")
    sys.stdout.flush()


def _hook(event: Event) -> None:
    if isinstance(event, (Elected, TermEnded, Released)):
        reason = event.reason if isinstance(event, TermEnded) else None
        _say(type(event).__name__.lower(), token=event.token, when=event.at, reason=reason)
    elif isinstance(event, LeaseRenewed):
        _say("renewed", valid_until=event.valid_until)
    elif isinstance(event, PeerReady):
        _say("ready")
    elif isinstance(event, Unguarded):
        _say("unguarded", reason=event.reason)
    elif isinstance(event, PeerRefused):
        _say("refused", sender=event.sender, reason=event.reason)


def _obey(candidate: Candidate) -> None:
    for line in sys.stdin:
        order, _, to = line.strip().partition(" ")
        if order == "resign":
            try:
                _say("resigned", led=candidate.resign(to or None))
            except NoSuccessor:
                _say("refused")
        elif order == "check":
            term = candidate.term
            _say("checked", leader=candidate.is_leader(), token=term.token if term else None)
        elif order == "guardian":
            guardian().wait_ready(20)
            _say("guardian", pid=guardian().process_id)
        elif order == "fork":
            _say("forked", pid=_forked())
        elif order == "close-descriptors":
            _close_what_is_the_guardians()
            _say("closed-descriptors")
    candidate.stop()


def _forked() -> int:
    """A child that goes on by itself, with what a fork gives it."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid


def _close_what_is_the_guardians() -> None:
    """As daemonizing code does to all that is open; then the number is another file's."""
    process = guardian()._process
    assert process is not None
    with open(os.devnull) as other:
        os.dup2(other.fileno(), process._socket.fileno())


def main() -> None:
    # What it has to say it says on stdout.
    logging.getLogger("leadership").addHandler(logging.NullHandler())
    url, key, name, ttl = sys.argv[1:5]
    store = new_store(url, hooks=[_hook])
    candidate = Candidate(store, key, name, ttl=float(ttl), guardian="guardian" in sys.argv[5:])
    threading.Thread(target=_obey, args=[candidate], daemon=True).start()
    for elected in candidate.run_for_election():
        term = candidate.term
        _say("standing", leader=elected, token=term.token if term and elected else None)
    store.close()
    _say("closed")


class CandidateProcess:
    """The same, seen from the test: `wait(event)` for what it says, `order(line)` what it does.

    Args:
        prefix: a command that runs the program somewhere else.
        program: another that speaks the same way, as `python -m` takes it.
    """

    def __init__(
        self,
        url: str,
        key: str,
        name: str,
        ttl: float,
        prefix: Sequence[str] = (),
        program: Sequence[str] = ("tests.candidate_process",),
        *,
        guardian: bool = False,
        **environment: str,
    ) -> None:
        self.name = name
        program = [sys.executable, "-m", *program]
        more = ["guardian"] if guardian else []
        self.process = subprocess.Popen(
            [*prefix, *program, url, key, name, str(ttl), *more],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait(self, event: str, timeout: float = 20, **fields: Any) -> dict[str, Any]:
        """The next line with this event and these fields; earlier ones are passed over."""
        deadline = _CLOCK.now() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - _CLOCK.now()))
            except queue.Empty:
                raise AssertionError(
                    f"{self.name} did not say {event} {fields} within {timeout} s: "
                    f"{self.said[-10:]}"
                ) from None
            assert line, f"{self.name} ended before it said {event} {fields}: {self.said[-10:]}"
            if self._says(line, event, fields):
                return self.said[-1]

    def heard(self, event: str, **fields: Any) -> dict[str, Any] | None:
        """As `wait`, but None where it has not said so yet."""
        with contextlib.suppress(queue.Empty):
            while line := self._lines.get_nowait():
                if self._says(line, event, fields):
                    return self.said[-1]
        return None

    def _says(self, line: str, event: str, fields: dict[str, Any]) -> bool:
        said = json.loads(line)
        self.said.append(said)
        return said["event"] == event and all(said[name] == fields[name] for name in fields)

    def leads(self) -> bool:
        """Whether it has said by now that it leads; what it said stays to be waited for."""
        return any('"standing", "leader": true' in line for line in list(self._lines.queue))

    def guardian(self) -> int:
        """The process id of its guardian, once that is ready."""
        self.order("guardian")
        return int(self.wait("guardian")["pid"])

    def order(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def sleep(self) -> None:
        """SIGSTOP; returns when every thread of it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")

        def all_stand_still() -> bool:
            states = [
                (each / "stat").read_text().rpartition(") ")[2][0] for each in tasks.iterdir()
            ]
            return set(states) == {"T"}

        wait_until(all_stand_still, what="the process to stand still")

    def kill(self) -> float:
        """SIGKILL; the moment it was sent."""
        at = _CLOCK.now()
        self.process.kill()
        self.process.wait()
        return at

    def close(self) -> None:
        """Have it stop and leave, or else kill it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


if __name__ == "__main__":
    main()
