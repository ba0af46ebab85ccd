"""What a command tells on stderr: one line at each change, for people or, as JSON, for programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import threading


def printable(text: str) -> str:
    """`text` on one line: control characters, which could act on a terminal, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Reporter:
    """Writes lines on a thread of its own: a reader that reads nothing must hold up nobody.

    Args:
        as_json: one JSON object a line, instead of a sentence.
        descriptor: the open file to write to; stderr if not given.
    """

    def __init__(self, as_json: bool, descriptor: int = 2) -> None:
        self._as_json = as_json
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="leadership-reporter", daemon=True)
        self._thread.start()

    def say(self, event: str, sentence: str, **fields: object) -> None:
        """Tell of `event`: its name and fields, or else the sentence. Never blocks or raises."""
        if self._as_json:
            plain = {name: _as_json_value(value) for name, value in fields.items()}
            self._lines.put(json.dumps({"event": event, **plain}))
        else:
            self._lines.put(f"leadership: {printable(sentence)}")

    def close(self, timeout: float = 1.0) -> None:
        """Wait until all is written, but not longer than `timeout` seconds."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            left = (line + "\n").encode(errors="replace")
            # Not `sys.stderr`: the lock of a write that hangs would stop the interpreter's exit.
            # And whoever closed our stderr does not want to know.
            with contextlib.suppress(OSError):
                while left:
                    left = left[os.write(self._descriptor, left) :]


def _as_json_value(value: object) -> object:
    # JSON has no infinity, which the deadline of an ended session is.
    return None if isinstance(value, float) and not math.isfinite(value) else value
