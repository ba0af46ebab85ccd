"""Each rule of the peers core is needed: without it, something is caught."""

from __future__ import annotations

import pytest

from . import (
    quorum_worlds,
    test_quorum_lease,
    test_quorum_members,
    test_quorum_storage,
    test_quorum_terms,
)
from .quorum_mutant_table import MUTANTS, is_caught

MODULES = (test_quorum_lease, test_quorum_members, test_quorum_storage, test_quorum_terms)
DIRECTED = [rule for rule, mutant in MUTANTS.items() if mutant.directed]
SEEDED = [rule for rule, mutant in MUTANTS.items() if mutant.seed is not None]
REDUNDANT = [rule for rule, mutant in MUTANTS.items() if mutant.redundant]


@pytest.mark.parametrize("rule", DIRECTED)
def test_a_directed_test_fails_without_the_rule(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[rule]
    monkeypatch.setattr(quorum_worlds, "NODE", mutant.node)
    for part in ("Acceptor", "Timing"):
        kind = getattr(mutant.node, f"{part.lower()}_kind", None)
        if kind is not None:
            monkeypatch.setattr(test_quorum_lease, part, kind)
    name = f"test_{mutant.directed}"
    [test] = [vars(module)[name] for module in MODULES if hasattr(module, name)]
    first = {
        mark.args[0]: mark.args[1][0]
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "parametrize"
    }
    # `pytest.raises` fails with an exception of its own, which is no AssertionError.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(**first)


@pytest.mark.parametrize("rule", SEEDED)
def test_a_schedule_catches_that_the_rule_is_missing(rule: str) -> None:
    mutant = MUTANTS[rule]
    assert mutant.seed is not None
    # Where the core changed so that this seed no longer does, another one will.
    assert is_caught(mutant, mutant.seed) or any(
        is_caught(mutant, seed) for seed in range(mutant.within)
    )


def test_each_rule_has_its_proof() -> None:
    assert {*DIRECTED, *SEEDED, *REDUNDANT} == set(MUTANTS)
