"""One server process: started, paused, killed, and never left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launch.py")

# "Die with your parent" means with the parent's *thread*, so every server is started by
# one thread that lives as long as this process, whoever asks for the start.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


class ServerDiedError(RuntimeError):
    """The server ended by itself."""


class ServerProcess:
    """A server of which only one process runs at a time."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def is_running(self) -> bool:
        # poll() also reaps: a killed process that nobody reaped still answers signal 0.
        return self._process is not None and self._process.poll() is None

    @property
    def is_paused(self) -> bool:
        return self.is_running and self._paused

    def start(self, command: Sequence[str]) -> None:
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already")
        self._process = _starter.submit(self._spawn, command).result()
        self._paused = False

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pause(self) -> None:
        self._running().send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        """SIGKILL; return when the process is gone. A process that is gone already is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self, grace: float = 5.0) -> None:
        """SIGTERM, and SIGKILL if the server has not ended after ``grace`` seconds."""
        if self._process is None or not self.is_running:
            return
        # A stopped process takes SIGTERM only once it runs again.
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def require_running(self) -> None:
        """Raise :exc:`ServerDiedError`, with the end of the log, if the server has ended."""
        if not self.is_running:
            code = None if self._process is None else self._process.returncode
            raise ServerDiedError(f"{self.name} ended with status {code}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.is_running:
            raise RuntimeError(f"{self.name} is not running")
        return self._process
