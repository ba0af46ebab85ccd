"""A candidate's process: it contends, and while it leads it writes to the register.

    python -m tests.faults.contender JSON

It records what it sees in a file of its own, and takes orders, a line each:
`resign`; `withdraw SECONDS` (it stops, and contends again after so long);
`expire HOST:PORT` (our session on that ZooKeeper ends). Only a leader obeys:
`block SECONDS` (the user's thread, or event loop, stands still), `seize SECONDS`
(it holds the interpreter, so that no other thread of ours runs), `fork`, `exit`
(the interpreter ends, nothing is stopped).

Beside the election it takes part in another one, of which nothing is recorded:
so its lease or session has another user too.
At the end of its input, and at SIGTERM, it finishes its work and stops.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from leadership import Candidate, aio, new_store
from leadership.candidate import CandidateBase
from leadership.clock import SystemClock
from leadership.election import RESIGNED, STOPPED
from leadership.events import Event, TermEnded
from leadership.signals import telling_signals
from leadership.term import TermBase

from .history import Blocked, Ended, Heard, Read, Recorder, Stalled, Started, Told, Wrote
from .register import RegisterClient

PACE = 0.02
"""Seconds between two steps of a leader's work."""

BESIDE = "-beside"
"""Added to the key: the other election that each candidate takes part in."""

_BEAT = 0.02
_STALL = 0.1
_LAST_WORKS = 3

_CLOCK = SystemClock()

_HOLDING = ctypes.PyDLL(None)
"""The C library, called without letting go of the interpreter."""


class Wish(msgspec.Struct, frozen=True):
    """What a process is started with.

    Attributes:
        record: the file that it records in.
        register: the register's socket.
        asynchronous: contends by `leadership.aio`, on an event loop.
    """

    url: str
    key: str
    name: str
    ttl: float
    record: str
    register: str
    asynchronous: bool = False


class Contender:
    """What the process does on whatever kind of candidate."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.name = wish.name
        self.record = Recorder(Path(wish.record))
        self.register = RegisterClient(wish.register)
        self.draining = threading.Event()
        self.leading = False
        self.away = 0.0
        self._led: int | None = None
        self._blocked_since: float | None = None
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.never = threading.Event()

    def start(self) -> None:
        """Begin to record; orders are taken from now on."""
        self.record.write(Started(_CLOCK.now(), self.name))
        for task in (self._beat, self._listen):
            threading.Thread(target=task, daemon=True).start()

    # --- what a leader does ---

    def lead(self, term: TermBase) -> Iterator[None]:
        """The work of one term, in steps: the caller waits between them."""
        self.leading = True
        self._led = term.token
        try:
            yield from self._work(term)
        finally:
            self.leading = False

    def heard(self) -> None:
        """The user's code comes to the end of its term, if it had one."""
        if self._led is not None:
            self.record.write(Heard(_CLOCK.now(), self.name, self._led))
            self._led = None

    def _work(self, term: TermBase) -> Iterator[None]:
        last_works = _LAST_WORKS
        while self._reads_true(term):
            # A pause most likely falls here. Who comes out of it asks before anything else,
            # and writes whatever it hears: a late write is for the register to turn away.
            yield
            self._reads_true(term)
            self._write(term)
            self._reads_true(term)
            self._obey(term)
            if self.draining.is_set():
                last_works -= 1
            if last_works == 0:
                return

    def _reads_true(self, term: TermBase, forked: bool = False) -> bool:
        before = term.valid_until
        began = _CLOCK.now()
        leader = self.candidate().is_leader()
        at = _CLOCK.now()
        # A renewal may have moved it on meanwhile, and the store's word put an end to it.
        until = max(before, term.valid_until, 0.0)
        self.record.write(Read(at, self.name, term.token, began, leader, until, forked=forked))
        return leader

    def _write(self, term: TermBase) -> None:
        began = _CLOCK.now()
        accepted = self.register.write(term.token, self.name)
        self.record.write(Wrote(_CLOCK.now(), self.name, term.token, began, accepted))

    def _obey(self, term: TermBase) -> None:
        while not self._orders.empty():
            order, _, argument = self._orders.get().partition(" ")
            if order == "block":
                self._block(float(argument))
            elif order == "seize":
                self._seize(term, float(argument))
            elif order == "fork":
                self._fork(term)
            elif order == "exit":
                sys.exit()

    def _block(self, seconds: float) -> None:
        self._blocked_since = _CLOCK.now()
        self.never.wait(seconds)
        self.record.write(Blocked(_CLOCK.now(), self.name, self._blocked_since))
        self._blocked_since = None

    def _seize(self, term: TermBase, seconds: float) -> None:
        """Hold the interpreter, and ask before any other thread has had it again."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        # Who waits for the interpreter already still has the old interval.
        self.never.wait(_BEAT)
        _HOLDING.poll(None, 0, int(1000 * seconds))
        self._reads_true(term)
        sys.setswitchinterval(interval)

    def _fork(self, term: TermBase) -> None:
        child = os.fork()
        if child == 0:
            try:
                for _ in range(100):
                    self._reads_true(term, forked=True)
            finally:
                os._exit(0)
        threading.Thread(target=os.waitpid, args=[child, 0], daemon=True).start()

    # --- what goes on beside it ---

    def hook(self, event: Event) -> None:
        """Record that the end of a term was told; the other election may have equal tokens."""
        if isinstance(event, TermEnded) and event.key == self.wish.key:
            term = self.candidate().term
            if term is not None and term.token == event.token:
                until, willing = term.valid_until, event.reason in (RESIGNED, STOPPED)
                self.record.write(
                    Told(_CLOCK.now(), self.name, term.token, until, event.reason, willing)
                )

    def _beat(self) -> None:
        """Tell when the process stood still; whoever wakes here asks before the engine can act."""
        before = _CLOCK.now()
        while not self.never.wait(_BEAT):
            now = _CLOCK.now()
            stalled = now - before > _STALL
            term = self.candidate().term
            # Another thread of the user's may ask while one stands still.
            blocked_since = self._blocked_since
            if ((stalled and self.leading) or blocked_since is not None) and term is not None:
                self._reads_true(term)
            if blocked_since is not None:
                # Or nobody would know, where it is killed before it goes on.
                self.record.write(Blocked(_CLOCK.now(), self.name, blocked_since))
            if stalled:
                self.record.write(Stalled(now, self.name, before))
            before = now

    def _listen(self) -> None:
        for line in sys.stdin:
            order, _, argument = line.strip().partition(" ")
            if order == "resign":
                self.resign()
            elif order == "withdraw":
                self.away = float(argument)
                self.stop()
            elif order == "expire":
                self._expire(argument)
            else:
                self._orders.put(line.strip())
        self.drain()

    def _expire(self, endpoint: str) -> None:
        """End our session on ZooKeeper, as a client that somehow got hold of its password."""
        # Imported here: it would cost the processes of the other backends a third of their start.
        from tests.zookeeper_elections import end_session, session_of

        end_session(endpoint, session_of(self.candidate()))

    def drain(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Finish the work at hand, then stop."""
        self.draining.set()
        self.stop_beside()
        if not self.leading:
            self.stop()

    # --- what differs ---

    def candidate(self) -> CandidateBase[Any]:
        raise NotImplementedError

    def resign(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def stop_beside(self) -> None:
        """Leave the other election too; it is not waited for."""
        raise NotImplementedError

    def run(self) -> None:
        """Contend until the process is told to stop."""
        raise NotImplementedError


class ThreadContender(Contender):
    """Contends from the main thread."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self._store = new_store(wish.url, hooks=[self.hook])
        self._candidate = Candidate(self._store, wish.key, wish.name, ttl=wish.ttl)
        self._companion = Candidate(self._store, wish.key + BESIDE, wish.name, ttl=wish.ttl)
        # Kept, so that an interpreter's exit finds it open.
        self._elections = self._candidate.run_for_election()

    def run(self) -> None:
        beside = threading.Thread(target=self._run_beside, daemon=True)
        beside.start()
        self._contend()
        while not self.draining.wait(self.away):
            self._elections = self._candidate.run_for_election()
            self._contend()
        beside.join()
        self._store.close()

    def _contend(self) -> None:
        for elected in self._elections:
            if elected:
                term = self._candidate.term
                assert term is not None
                # Not by `wait_lost`: to come back from that the library must run first.
                for _ in self.lead(term):
                    self.never.wait(PACE)
            if not elected or self.draining.is_set():
                self.heard()
            if self.draining.is_set():
                break
        self._elections.close()
        self.heard()

    def _run_beside(self) -> None:
        for _ in self._companion.run_for_election():
            pass

    def candidate(self) -> CandidateBase[Any]:
        return self._candidate

    def resign(self) -> None:
        self._candidate.resign()

    def stop(self) -> None:
        self._candidate.stop()

    def stop_beside(self) -> None:
        threading.Thread(target=self._companion.stop, daemon=True).start()


class LoopContender(Contender):
    """Contends from an event loop."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self._loop = asyncio.new_event_loop()
        self._store = aio.new_store(wish.url, hooks=[self.hook])
        self._candidate = aio.Candidate(self._store, wish.key, wish.name, ttl=wish.ttl)
        self._companion = aio.Candidate(self._store, wish.key + BESIDE, wish.name, ttl=wish.ttl)
        self._elections = self._candidate.run_for_election()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        beside = asyncio.ensure_future(self._run_beside())
        await self._contend()
        while not await asyncio.to_thread(self.draining.wait, self.away):
            self._elections = self._candidate.run_for_election()
            await self._contend()
        await beside
        await self._store.close()

    async def _contend(self) -> None:
        async for elected in self._elections:
            if elected:
                term = self._candidate.term
                assert term is not None
                for _ in self.lead(term):
                    await asyncio.sleep(PACE)
            if not elected or self.draining.is_set():
                self.heard()
            if self.draining.is_set():
                break
        await self._elections.close()
        self.heard()

    async def _run_beside(self) -> None:
        async for _ in self._companion.run_for_election():
            pass

    def candidate(self) -> CandidateBase[Any]:
        return self._candidate

    def resign(self) -> None:
        asyncio.run_coroutine_threadsafe(self._candidate.resign(), self._loop)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._candidate.stop(), self._loop)

    def stop_beside(self) -> None:
        asyncio.run_coroutine_threadsafe(self._companion.stop(), self._loop)


def _mend_sleep() -> None:
    """Under libfaketime 0.9 `time.sleep` raises EINVAL, which ends the threads of kazoo."""
    never = threading.Event()

    def sleep(seconds: float) -> None:
        never.wait(seconds)

    time.sleep = sleep  # type: ignore[assignment]


def main() -> None:
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        _mend_sleep()
    wish = msgspec.json.decode(sys.argv[1], type=Wish)
    contender = LoopContender(wish) if wish.asynchronous else ThreadContender(wish)
    contender.start()
    with telling_signals(contender.drain, signal.SIGTERM):
        contender.run()
    contender.record.write(Ended(_CLOCK.now(), contender.name))


if __name__ == "__main__":
    main()
