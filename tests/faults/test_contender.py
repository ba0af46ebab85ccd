"""What a contender of the faults records."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leadership.events import TermEnded
from tests.waiting import wait_until

from . import history
from .contender import BESIDE, Contender, Wish
from .history import Blocked, Told
from .register import Register


class LeadsWithToken7(Contender):
    def candidate(self) -> Any:
        term = SimpleNamespace(token=7, valid_until=2.5)
        return SimpleNamespace(term=term, is_leader=lambda: False)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def contender(tmp_path: Path, record: Path) -> Iterator[Contender]:
    with Register(tmp_path / "registered") as register:
        made = LeadsWithToken7(Wish("", "key", "a", 1.0, str(record), str(register.path)))
        yield made
        made.register.close()
        made.record.close()


def test_the_end_of_an_equal_token_in_the_other_election_is_not_recorded(
    contender: Contender, record: Path
) -> None:
    contender.hook(TermEnded("key" + BESIDE, 1.0, "a", 7, "it lapsed"))
    contender.hook(TermEnded("key", 2.5, "a", 7, "it lapsed"))
    (told,) = history.read(record)
    assert isinstance(told, Told)
    assert (told.token, told.valid_until) == (7, 2.5)


def test_it_is_known_of_code_that_stands_still_also_where_it_never_goes_on(
    contender: Contender, record: Path
) -> None:
    def is_known() -> bool:
        return any(isinstance(each, Blocked) for each in history.read(record))

    with ThreadPoolExecutor() as pool:
        pool.submit(contender._block, 60)
        pool.submit(contender._beat)
        try:
            wait_until(is_known, 20, "a record of it")
        finally:
            contender.never.set()
