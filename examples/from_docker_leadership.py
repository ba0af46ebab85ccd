"""A node of docker/leadership's README, in Python: candidate and follower of one key.

``python from_docker_leadership.py STORE ID``
"""

import sys
import threading

from leadership import NewCandidate, NewFollower, NewStore


def main() -> None:
    url, name = sys.argv[1:]
    scheme, _, endpoints = url.partition("://")
    store = NewStore(scheme, endpoints.split(","))
    follower = NewFollower(store, "service/swarm/leader")

    def follow() -> None:
        for leader in follower.follow_election():  # Go: for leader := range leaderCh
            print("leader:", leader, flush=True)

    following = threading.Thread(target=follow)
    following.start()

    candidate = NewCandidate(store, "service/swarm/leader", name, ttl=15)
    for elected in candidate.run_for_election():  # Go: for isElected := range electedCh
        print("elected:", elected, flush=True)
        if elected:
            candidate.resign()  # gives way, and contends again: Go's candidate.Resign()
            break  # and leaves the election: Go's candidate.Stop()
    follower.stop()
    following.join()
    store.close()


if __name__ == "__main__":
    main()
