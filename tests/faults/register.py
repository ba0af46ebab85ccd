"""The resource that leaders write to: it takes no token that is older than one it has seen.

One line in, `token process`; one line back, `1` or `0`.
"""

from __future__ import annotations

import shutil
import socket
import socketserver
import tempfile
import threading
from pathlib import Path
from typing import Self

from leadership.clock import SystemClock

from .history import Recorder, Registered

PATIENCE = 5.0
"""Seconds for which a writer waits for an answer."""

_CLOCK = SystemClock()


class Register:
    """Serves on a socket of its own for the time of a `with` block.

    Args:
        record: where it writes down what it did, in the order in which it did it.
    """

    def __init__(self, record: Path) -> None:
        self._recorder = Recorder(record)
        self._lock = threading.Lock()
        self._highest = 0
        self.owner: str | None = None
        self.accepted = 0
        self.rejected = 0
        # A socket's path has at most 100 characters, which a test's own folder may exceed.
        self._folder = Path(tempfile.mkdtemp(prefix="register-"))
        self.path = self._folder / "socket"
        self._server = _Server(str(self.path), _Connection)
        self._server.register = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def write(self, token: int, process: str) -> bool:
        """Write, unless somebody with a greater token has."""
        with self._lock:
            accepted = token >= self._highest
            if accepted:
                self._highest, self.owner = token, process
                self.accepted += 1
            else:
                self.rejected += 1
            self._recorder.write(Registered(_CLOCK.now(), process, token, accepted))
            return accepted

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    register: Register


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        try:
            for line in self.rfile:
                token, process = line.decode().split()
                accepted = self.server.register.write(int(token), process)
                self.wfile.write(b"1\n" if accepted else b"0\n")
        except OSError:
            # A writer that was killed.
            return


class RegisterClient:
    """A writer's connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def write(self, token: int, process: str) -> bool:
        """Whether it was accepted."""
        self._socket.sendall(f"{token} {process}\n".encode())
        answer = self._answers.readline()
        if not answer:
            raise ConnectionError("the register is gone")
        return answer == b"1\n"

    def close(self) -> None:
        """Done."""
        self._answers.close()
        self._socket.close()
