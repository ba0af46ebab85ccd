"""A web server in a process of its own that is a candidate, and what it did with its requests.

    python -m tests.routing_node URL KEY TTL PORT RECORD plain|routed

It appends a line to RECORD for each request that its application takes, and one when that is
done. Orders on stdin, a line each: resign. What it says on stdout: ready, won, resigned.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import uvicorn

from leadership.aio import Candidate, Term, new_store
from leadership.clock import SystemClock
from leadership.events import Event, PeerReady
from leadership.routing import TERM, ASGIMiddleware, Policy, lead_async
from tests.waiting import async_wait_until

LONGEST = 0.2
"""Seconds that the application takes for a request at most: so long that changes come between."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was recorded.

    Attributes:
        what: received, or done.
        at: when, in seconds on the clock that all processes share. A request is received at
            the look that lets it in: the middleware's last one, or just before a plain
            server's own. Whoever looks can be stopped between that and its next step.
        written_at: when it was recorded; no other process recorded anything meanwhile.
        elected_at: since when the term that it was received under held, on the same clock.
        deadline: until when it held at the longest, as far as was known.
    """

    what: str
    id: str
    method: str
    token: int
    at: float
    written_at: float
    elected_at: float
    deadline: float


class LookedAt(SystemClock):
    """The machine's clock, and when each thread looked at it last."""

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.local()

    def now(self) -> float:
        self._own.last = now = super().now()
        return now

    @property
    def last(self) -> float:
        """Seconds on the clock."""
        last: float = self._own.last
        return last


_CLOCK = LookedAt()


class Recorder:
    """The resource: lines of a file, which all processes append to, in the order they arrive."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, id: str, method: str, term: Term, at: float) -> None:
        # A file of one's own opening is locked against those of others.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            line = Line(
                what, id, method, term.token, at, _CLOCK.now(), term.elected_at, term.valid_until
            )
            os.write(self._file, (json.dumps(asdict(line)) + "\n").encode())
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class Application:
    """Records each request under the term that it is answered under."""

    def __init__(self, recorder: Recorder, candidate: Candidate) -> None:
        self._recorder = recorder
        self._candidate = candidate
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        await self._idle.wait()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        term: Term | None
        if TERM in scope:
            # Nothing but the middleware has looked since, on this thread.
            term, received_at = scope[TERM], _CLOCK.last
        else:
            term, received_at = self._candidate.term, _CLOCK.now()
            if term is not None and not term.is_valid():
                term = None
        if term is None:
            await _answer(send, 421)
            return
        name = scope["query_string"].decode()
        self._recorder.write("received", name, scope["method"], term, received_at)
        self._working += 1
        self._idle.clear()
        try:
            while (await receive()).get("more_body"):
                pass
            # By its name, so that requests which began together do not end together.
            await asyncio.sleep(LONGEST * int(name[:2], 16) / 255)
            self._recorder.write("done", name, scope["method"], term, _CLOCK.now())
            await _answer(send, 200)
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()


async def _answer(send: Any, status: int) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def _serve(url: str, key: str, ttl: str, port: str, record: str, kind: str) -> None:
    def hook(event: Event) -> None:
        if isinstance(event, PeerReady):
            _say("peer ready")

    store = new_store(url, hooks=[hook], clock=_CLOCK)
    candidate = Candidate(store, key, f"127.0.0.1:{port}", ttl=float(ttl))
    application: Any = Application(Recorder(record), candidate)
    app = application
    if kind == "routed":
        app = ASGIMiddleware(application, candidate, Policy(wait=40))

    async def work(term: Term) -> None:
        _say("won")
        await lead_async(term)

    async def lead_plainly() -> None:
        async for elected in candidate.run_for_election():
            if elected:
                _say("won")
                assert candidate.term is not None
                await candidate.term.wait_lost()
                await application.idle()

    server = uvicorn.Server(
        uvicorn.Config(app, port=int(port), log_level="critical", lifespan="off")
    )
    serving = asyncio.create_task(server.serve())
    await async_wait_until(lambda: server.started, 30, "the web server")
    leads = candidate.run(work) if kind == "routed" else lead_plainly()
    leading = asyncio.create_task(leads)
    _say("ready")
    async for order in _orders():
        if order == "resign":
            await candidate.resign()
            _say("resigned")
    server.should_exit = True
    await candidate.stop()
    await asyncio.gather(serving, leading)
    await store.close()


async def _orders() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


class RoutingNode:
    """The same, seen from the test."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self._words: list[str] = []
        self._said: Counter[str] = Counter()
        self._some = threading.Condition()
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.arguments[3]}"

    def start(self) -> None:
        self._words.clear()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.routing_node", *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self._reader = threading.Thread(target=self._read, args=[self.process], daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._some:
                self._words.append(line.strip())
                self._said[line.strip()] += 1
                self._some.notify_all()

    def said(self, word: str) -> int:
        """How often it has said so, in all its lives."""
        return self._said[word]

    def wait(self, word: str, timeout: float = 40) -> None:
        """Wait for it, and forget it and what was said before."""
        with self._some:
            assert self._some.wait_for(lambda: word in self._words, timeout), (
                f"{self.address} did not say {word!r}, but {self._words}"
            )
            del self._words[: self._words.index(word) + 1]

    def resign(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("resign\n")
        self.process.stdin.flush()
        self.wait("resigned")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._end()

    def _end(self) -> None:
        assert self.process is not None
        self.process.wait()
        self._reader.join(10)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def close(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
