"""The same names for asyncio: `from leadership.aio import Candidate, Follower, new_store`.

All input and output happens on the library's own engine, so an event loop
that is blocked does not lose the lease, and any loop (uvloop, Jupyter's) will
do. A cancelled call has no effect that stays: what it had begun is withdrawn.
"""

from __future__ import annotations

from .candidate import Campaigning, Candidate, Elections, NewCandidate, Term
from .follower import Follower, NewFollower
from .lock import Lock
from .store import NewStore, Store, new_store
from .streams import Stream

__all__ = [
    "Campaigning",
    "Candidate",
    "Elections",
    "Follower",
    "Lock",
    "NewCandidate",
    "NewFollower",
    "NewStore",
    "Store",
    "Stream",
    "Term",
    "new_store",
]
