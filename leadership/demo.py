"""`leadership demo`: three processes elect a leader, lose it twice, and the hand-overs are timed.

This process directs; each candidate is a process of its own,
`python -m leadership.demo KEY NAME TTL`, which finds the store in the
environment, tells what it sees as JSON lines and obeys the lines `resign`
and end of input. So when the director dies the candidates leave too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import Candidate, Follower, Store, new_store
from .backend import Capability
from .checks import checked_ttl
from .clock import SystemClock
from .demo_screen import Row, Screen, screen
from .errors import ConfigurationError, LeadershipError
from .events import Event, TtlGranted

NAMES = ("a", "b", "c")

# Generous: the demo shall fail where something is wrong, not where a machine is busy.
_PATIENCE = 15.0

# For whoever watches; no step waits for it.
_PAUSE = 1.0

_clock = SystemClock()


def peers_urls(ttl: float) -> tuple[str, dict[str, str]]:
    """The director's store, and the candidates': three nodes on this machine, and no server."""
    with contextlib.ExitStack() as sockets:
        ports = []
        for _ in NAMES:
            one = sockets.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    # One machine has one wall clock, so there is no difference to wait for.
    members = f"peers://{','.join(addresses)}?ttl_ceiling={ttl:g}&wall_clock_skew=0&bootstrap=1"
    listening = {
        name: f"{members}&listen={address}" for name, address in zip(NAMES, addresses, strict=True)
    }
    return f"{members}&observe=1", listening


class DemoFailedError(Exception):
    """Something that an election promises did not happen."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a candidate told of."""

    name: str
    event: str
    fields: dict[str, Any]


class _Player:
    """One candidate's process, seen from the director."""

    def __init__(self, url: str, key: str, name: str, ttl: float) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leadership.demo", key, name, str(ttl)],
            # In the environment, for the address may hold a password.
            env={**os.environ, "LEADERSHIP_STORE": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C is the director's matter.
            start_new_session=True,
        )

    def listen(self, tell: Callable[[_Told], None]) -> None:
        """Pass on what it tells, on a thread, and that it has ended."""
        threading.Thread(target=self._listen, args=[tell], daemon=True).start()

    def _listen(self, tell: Callable[[_Told], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                fields = json.loads(line)
                tell(_Told(self.name, fields.pop("event"), fields))
        tell(_Told(self.name, "ended", {"status": self.process.wait()}))

    def order(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def dismiss(self) -> None:
        """Have it stop, release and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> None:
        """Be sure that it has ended."""
        self.dismiss()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Demo:
    """The whole play.

    Args:
        store: where the director looks.
        urls: the store of each candidate, by its name.
        ttl: seconds.

    Raises:
        ConfigurationError: it cannot be shown on this store, or with this ttl.
    """

    def __init__(self, store: Store, urls: Mapping[str, str], ttl: float) -> None:
        backend = store.core.backend
        if backend.address.scheme == "memory":
            raise ConfigurationError(
                "memory:// is shared inside one process, and the demo has several: "
                "use a server's, such as etcd://127.0.0.1:2379"
            )
        self.key = f"leadership-demo/{secrets.token_hex(4)}"
        self._ttl = checked_ttl(ttl, backend)
        self._store = store
        self._urls = urls
        self._told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        self._players: dict[str, _Player] = {}
        self._rows: dict[str, Row] = {}
        self._tokens: list[int] = []
        self._resigning_at: float | None = None

    def run(self) -> int:
        """Play, clean up, and return the exit status."""
        with screen(self.key) as self._screen:
            try:
                self._play(self._screen)
            except DemoFailedError as error:
                self._screen.say(f"FAILED: {error}")
                return 1
            finally:
                # All first, so that they leave side by side.
                for player in self._players.values():
                    player.dismiss()
                for player in self._players.values():
                    player.end()
        return 0

    def _play(self, screen: Screen) -> None:
        screen.say(f"three processes contend for {self.key}, ttl {self._ttl:g} s")
        begun = _clock.now()
        for name in NAMES:
            player = self._players[name] = _Player(self._urls[name], self.key, name, self._ttl)
            self._rows[name] = Row(name, player.process.pid, "waits")
            player.listen(self._told.put)
        first, at = self._next_leader()
        screen.say(f"{first} leads {at - begun:.2f} s after the start of the processes")
        self._pause()

        killed_at = _clock.now()
        self._players[first].process.kill()
        screen.say(f"SIGKILL to {first}, process {self._players[first].process.pid}")
        second, at = self._next_leader()
        screen.say(
            f"hand-over after SIGKILL: {second} leads {at - killed_at:.2f} s later "
            f"(the ttl is {self._ttl:g} s, counted from {first}'s last renewal)"
        )
        self._pause()

        screen.say(f"{second} resigns")
        self._players[second].order("resign")
        third, at = self._next_leader()
        # Told by another process, so perhaps after its successor's word.
        while self._resigning_at is None:
            self._hear(_clock.now() + _PATIENCE, f"{second}'s word that it resigns")
        took = (at - self._resigning_at) * 1000
        screen.say(f"hand-over after resign: {third} leads {took:.1f} ms later")
        self._pause()
        self._leave(first)
        screen.say("all have left, and nothing is kept of it")

    def _leave(self, killed: str) -> None:
        left = [player for name, player in self._players.items() if name != killed]
        for player in left:
            player.dismiss()
        while any(self._rows[player.name].standing != "has left" for player in left):
            self._hear(_clock.now() + _PATIENCE, "the candidates' end")
        if Capability.KV not in self._store.capabilities:
            # There is no store but the processes, and they have ended.
            return
        remaining = [pair.key for pair in self._store.list(self.key)]
        if remaining or Follower(self._store, self.key).leader() is not None:
            raise DemoFailedError(f"the store still has entries: {remaining}")

    def _next_leader(self) -> tuple[str, float]:
        """Who leads next, and since when."""
        deadline = _clock.now() + self._ttl + _PATIENCE
        while True:
            told = self._hear(deadline, "a new leader")
            if told.event == "leads":
                return told.name, told.fields["at"]

    def _pause(self) -> None:
        deadline = _clock.now() + _PAUSE
        while _clock.now() < deadline:
            try:
                told = self._told.get(timeout=max(0.0, deadline - _clock.now()))
            except queue.Empty:
                return
            self._note(told)

    def _hear(self, deadline: float, what: str) -> _Told:
        try:
            told = self._told.get(timeout=max(0.0, deadline - _clock.now()))
        except queue.Empty:
            raise DemoFailedError(f"{what} did not come in time") from None
        self._note(told)
        return told

    def _note(self, told: _Told) -> None:
        row = self._rows[told.name]
        match told.event:
            case "leads":
                token = told.fields["token"]
                if self._tokens and token <= self._tokens[-1]:
                    raise DemoFailedError(f"token {token} came after {self._tokens[-1]}")
                self._tokens.append(token)
                row.standing, row.token = "leads", token
            case "waits":
                row.standing, row.token = "waits", None
            case "resigning":
                self._resigning_at = told.fields["at"]
            case "ttl":
                self._ttl = told.fields["granted"]
                self._screen.say(f"the store grants a ttl of {self._ttl:g} s at least")
            case "failed":
                raise DemoFailedError(f"{told.name}: {told.fields['error']}")
            case "ended":
                row.token = None
                status = told.fields["status"]
                row.standing = "has left" if status == 0 else f"ended by signal {-status}"
                if status > 0:
                    raise DemoFailedError(f"{told.name} ended with status {status}")
        self._screen.show(self._rows.values())


def _say(event: str, **fields: Any) -> None:
    line = json.dumps({"event": event, "at": _clock.now(), **fields}) + "\n"
    # A director that died hears nothing, and that is no reason to leave in disorder.
    with contextlib.suppress(OSError):
        os.write(1, line.encode())


def _obey(candidate: Candidate, leaving: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "resign":
            _say("resigning")
            candidate.resign()
    # For a run that has not begun yet a stop means nothing.
    leaving.set()
    candidate.stop()


def _candidate(key: str, name: str, ttl: str) -> None:
    def hook(event: Event) -> None:
        if isinstance(event, TtlGranted):
            _say("ttl", granted=event.granted)

    # What the library logs is told by the director.
    logging.getLogger("leadership").addHandler(logging.NullHandler())
    try:
        with new_store(os.environ["LEADERSHIP_STORE"], hooks=[hook]) as store:
            candidate = Candidate(store, key, name, float(ttl))
            leaving = threading.Event()
            threading.Thread(target=_obey, args=[candidate, leaving], daemon=True).start()
            for elected in candidate.run_for_election():
                if leaving.is_set():
                    break
                term = candidate.term
                if elected and term is not None:
                    _say("leads", token=term.token)
                else:
                    _say("waits")
    except LeadershipError as error:
        _say("failed", error=str(error))


if __name__ == "__main__":
    _candidate(*sys.argv[1:])
