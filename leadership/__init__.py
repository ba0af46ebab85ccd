"""Leader election on etcd, Consul, ZooKeeper, or with no server at all.

    from leadership import Candidate, Follower, new_store

    store = new_store("etcd://127.0.0.1:2379")
    for elected in Candidate(store, "service/leader", "10.0.0.5:8080").run_for_election():
        ...

What is not promised: no lock service can stop a paused process's late write
by itself. Hand `term.token` to the resource that you write to.
"""

from .backend import Capability, KVPair, Membership
from .candidate import Candidate, NewCandidate, Term
from .follower import Follower, NewFollower
from .following import Leader, LeaderState
from .lock import Lock
from .retry import Retry
from .store import NewStore, Store, new_store

__all__ = [
    "Candidate",
    "Capability",
    "Follower",
    "KVPair",
    "Leader",
    "LeaderState",
    "Lock",
    "Membership",
    "NewCandidate",
    "NewFollower",
    "NewStore",
    "Retry",
    "Store",
    "Term",
    "new_store",
]
