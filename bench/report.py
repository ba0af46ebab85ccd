"""What a run has shown: a table for the terminal, and a file that keeps every value."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.entrants import Role
from bench.figures import Figure, Figures, Of, shown
from bench.machine import Machine


def write_json(path: Path, machine: Machine, figures: Figures) -> None:
    """Every row with its values, and the machine."""
    rows = [
        {
            **msgspec.to_builtins(row),
            "median": row.median if row.values else None,
            "p99": row.p99 if row.has_p99 else None,
            "largest": max(row.values, default=None),
            "times_floor": figures.ratio(row, Role.FLOOR),
            "times_ours": figures.ratio(row, Role.OURS),
            "missed": [f"{bar.of} <= {bar.limit}" for bar in figures.misses(row)],
        }
        for row in figures.rows
    ]
    report = {"machine": msgspec.to_builtins(machine), "rows": rows}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


def show(console: Console, machine: Machine, figures: Figures) -> None:
    """Write the table: what is compared stands together, with both ratios."""
    table = Table(title=str(machine), title_justify="left", caption=_caption(figures))
    for name in ("", "n", "median", "p99", "x floor", "x ours", "bar"):
        table.add_column(name, justify="left" if name in ("", "bar") else "right")
    for rows in figures.compared():
        what, store = rows[0].what, rows[0].store
        table.add_section()
        table.add_row(Text(f"{what}, {store}" if store else what, style="bold"))
        for row in rows:
            _add(table, figures, row)
    console.print(table)


def _add(table: Table, figures: Figures, row: Figure) -> None:
    size = "" if row.size is None else f"{row.size:>6,}  "
    table.add_row(
        f"  {size}{row.subject}",
        str(len(row.values)) if row.values else "-",
        shown(row.median, row.unit),
        _p99(row),
        _ratio(figures.ratio(row, Role.FLOOR)),
        "" if row.role is Role.FLOOR else _ratio(figures.ratio(row, Role.OURS)),
        _verdict(figures, row),
        style="bold cyan" if row.role is Role.OURS else None,
    )


def _p99(row: Figure) -> str:
    if len(row.values) < 2:
        return ""
    return shown(row.p99, row.unit) + ("" if row.has_p99 else " max")


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _verdict(figures: Figures, row: Figure) -> Text:
    text = Text(row.note, style="dim")
    for bar in row.bars:
        missed = bar in figures.misses(row)
        limit = f"{bar.limit:g}" if bar.of is Of.RATIO else shown(bar.limit, row.unit)
        text.append(" " if text else "")
        text.append(f"{bar.of} ≤ {limit}", style="not dim")
        text.append(" MISSED" if missed else " ✓", style="red" if missed else "green")
    return text


def _caption(figures: Figures) -> str:
    bars = sum(len(row.bars) for row in figures.rows)
    missed = sum(len(figures.misses(row)) for row in figures.rows)
    return f"{bars - missed} of {bars} bars met"
