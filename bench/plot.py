"""The figures as a picture: a panel for each comparison, on a scale of ratios."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullFormatter

from bench.entrants import Role
from bench.figures import Figure, Figures, shown
from bench.machine import Machine

COLOURS = {Role.FLOOR: "#9a9a9a", Role.OURS: "#0b62a4", Role.RIVAL: "#d98324"}
PANELS_IN_A_ROW = 3


def plot(path: Path, machine: Machine, figures: Figures) -> None:
    """Write an SVG: medians as bars, p99 as a tick, each panel with a logarithmic scale."""
    mpl.rcParams["svg.hashsalt"] = "leadership"
    groups = [[row for row in rows if row.values] for rows in figures.compared()]
    panels = [rows for rows in groups if rows and rows[0].size is None]
    growing = [rows for rows in groups if rows and rows[0].size is not None]
    total = len(panels) + len(growing)
    lines = max(1, -(-total // PANELS_IN_A_ROW))
    picture = Picture(figsize=(6 * PANELS_IN_A_ROW, 2.4 * lines), layout="constrained")
    picture.suptitle(str(machine), fontsize=9)
    axes = iter(picture.subplots(lines, PANELS_IN_A_ROW, squeeze=False).flat)
    for rows in panels:
        _bars(next(axes), rows)
    for rows in growing:
        _lines(next(axes), rows)
    for left in axes:
        left.set_visible(False)
    picture.savefig(path)


def _title(axis: Any, row: Figure) -> None:
    axis.set_title(f"{row.what}, {row.store}" if row.store else row.what, fontsize=8)
    axis.tick_params(labelsize=7)
    for each in (axis.xaxis, axis.yaxis):
        # On a scale of less than ten times they run into each other.
        each.set_minor_formatter(NullFormatter())


def _bars(axis: Any, rows: list[Figure]) -> None:
    names = [row.subject for row in rows]
    heights = [row.median for row in rows]
    colours = [COLOURS[row.role] for row in rows]
    bars = axis.barh(names, heights, color=colours)
    axis.bar_label(bars, [shown(height, rows[0].unit) for height in heights], fontsize=7, padding=3)
    for place, row in enumerate(rows):
        axis.plot(row.p99, place, "|", color="black", markersize=8)
    if min(heights) > 0:
        axis.set_xscale("log")
        axis.set_xlim(min(heights) / 3, max(row.p99 for row in rows) * 5)
    axis.invert_yaxis()
    _title(axis, rows[0])


def _lines(axis: Any, rows: list[Figure]) -> None:
    for subject, its in itertools.groupby(
        sorted(rows, key=lambda row: row.subject), key=lambda row: row.subject
    ):
        points = sorted(its, key=lambda row: row.size or 0)
        axis.plot(
            [row.size for row in points],
            [row.median for row in points],
            "o-",
            color=COLOURS[points[0].role],
            label=subject,
            markersize=3,
        )
    axis.set_xscale("log")
    axis.set_yscale("symlog" if min(row.median for row in rows) <= 0 else "log")
    axis.set_ylabel(rows[0].unit or "count", fontsize=7)
    axis.legend(fontsize=6)
    _title(axis, rows[0])
