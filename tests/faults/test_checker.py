"""The checker of histories: it proves nothing if it lets a broken one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import checker, history
from .__main__ import main
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


def test_the_command_checks_a_file_again_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, broken = tmp_path / "sound.jsonl", tmp_path / "broken.jsonl"
    history.write(sound, ACCEPTED["a removed leader goes on for as long as a watch takes"])
    history.write(broken, REJECTED["the register takes an older token"][1])
    assert main(["check", str(sound)]) == 0
    told = capsys.readouterr().out
    assert "1 rounds, 1 faults, 1 leader changes, 0 register writes, 0 rejected, 0 viol" in told
    assert "1  entry removed" in told
    assert main(["check", str(sound), str(broken)]) == 1
    assert "the register is fenced: 7 of a accepted after 8" in capsys.readouterr().out
