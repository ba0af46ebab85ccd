"""The checker of histories: it proves nothing if it lets a broken one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import checker, history
from .checker import violations
from .history import AnyRecord, Recorder
from .planted import ACCEPTED, REJECTED, in_order, reads


@pytest.mark.parametrize(("rule", "planted"), REJECTED.values(), ids=REJECTED)
def test_a_broken_history_is_rejected_by_its_rule_alone(
    rule: str, planted: list[AnyRecord]
) -> None:
    assert {violation.rule for violation in violations(planted)} == {rule}


@pytest.mark.parametrize("planted", ACCEPTED.values(), ids=ACCEPTED)
def test_a_near_miss_is_accepted(planted: list[AnyRecord]) -> None:
    assert violations(planted) == []


def test_every_rule_has_a_planted_history(monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in checker._RULES:
        with monkeypatch.context() as without:
            without.setattr(
                checker, "_RULES", tuple(each for each in checker._RULES if each is not rule)
            )
            missed = [name for name, (_, planted) in REJECTED.items() if not violations(planted)]
        assert missed, f"{rule.__name__} could be removed, and no test would know"


def test_violations_come_in_the_order_of_time() -> None:
    both = [*REJECTED["True after False"][1], *REJECTED["an entry is left behind"][1]]
    found = violations(sorted(both, key=lambda record: record.at))
    assert [violation.at for violation in found] == sorted(violation.at for violation in found)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    for number, (_, planted) in enumerate(REJECTED.values()):
        file = tmp_path / f"{number}.jsonl"
        history.write(file, planted)
        assert history.read(file) == planted


def test_the_line_over_which_a_writer_was_killed_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "torn.jsonl"
    recorder = Recorder(file)
    whole = reads("a", 7, 1.0, 2.0)
    for each in whole:
        recorder.write(each)
    recorder.close()
    with file.open("ab") as torn:
        torn.write(b'{"what":"re')
    assert history.read(file) == whole


def test_several_files_make_one_history_in_the_order_of_time(tmp_path: Path) -> None:
    parts = {"a": reads("a", 7, 1.0, 3.0), "b": reads("b", 8, 2.0, 4.0)}
    for name, records in parts.items():
        history.write(tmp_path / name, records)
    merged = history.merged(tmp_path / name for name in parts)
    assert [record.at for record in merged] == [1.0, 2.0, 3.0, 4.0]
    assert merged == in_order(*parts.values())[1:]
