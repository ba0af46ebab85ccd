"""What the demo shows: a live table on a terminal, and else a line for each change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live


@dataclass(slots=True)
class Row:
    """One candidate, as it is now."""

    name: str
    pid: int
    standing: str
    token: int | None = None


class Screen(Protocol):
    """Where the demo is shown."""

    def say(self, sentence: str) -> None:
        """What happens, in words."""

    def show(self, rows: Iterable[Row]) -> None:
        """How all candidates stand now."""


class PlainScreen:
    """One line at a time, for pipes and files."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[str, int | None]] = {}

    def say(self, sentence: str) -> None:
        sys.stdout.write(sentence + "\n")
        sys.stdout.flush()

    def show(self, rows: Iterable[Row]) -> None:
        for row in rows:
            now = (row.standing, row.token)
            if self._before.get(row.name) != now:
                self._before[row.name] = now
                token = "" if row.token is None else f", token {row.token}"
                self.say(f"    {row.name} (process {row.pid}) {row.standing}{token}")


class LiveScreen:
    """A table that stays, with the sentences above it."""

    def __init__(self, live: Live, title: str) -> None:
        self._live = live
        self._title = title

    def say(self, sentence: str) -> None:
        self._live.console.print(sentence, markup=False, highlight=False)

    def show(self, rows: Iterable[Row]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._title))
        for heading in ("candidate", "process", "standing", "token"):
            table.add_column(heading, justify="right" if heading == "token" else "left")
        for row in rows:
            token = "" if row.token is None else str(row.token)
            style = "bold green" if row.token is not None else None
            table.add_row(row.name, str(row.pid), row.standing, token, style=style)
        self._live.update(table, refresh=True)


@contextlib.contextmanager
def screen(title: str) -> Iterator[Screen]:
    """The best screen that stdout allows."""
    console = terminal()
    if console is None:
        yield PlainScreen()
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        yield LiveScreen(live, title)


def terminal() -> Console | None:
    """The terminal that stdout is, if rich can draw on it."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console()
    return console if console.is_terminal and not console.is_dumb_terminal else None
