"""What a contender of the faults records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leadership.events import TermEnded

from . import history
from .contender import BESIDE, Contender, Wish
from .history import Told
from .register import Register


class LeadsWithToken7(Contender):
    def candidate(self) -> Any:
        return SimpleNamespace(term=SimpleNamespace(token=7, valid_until=2.5))


def test_the_end_of_an_equal_token_in_the_other_election_is_not_recorded(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with Register(tmp_path / "registered") as register:
        wish = Wish("", "key", "a", 1.0, str(record), str(register.path))
        contender = LeadsWithToken7(wish)
        contender.hook(TermEnded("key" + BESIDE, 1.0, "a", 7, "it lapsed"))
        contender.hook(TermEnded("key", 2.5, "a", 7, "it lapsed"))
        contender.register.close()
        contender.record.close()
    (told,) = history.read(record)
    assert isinstance(told, Told)
    assert (told.token, told.valid_until) == (7, 2.5)
