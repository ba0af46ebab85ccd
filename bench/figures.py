"""What was measured: rows of numbers, the bars that they must meet, and what they are beside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bench.entrants import Role


class Of(StrEnum):
    """What of a row a bar is about."""

    MEDIAN = "median"
    P99 = "p99"
    RATIO = "x floor"


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit from the design; the row misses it when it is above."""

    of: Of
    limit: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: who, at what, and every value that was measured.

    Attributes:
        what: is measured; rows with the same `what`, `store` and `size` are compared.
        store: and on which.
        subject: who was measured.
        role: what `subject` is to us.
        unit: of the values: `s`, `B`, `/s`, or "" for a count.
        values: one for each trial; none where nothing could be measured.
        size: of how many elections, candidates or followers, where that grows.
        bars: all must be met.
        note: what a reader has to know, such as where the row was cut.
        failed: the measuring itself did.
    """

    what: str
    store: str
    subject: str
    role: Role
    unit: str
    values: tuple[float, ...]
    size: int | None = None
    bars: tuple[Bar, ...] = ()
    note: str = ""
    failed: bool = False

    def with_values(self, values: Iterable[float], note: str = "") -> Figure:
        """The same row, measured."""
        return replace(self, values=tuple(values), note=note or self.note)

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else math.nan

    @property
    def p99(self) -> float:
        """The value that 99 % do not exceed; of fewer than 100 trials, the largest."""
        ordered = sorted(self.values)
        return ordered[math.ceil(len(ordered) * 0.99) - 1] if ordered else math.nan

    @property
    def has_p99(self) -> bool:
        """Whether there were trials enough for one."""
        return len(self.values) >= 100


class Figures:
    """All rows of one run, and how they compare."""

    def __init__(self, rows: Iterable[Figure] = ()) -> None:
        self.rows = list(rows)

    def compared(self) -> list[list[Figure]]:
        """The rows that stand together, and within those by size; the first measured is first."""
        groups: dict[tuple[str, str], list[Figure]] = {}
        for row in self.rows:
            groups.setdefault((row.what, row.store), []).append(row)
        ordered = dict.fromkeys(what for what, _ in groups)
        return [
            sorted(rows, key=lambda row: row.size or 0)
            for each in ordered
            for (what, _), rows in groups.items()
            if what == each
        ]

    def beside(self, row: Figure, role: Role) -> Figure | None:
        """The first row of that role that `row` is compared with."""
        key = (row.what, row.store, row.size)
        for other in self.rows:
            if (other.what, other.store, other.size) == key and other.role is role:
                return other
        return None

    def ratio(self, row: Figure, role: Role) -> float | None:
        """How many times the median of that role's row this one is; None: there is none."""
        other = self.beside(row, role)
        if other is None or other is row or not other.values or not row.values:
            return None
        return row.median / other.median if other.median else None

    def measured(self, row: Figure, bar: Bar) -> float:
        """What of the row the bar is about; NaN where that was not measured."""
        if bar.of is Of.RATIO:
            ratio = self.ratio(row, Role.FLOOR)
            return math.nan if ratio is None else ratio
        return row.median if bar.of is Of.MEDIAN else row.p99

    def misses(self, row: Figure) -> list[Bar]:
        """The bars that the row does not meet, those among them that nothing was measured for."""
        return [bar for bar in row.bars if not self.measured(row, bar) <= bar.limit]

    def missed(self) -> list[Figure]:
        """The rows that miss a bar, and ours that could not be measured at all."""
        return [
            row for row in self.rows if self.misses(row) or (row.failed and row.role is Role.OURS)
        ]


def shown(value: float, unit: str) -> str:
    """A value for people: three digits and a fitting unit."""
    if math.isnan(value):
        return "-"
    scales = _SCALES.get(unit, ((1.0, unit),))
    scale, name = next((each for each in scales if abs(value) >= each[0]), scales[-1])
    digits = value / scale
    text = f"{digits:.0f}" if digits >= 100 or digits == int(digits) else f"{digits:.3g}"
    return f"{text} {name}".rstrip()


_SCALES: dict[str, Sequence[tuple[float, str]]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}
