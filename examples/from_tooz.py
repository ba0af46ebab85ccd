"""What tooz's coordinator did for a group's leader and for locks.

``python from_tooz.py STORE ID``

Before::

    coordinator = coordination.get_coordinator("etcd3+http://127.0.0.1:2379", b"host-1")
    coordinator.start(start_heart=True)
    coordinator.watch_elected_as_leader(b"my group", elected)
    while True:
        coordinator.run_watchers()      # and heartbeats, while nothing else takes long
    with coordinator.get_lock(b"foobar"):
        ...
"""

import sys

from leadership import Candidate, Follower, Term, new_store


def main() -> None:
    url, name = sys.argv[1:]
    with new_store(url) as store:  # etcd://127.0.0.1:2379
        # get_leader(group).get()
        print("leader:", Follower(store, "my-group/leader").leader(), flush=True)

        # watch_elected_as_leader: no run_watchers, no heartbeat of yours
        candidate = Candidate(store, "my-group/leader", name, ttl=10)

        def elected(term: Term) -> None:
            print("elected:", term.id, term.token, flush=True)
            candidate.stop()  # stand_down_group_leader is candidate.resign()

        candidate.run(elected)

        # get_lock
        with store.lock("locks/foobar", ttl=10) as lock:
            lock.check()
            print("locked:", lock.token, flush=True)


if __name__ == "__main__":
    main()
