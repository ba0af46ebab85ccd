"""A wall clock of a process's own, by libfaketime; the other clocks it reads are the machine's."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers.programs import servers_folder

DELAY = 1.0
"""Seconds for which a step may not be noticed."""


class WallClock:
    """What the processes with this environment take for the time of the day.

    Args:
        file: a file of its own, which libfaketime reads now and then.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)

    def step(self, seconds: int) -> None:
        """It is so much later for them than for us, `DELAY` seconds from now at the latest."""
        # Replaced as a whole: the reader may come at any moment.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # A Java machine asks for the time so often that it cannot read a file each time.
            "FAKETIME_CACHE_DURATION": f"{DELAY:g}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # With it, what Java waits for by the clock that is not faked never comes.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }


def _library() -> Path:
    return servers_folder() / "lib" / "libfaketimeMT.so.1"


def can_be_stepped() -> bool:
    """Whether this machine lets us."""
    return os.name == "posix" and _library().exists()
