"""How long until the next leader leads: two processes on one key of a real etcd.

    python -m bench.handover [--resign 200] [--kill 30] [--sleep 30]

Each row is measured between processes on CLOCK_BOOTTIME. The floor is what
the store itself takes with the same client: one delete, and the watch event
of it in another connection. Who was woken must still prove its entry by one
read: the second floor has that too. Between two trials all are idle for as
long, since a machine that has just slept answers in about twice the time.
"""

from __future__ import annotations

from functools import partial

from bench.trials import Ground, Round, arguments, deleted, hand_overs, show
from leadership.backend import Address, Backend, Context
from leadership.backends.etcd import EtcdBackend
from tests.servers.etcd import EtcdServer

TTL = 2.0


def main() -> None:
    wanted = arguments(__doc__).parse_args()
    with EtcdServer(fast=False) as server:

        def is_queued(key: str) -> bool:
            return len(server.ctl("get", "--prefix", f"{key}/", "--keys-only").split()) == 2

        def make() -> Backend:
            return EtcdBackend(Address("etcd", (server.endpoint,)), Context())

        ground = Ground(server.url, TTL, is_queued)
        floor = partial(deleted, make, is_queued=is_queued)
        proved = partial(floor, proof=lambda watcher, key: watcher.get(key))
        show(
            f"etcd {server.version} with default timings",
            [
                Round("floor: delete + watch event", floor, wanted.resign, "-"),
                Round("the same, and one read", proved, wanted.resign, "-"),
                *hand_overs(ground, wanted, "under 2700 ms"),
            ],
        )


if __name__ == "__main__":
    main()
