"""The table of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from .__main__ import main
from .ground import Ground
from .kinds import KINDS
from .lines import Request
from .members import PeersGround, ScatteredPeersGround
from .served import ConsulGround, EtcdGround, ZooKeeperGround


def test_each_kind_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kinds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [kind.name for kind in KINDS]
    assert [line.split("  ")[-1].strip() for line in lines] == [kind.does for kind in KINDS]


def test_no_two_kinds_have_one_name() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_each_request_that_a_store_knows_has_kinds_of_its_own() -> None:
    grounds: tuple[type[Ground], ...] = (EtcdGround, ConsulGround, ZooKeeperGround, PeersGround)
    known: set[str] = set()
    for each in grounds:
        requests: dict[str, Request] = dict(each.requests)
        known.update(requests)
    for request in known:
        assert len([kind for kind in KINDS if kind.name.startswith(request)]) >= 4


def test_a_fault_of_one_candidate_leaves_the_store_alone() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    assert by_name["killed"].concerns_one
    assert by_name["half-open both ways"].concerns_one
    assert by_name["two members cut from each other"].concerns_one
    for name in ("members killed", "server killed", "entry removed", "servers cut from each other"):
        assert not by_name[name].concerns_one


def test_no_wall_clock_is_stepped_where_all_members_may_forget_at_once(tmp_path: Path) -> None:
    (stepped,) = (kind for kind in KINDS if kind.name == "wall clock stepped")
    assert stepped.possible(ScatteredPeersGround(tmp_path))
    assert not stepped.possible(ScatteredPeersGround(None))
