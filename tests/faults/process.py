"""A candidate's process, seen from outside: started, paused, killed, told what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.servers.programs import CHECKOUT

from .contender import Wish

_DIES_WITH_US = (sys.executable, "-I", "-S", str(CHECKOUT / "tests" / "servers" / "launch.py"))

GRACE = 20.0
"""Seconds for a process to stop and leave before it is killed."""


class Process:
    """One run of `tests.faults.contender`.

    Args:
        wish: what it does.
        log: where its complaints go.
        prefix: a command to run it under.
        environment: variables in addition to ours.
    """

    def __init__(
        self,
        wish: Wish,
        log: Path,
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = wish.name
        self.wish = wish
        self._paused = False
        arguments = ["-m", "tests.faults.contender", msgspec.json.encode(wish).decode()]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*prefix, *_DIES_WITH_US, str(os.getpid()), sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=CHECKOUT,
                env={**os.environ, **(environment or {})},
                # A terminal's Ctrl-C is for us, who end the round in order.
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def is_contending(self) -> bool:
        """Whether it runs, is not paused, and has come as far as its first record."""
        return self.is_running and not self._paused and self.has_started

    @property
    def has_started(self) -> bool:
        record = Path(self.wish.record)
        return record.exists() and record.stat().st_size > 0

    def order(self, line: str) -> None:
        """Have the leader do it; a process that is gone does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def pause(self) -> None:
        """SIGSTOP."""
        self._paused = True
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._leave()

    def terminate(self) -> None:
        """SIGTERM: it finishes its work and stops."""
        self._process.terminate()

    def wait(self) -> bool:
        """Wait for an end that is under way; False if it takes too long: then it is killed."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return False
        finally:
            self._leave()
        return True

    def _leave(self) -> None:
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
