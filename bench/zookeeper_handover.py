"""How long until the next leader leads on ZooKeeper: two processes on one key.

    python -m bench.zookeeper_handover [--resign 200] [--kill 30] [--sleep 30] [--many 2000]

As `bench.handover`, with ZooKeeper's own timing: a session of 4 s expires
after 4 to 6 s. `--many` elections are entered on one store.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from functools import partial

from bench.trials import CLOCK, Ground, Round, arguments, deleted, hand_overs, show
from leadership import aio
from leadership.backend import Address, Backend, Context
from leadership.backends.zookeeper import ZooKeeperBackend
from tests.servers.zookeeper import ZooKeeperServer
from tests.zookeeper_elections import entries

TTL = 4.0


def many(server: ZooKeeperServer, number: int) -> str:
    """Enter so many elections on one store."""

    async def scenario() -> tuple[float, int]:
        async with aio.new_store(server.url) as store:
            names = [f"many/{uuid.uuid4().hex}" for _ in range(number)]
            candidates = [aio.Candidate(store, name, "a", ttl=20) for name in names]
            began = CLOCK.now()
            await asyncio.gather(*(each.campaign(timeout=300) for each in candidates))
            return CLOCK.now() - began, threading.active_count()

    seconds, threads = asyncio.run(scenario())
    return f"{number} elections on one store: entered in {seconds:.1f} s, {threads} threads"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--many", type=int, default=2000)
    wanted = parser.parse_args()
    with ZooKeeperServer(fast=False) as server, server.client() as client:

        def is_queued(key: str) -> bool:
            return len(entries(client, key)) == 2

        def make() -> Backend:
            return ZooKeeperBackend(Address("zookeeper", (server.endpoint,)), Context())

        floor = partial(deleted, make, is_queued=is_queued)
        show(
            f"ZooKeeper {server.version} with default timings",
            [
                Round("floor: delete + watch event", floor, wanted.resign, "-"),
                *hand_overs(Ground(server.url, TTL, is_queued), wanted, "under 6200 ms"),
            ],
        )
        if wanted.many:
            sys.stdout.write(many(server, wanted.many) + "\n")


if __name__ == "__main__":
    main()
