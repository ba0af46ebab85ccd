"""`leadership top`: the elections in the terminal, which is left as it was found."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .demo_screen import terminal
from .reporting import printable
from .store import Store
from .survey import Look, SeenElection, Survey

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

HEADINGS = ("election", "leader", "token", "term age", "lease left", "waiting")

# Columns that a terminal of this width has room for, beside who leads what.
_NEEDS = {"token": 56, "term age": 36, "lease left": 56, "waiting": 72}

_KEYS = {"q": "quit", "Q": "quit", "j": "down", "k": "up", "\x1b[B": "down", "\x1b[A": "up"}
_KEYS |= {"\x1b[6~": "page down", "\x1b[5~": "page up", " ": "page down", "\x03": "quit"}

# A second that passes must be seen in time.
_REDRAW = 0.5

# For leases, where only one table is printed.
_PATIENCE = 1.0


def show(store: Store, survey: Survey) -> int:
    """Show the survey until somebody has seen enough; without a terminal once. The exit status."""
    console = terminal()
    if console is None:
        _print_table(store.core.call(_measured, survey))
        return 0
    from rich.live import Live

    with (
        _keys() as pressed,
        _watching(store, survey) as latest,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        first = 0
        while True:
            look = latest()
            room = max(1, console.size.height - 5)
            first = max(0, min(first, len(look.elections) - room))
            live.update(_drawn(survey, look, console, first, room), refresh=True)
            match pressed(_REDRAW):
                case "quit":
                    return 0
                case "down":
                    first += 1
                case "up":
                    first -= 1
                case "page down":
                    first += room
                case "page up":
                    first -= room


async def _look(survey: Survey) -> Look:
    return survey.look()


async def _measured(survey: Survey) -> Look:
    """One round of asking for leases, as far as the store tells them in time."""
    deadline = survey.clock.now() + _PATIENCE
    async with contextlib.aclosing(survey.looks(_PATIENCE)) as looks:
        async for look in looks:
            asked = {each.lease for each in look.elections if each.term and each.lease}
            if asked <= look.lease_ends.keys() or look.at >= deadline:
                return look
    return survey.look()


@contextlib.contextmanager
def _watching(store: Store, survey: Survey) -> Iterator[Callable[[], Look]]:
    """While somebody looks, leases are asked for too; gives what is known at each call."""

    async def keep_looking() -> None:
        async with contextlib.aclosing(survey.looks(_REDRAW)) as looks:
            async for _ in looks:
                pass

    looking = store.core.start(keep_looking)
    try:
        yield lambda: store.core.call(_look, survey)
    finally:
        looking.cancel()


# --- what is shown ---


def lasting(seconds: float) -> str:
    """A duration, in the two largest units."""
    s = max(0, int(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    if s < 86400:
        return f"{s // 3600} h {s // 60 % 60:02} min"
    return f"{s // 86400} d {s // 3600 % 24} h"


def row(election: SeenElection, look: Look) -> tuple[str, ...]:
    """What stands under the headings; "?" is what the store does not tell."""
    term, waiting = election.term, election.waiting
    shown_waiting = "?" if waiting is None else str(len(waiting))
    if waiting:
        shown_waiting += f": {', '.join(printable(name) for name in waiting[:5])}"
    if term is None:
        last = election.past[0].ended if election.past else None
        age = "-" if last is None else f"none for {lasting(look.at - last)}"
        return printable(election.key), "-", "-", age, "-", shown_waiting
    age = ("" if term.began_exactly else "> ") + lasting(look.at - term.began)
    ends = look.lease_ends.get(election.lease)
    left = "?" if ends is None else f"{max(0.0, ends - look.at):.1f} s"
    return printable(election.key), printable(term.value), str(term.token), age, left, shown_waiting


def _print_table(look: Look) -> None:
    rows = [HEADINGS, *(row(each, look) for each in look.elections)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEADINGS) - 1)]
    for line in rows:
        *cells, last = line
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        sys.stdout.write("  ".join((*padded, last)) + "\n")


def _drawn(survey: Survey, look: Look, console: Console, first: int, room: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = look.elections[first : first + room]
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold")
    # In 80 columns what stands first is most worth its room.
    ratios = {"election": 6, "leader": 5, "waiting": 3}
    headings = [each for each in HEADINGS if console.width >= _NEEDS.get(each, 0)]
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in ("token", "lease left") else "left",
            ratio=ratios.get(heading),
            no_wrap=True,
            overflow="ellipsis",
        )
    for each in shown:
        style = "red" if each.term is None else None
        told = dict(zip(HEADINGS, row(each, look), strict=True))
        # What all have in common stands above.
        told["election"] = told["election"].removeprefix(f"{printable(survey.prefix)}/")
        cells = [Text(told[heading]) for heading in headings]
        if each.term is not None:
            cells[1].stylize("bold green")
        table.add_row(*cells, style=style)
    led = sum(each.term is not None for each in look.elections)
    address = f"{survey.address.scheme}://{','.join(survey.address.endpoints)}"
    where = f"{address} {survey.prefix}/" if survey.prefix else address
    title = Text(f"leadership  {printable(where)}", style="bold", no_wrap=True, overflow="ellipsis")
    if look.cut_since is None:
        number = len(look.elections) + look.left_out
        counted = f"{number} election{'' if number == 1 else 's'}, {led} led"
        state = Text(counted, no_wrap=True, overflow="ellipsis")
    else:
        cut = f"cut off from the store for {lasting(look.at - look.cut_since)}: {look.trouble}"
        state = Text(printable(cut), style="bold red", no_wrap=True, overflow="ellipsis")
    below = len(look.elections) - first - len(shown)
    hidden = f"   {first} above, {below} below" if first or below else ""
    keys = Text(f"q quits, arrows scroll{hidden}", style="dim", no_wrap=True)
    blanks = [Text("")] * max(0, room - max(1, len(shown)))
    nothing = "no election here yet" if look.cut_since is None else "nothing is known yet"
    body: list[Any] = [table] if shown else [Text(nothing, style="dim")]
    return Group(title, state, *body, *blanks, keys)


# --- the keyboard ---


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """Keys without a return after them; gives what waits for one for some seconds.

    What cannot be read that way (stdin is no terminal, or this is no POSIX)
    leaves Ctrl-C.
    """
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, AttributeError, ValueError, OSError, termios.error):
        never: queue.SimpleQueue[str] = queue.SimpleQueue()
        idle = threading.Event()
        yield lambda seconds: never.get() if idle.wait(seconds) else None
        return

    def pressed(seconds: float) -> str | None:
        if not select.select([descriptor], [], [], seconds)[0]:
            return None
        typed = os.read(descriptor, 64).decode(errors="replace")
        # Nothing at all: the terminal has gone.
        return _KEYS.get(typed, typed[:1] and _KEYS.get(typed[:1])) if typed else "quit"

    try:
        tty.setcbreak(descriptor)
        mode = termios.tcgetattr(descriptor)
        # Whoever is stopped here would leave the terminal as it is now.
        mode[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, mode)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
