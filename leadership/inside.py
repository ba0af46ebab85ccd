"""Who is calling: the leader's own code, or somebody else?

`resign` from somebody else waits for the leader's code; from that code itself
it must not wait, for it would wait for its caller. A context variable carries
the answer into child tasks and `asyncio.to_thread` too.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .election import Candidacy

_candidacies: ContextVar[frozenset[weakref.ref[Candidacy]]] = ContextVar(
    "leadership_inside", default=frozenset()
)


def enter(candidacy: Candidacy) -> None:
    """From here on the present thread or task is the code that leads by `candidacy`."""
    living = {
        known
        for known in _candidacies.get()
        if (seen := known()) is not None and not seen.withdrawn
    }
    _candidacies.set(frozenset({*living, weakref.ref(candidacy)}))


def is_inside(candidacy: Candidacy) -> bool:
    """Whether the present thread or task is the code that leads by `candidacy`."""
    return any(known() is candidacy for known in _candidacies.get())
