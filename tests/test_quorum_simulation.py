"""The peers core in worlds drawn from seeds; `make simulate SEEDS=100000` plays more of them."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from leadership.backends._quorum_lease import QuorumLease

from .simulation import Violation, draw
from .simulation_faults import simulate

CHUNK = 200


@pytest.mark.parametrize("first", range(0, 1600, CHUNK))
def test_no_schedule_breaks_a_guarantee(first: int) -> None:
    for seed in range(first, first + CHUNK):
        # Shorter than those of `make simulate`, for the sake of number; each seed is a new one.
        plan = dataclasses.replace(draw(seed), faults_until=Random(seed).uniform(2, 6))
        simulate(plan)


def test_a_schedule_is_the_same_each_time() -> None:
    assert simulate(7) == simulate(7)


def test_a_violation_names_its_seed_and_can_be_read_in_the_trace() -> None:
    class Silent(QuorumLease):
        """Never becomes ready."""

        def _become_ready(self, now: float) -> None:
            pass

    lines: list[str] = []
    with pytest.raises(Violation, match="seed 7 "):
        simulate(7, Silent, lines.append)
    assert any("HEALED" in line for line in lines)
    assert "VIOLATION" in lines[-1]


def test_the_plans_differ_in_all_that_the_faults_can_do() -> None:
    plans = [draw(seed) for seed in range(200)]
    assert {plan.nodes for plan in plans} == set(range(2, 8))
    assert {plan.keys for plan in plans} == {1, 2, 3}
    for switch in ("durable", "wild_clocks", "change_members", "lost_disks"):
        assert {getattr(plan, switch) for plan in plans} == {False, True}
