"""A leader that sleeps past its term, and the register that refuses its late write.

``python fenced_writes.py STORE`` (Linux and macOS)

Two processes lead in turn, and write to one table of SQLite. The first one has
just seen that its term holds when it is stopped, as by a machine that swaps.
When it goes on, the second has led and written. Nothing in the first one could
have kept its late write back: the register does, by the token.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from leadership import Candidate, Term, new_store

KEY = "jobs/register"
TTL = 3  # seconds


class Register:
    """A value, and the greatest token that has written it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._connected() as table:
            table.execute("CREATE TABLE IF NOT EXISTS register (value TEXT, token INTEGER)")
            table.execute(
                "INSERT INTO register SELECT '', 0 WHERE NOT EXISTS (SELECT * FROM register)"
            )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._file)) as connection, connection:
            yield connection

    def write(self, value: str, token: int) -> bool:
        """Write, unless a greater token has written before; whether it did."""
        with self._connected() as table:
            # Compared and written in one statement: nothing comes between.
            changed = table.execute(
                "UPDATE register SET value = ?, token = ? WHERE token <= ?", (value, token, token)
            )
            return changed.rowcount == 1

    def read(self) -> tuple[str, int]:
        """The value and its token."""
        with self._connected() as table:
            value, token = table.execute("SELECT value, token FROM register").fetchone()
            return value, token


def write(register: Register, name: str, term: Term) -> None:
    outcome = "accepted" if register.write(f"by the {name}", term.token) else "refused"
    print(f"the {name} writes: {outcome}", flush=True)


def sleeper(url: str, register: Register) -> None:
    with new_store(url) as store:
        candidate = Candidate(store, KEY, "first", ttl=TTL)
        with candidate.campaign() as term:
            write(register, "first", term)
            term.check()  # it holds
            os.kill(os.getpid(), signal.SIGSTOP)  # stands still here, for longer than its ttl
            write(register, "first", term)  # ... and does not know it
            print(f"the first leads: {candidate.is_leader()}", flush=True)


def successor(url: str, register: Register) -> None:
    with new_store(url) as store, Candidate(store, KEY, "second", ttl=TTL).campaign() as term:
        write(register, "second", term)


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "register.db"
        register = Register(file)
        with subprocess.Popen([sys.executable, __file__, url, str(file)]) as first:
            try:
                os.waitpid(first.pid, os.WUNTRACED)  # until it has stopped itself
                successor(url, register)
            finally:
                first.send_signal(signal.SIGCONT)
        value, _ = register.read()
        print(f"the register holds what was written {value}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sleeper(sys.argv[1], Register(Path(sys.argv[2])))
