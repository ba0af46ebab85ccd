"""The program `leadership` as a process, seen from a test."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from typing import IO, Any, Self

import pytest

from leadership.cli import main
from leadership.clock import SystemClock

_CLOCK = SystemClock()

PROGRAM = (sys.executable, "-m", "leadership")

# Long enough for a busy machine; a command that hangs fails its test.
PATIENCE = 30.0


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change the program's behaviour."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LEADERSHIP_")}
    return {**kept, **more}


def leadership(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; `more` is added to the environment."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=PATIENCE,
        check=False,
    )


def leadership_here(
    capture: pytest.CaptureFixture[str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """As `leadership`, in this process: for what ends by itself, without another one's start."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    written = capture.readouterr()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(arguments, ended.value.code, written.out, written.err)


class Command:
    """The running program, whose output is read line by line."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
            start_new_session=True,
        )
        self.events: list[dict[str, Any]] = []
        self._output = _Lines(self.process.stdout)
        self._errors = _Lines(self.process.stderr)

    def line(self) -> str:
        """The next line of its stdout."""
        line = self._output.next(PATIENCE)
        assert line is not None, f"it ended: {self._errors.rest()}"
        return line

    def lines(self) -> list[str]:
        """Its end awaited: the lines of its stdout that nobody has asked for yet."""
        self.status()
        return self._output.rest()

    def wait_for(self, event: str) -> dict[str, Any]:
        """With --json: the next event of this name on its stderr; others are passed over."""
        while True:
            line = self._errors.next(PATIENCE)
            assert line is not None, f"it ended before {event!r}: {self.events}"
            assert line.startswith("{"), f"no JSON: {line}"
            told: dict[str, Any] = json.loads(line)
            self.events.append(told)
            if told["event"] == event:
                return told

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def press(self, number: signal.Signals) -> None:
        """Signal its process group, as a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, number)

    def status(self) -> int:
        """Wait for its end."""
        return self.process.wait(PATIENCE)

    def errors(self) -> list[str]:
        """Its end awaited: what it wrote to stderr that nobody has asked for yet."""
        self.status()
        return self._errors.rest()

    def told(self) -> list[str]:
        """Its end awaited: the names of all that it told."""
        self.events += [json.loads(line) for line in self.errors()]
        return [event["event"] for event in self.events]

    def close_output(self) -> None:
        """Go away as the reader of its stdout."""
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._output.close()
        self._errors.close()


class _Lines:
    """A pipe's lines, read on a thread, so that waiting for one can end."""

    def __init__(self, pipe: IO[str] | None) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pending = b""
        source = self._pipe.fileno()
        while True:
            ready, _, _ = select.select([source, self._stop_read], [], [])
            if self._stop_read in ready:
                break
            data = os.read(source, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._lines.put(line.decode())
        self._lines.put(None)

    def next(self, timeout: float) -> str | None:
        """The next line, None at the end."""
        if self._ended:
            return None
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"nothing was written within {timeout} s") from None
        self._ended = line is None
        return line

    def rest(self) -> list[str]:
        """All lines until the end."""
        lines = []
        while (line := self.next(PATIENCE)) is not None:
            lines.append(line)
        return lines

    def close(self) -> None:
        if not self._pipe.closed:
            os.write(self._stop_write, b"x")
            self._thread.join()
            self._pipe.close()
            os.close(self._stop_read)
            os.close(self._stop_write)
