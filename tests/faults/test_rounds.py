"""Rounds of faults on every backend: the checker must find nothing wrong in their histories."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import require_native

from . import history
from .grounds import BACKENDS
from .rounds import Plan, Summary, play

SHORT = 5.0
"""Seconds of faults; the servers' start and the candidates' end come on top."""

LONG = 60.0
"""Seconds: each kind of fault comes at least once."""

each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in BACKENDS]
)


def played(plan: Plan, folder: Path) -> Summary:
    """What came of a round, as its file says."""
    if plan.backend != "peers":
        require_native(plan.backend)
    file = folder / "history.jsonl"
    play(plan, file)
    summary = Summary()
    summary.add(history.read(file))
    return summary


@each_backend
def test_a_short_round_of_faults_breaks_no_guarantee(backend: str, tmp_path: Path) -> None:
    # Another seed for each: a short round has room for a few kinds only.
    seed = 1 + BACKENDS.index(backend)
    summary = played(Plan(backend, seed, seconds=SHORT), tmp_path)
    assert not summary.violations, summary
    # How many there is time for is the machine's to say.
    assert summary.faults, summary
    assert summary.writes > 0, summary


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("clustered", [False, True], ids=["one server", "three servers"])
@each_backend
def test_a_long_round_of_faults_breaks_no_guarantee(
    backend: str, clustered: bool, tmp_path: Path
) -> None:
    summary = played(Plan(backend, seed=2, seconds=LONG, clustered=clustered), tmp_path)
    assert not summary.violations, summary
    assert summary.faults.total() >= 20, summary
    assert summary.changes > 0, summary
