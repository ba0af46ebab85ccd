"""The names of election entries, and the order that they stand for.

The server appends a counter to a name, ten digits of a signed 32-bit number.
Past 2^31 - 1 it wraps to the negative, or stands still, depending on the
moment; then only the transaction that made the entry (czxid) tells who was
first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class NodeNames:
    """One recipe's way to name entries.

    Attributes:
        prefix: what stands around our unique id, before the counter.
        contender: finds the counter in a contender's name.
    """

    prefix: str
    dashed: bool
    contender: re.Pattern[str]

    def unique(self, session: int, attempt: int) -> str:
        """A name that no other attempt has, but for the counter.

        Args:
            session: the session's id, so that a node of an older one cannot be taken for ours.
            attempt: 64 random bits.
        """
        digits = f"{session & (1 << 64) - 1:016x}{attempt:016x}"
        if self.dashed:
            parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
            digits = "-".join(parts)
        return self.prefix.format(digits)

    def counter(self, name: str) -> int | None:
        """The counter in a contender's name; None for a stranger's node."""
        found = self.contender.search(name)
        return None if found is None else int(found[1])


def _names(prefix: str, marker: str, *, dashed: bool) -> NodeNames:
    # %010d gives nine digits after a minus sign, and ten where that is not enough.
    return NodeNames(prefix, dashed, re.compile(rf"{marker}(-\d{{9,10}}|\d{{10}})$"))


NAMES = {
    "kazoo": _names("{}__lock__", "__lock__", dashed=False),
    "curator": _names("_c_{}-latch-", "latch-", dashed=True),
}
"""By the client library whose elections we take part in."""


def in_order(names: NodeNames, children: Iterable[str]) -> list[str] | None:
    """The contenders among the children, first come first; None: ask for their czxids.

    The counters decide as long as they can: all different, and none at the wrap or past it.
    """
    counters: dict[int, str] = {}
    for child in children:
        counter = names.counter(child)
        if counter is None:
            continue
        if not 0 <= counter < _LAST or counter in counters:
            return None
        counters[counter] = child
    return [counters[counter] for counter in sorted(counters)]
