"""A WSGI application that is a candidate, served by gunicorn in a process of its own, by threads.

What is under /own answers for this very process; all else is answered by the leader.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from leadership import Candidate, new_store
from leadership.routing import TERM, Policy, WSGIMiddleware, lead
from tests.servers.ports import free_port
from tests.waiting import wait_until

_CHUNK = 65_536


class _Application:
    """Tells what it was asked; it waits, or tells on, until the test says so."""

    def __init__(self, candidate: Candidate, policy: Policy) -> None:
        self.routed = WSGIMiddleware(self, candidate, policy)
        self._candidate = candidate
        self._release = threading.Event()
        self._asked: list[str] = []
        self._closed = 0

    def own(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        act = environ["PATH_INFO"].rpartition("/")[2]
        if act == "stand":
            threading.Thread(target=self._candidate.run, args=[lead], daemon=True).start()
        elif act == "resign":
            threading.Thread(target=self._candidate.resign, daemon=True).start()
        elif act == "release":
            self._release.set()
        state = {
            "leads": self._candidate.is_leader(),
            "waiting": self.routed._router._waiting,
            "asked": self._asked,
            "closed": self._closed,
        }
        told = json.dumps(state).encode()
        start_response("200 OK", [("Content-Length", str(len(told)))])
        return [told]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._asked.append(environ["QUERY_STRING"])
        path = environ["PATH_INFO"]
        fields = [("X-Odd", environ.get("HTTP_X_ODD", "")), ("X-Host", environ["HTTP_HOST"])]
        if path == "/stream":
            start_response("200 OK", fields)
            return self._stream()
        size = 0
        while data := environ["wsgi.input"].read(_CHUNK):
            size += len(data)
        if path == "/wait":
            self._release.wait(30)
        told = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {size} {environ[TERM].token}"
        start_response("200 OK", [*fields, ("Content-Length", str(len(told)))])
        return [told.encode()]

    def _stream(self) -> Iterator[bytes]:
        try:
            yield b"one"
            self._release.wait(30)
            yield b"two"
            while True:
                yield b"x" * _CHUNK
        finally:
            self._closed += 1


def served(
    url: str, key: str, address: str, mode: Literal["forward", "redirect"], wait: float
) -> Any:
    """The application that gunicorn loads, in its worker."""
    candidate = Candidate(new_store(url), key, address, ttl=5)
    application = _Application(candidate, Policy(mode=mode, wait=wait, retry_after=7))

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        to = application.own if environ["PATH_INFO"].startswith("/own/") else application.routed
        return to(environ, start_response)

    return answer


class GunicornNode:
    """The same, seen from the test."""

    def __init__(self, url: str, key: str, mode: str = "forward", wait: float = 30) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._given = (url, key, self.address, mode, wait)

    def url(self, path: str = "/") -> str:
        return f"http://{self.address}{path}"

    def own(self, act: str = "look") -> dict[str, Any]:
        """What this process tells of itself, whoever leads."""
        with urllib.request.urlopen(self.url(f"/own/{act}"), timeout=30) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    def lead(self) -> None:
        self.own("stand")
        wait_until(lambda: self.own()["leads"], what="leadership")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.own())
        return False

    def __enter__(self) -> Self:
        workers = ("--worker-class", "gthread", "--threads", "16", "--graceful-timeout", "1")
        where = ("--bind", self.address, "--no-control-socket", "--log-level", "critical")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", *workers, *where),
                "tests.wsgi_service:served({!r}, {!r}, {!r}, {!r}, {!r})".format(*self._given),
            ],
            cwd=Path(__file__).parent.parent,
        )
        wait_until(self._answers, 40, "gunicorn")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
