"""Where a contender and its lease tell that a term is over: before it has begun, or after."""

from __future__ import annotations

from collections.abc import Callable

from .term import TermBase


class Loss:
    """Ends one term.

    Args:
        end: ends the term, for this reason.

    Attributes:
        term: what is lost, once it has begun.
        early: the reason, where it was lost before that.
    """

    __slots__ = ("_end", "early", "term")

    def __init__(self, end: Callable[[TermBase, str], None]) -> None:
        self._end = end
        self.term: TermBase | None = None
        self.early: str | None = None

    def __call__(self, reason: str) -> None:
        if self.term is None:
            self.early = reason
        else:
            self._end(self.term, reason)
