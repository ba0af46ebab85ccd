"""A value that was written is there after any restart; what cannot be written is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from leadership.backends import _peers_state
from leadership.backends._peers_state import StateDirectory, StateUnwritableError
from leadership.errors import ConfigurationError


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path)
    opened.open()
    yield opened
    opened.close()


def after_a_restart(state: StateDirectory, tmp_path: Path) -> Mapping[str, Any]:
    state.close()
    again = StateDirectory(tmp_path)
    values = again.open()
    again.close()
    return values


def test_the_last_values_are_there_again(state: StateDirectory, tmp_path: Path) -> None:
    for term in range(10):
        state.write({"a": term, "b": {"c": [term]}})
    state.write({"a": "last"})
    assert after_a_restart(state, tmp_path) == {"a": "last", "b": {"c": [9]}}


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_torn_last_line_is_dropped(state: StateDirectory, tmp_path: Path, kept: int) -> None:
    state.write({"a": 1})
    whole = (tmp_path / "peers.log").read_bytes()
    state.write({"a": 2})
    (tmp_path / "peers.log").write_bytes((tmp_path / "peers.log").read_bytes()[: len(whole) + kept])
    state.close()
    again = StateDirectory(tmp_path)
    assert again.open() == {"a": 1}
    # A new line does not join the torn one.
    again.write({"a": 3})
    assert after_a_restart(again, tmp_path) == {"a": 3}


def test_a_damaged_file_is_refused_and_left_as_it_is(state: StateDirectory, tmp_path: Path) -> None:
    state.write({"a": 1})
    state.write({"a": 2})
    log = tmp_path / "peers.log"
    damaged = log.read_bytes().replace(b"1", b"7", 1)
    log.write_bytes(damaged)
    state.close()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="add it at another address"):
            StateDirectory(tmp_path).open()
    assert log.read_bytes() == damaged


def test_a_new_directory_outlives_the_machine_as_its_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(_peers_state, "_sync_directory", synced.append)
    state = StateDirectory(tmp_path / "a" / "b")
    state.open()
    state.close()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_the_file_does_not_grow_without_end(state: StateDirectory, tmp_path: Path) -> None:
    for number in range(200):
        state.write({"a": number, "padding": "x" * 10_000})
    assert (tmp_path / "peers.log").stat().st_size < 3 * _peers_state._ROOM
    assert after_a_restart(state, tmp_path)["a"] == 199


def test_a_second_process_is_refused(state: StateDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="another process has it"):
        StateDirectory(tmp_path).open()


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="give a directory"):
        StateDirectory(tmp_path / "file").open()


def test_one_write_is_one_fsync_and_is_durable_at_its_return(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    really = os.fsync

    def counted(file: int) -> None:
        synced.append(file)
        really(file)

    monkeypatch.setattr(os, "fsync", counted)
    for number in range(5):
        state.write({"a": number})
        assert len(synced) == number + 1


def test_what_cannot_be_made_durable_is_refused_and_tried_again(
    state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write({"a": 1})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(StateUnwritableError, match="No space left"):
                state.write({"b": 2})
    state.write({"c": 3})
    assert after_a_restart(state, tmp_path) == {"a": 1, "b": 2, "c": 3}
