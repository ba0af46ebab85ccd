"""How long until the next leader leads on a real Consul, and how much is written for it.

    python -m bench.consul_handover [--resign 200] [--kill 30] [--sleep 30] [--ttl 2]

Each row of times is measured between processes on CLOCK_BOOTTIME. The floor is
what the store itself takes with the same client: one delete, and the answer to
a blocking query on another connection. Where the key is not handed over, who
heard of it must still acquire it: the second floor has that too.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from functools import partial

from bench.trials import Ground, Round, arguments, deleted, hand_overs, show
from leadership import aio
from leadership.backend import Address, Backend, Context
from leadership.backends._consul_requests import places_of
from leadership.backends.consul import ConsulBackend
from leadership.events import Elected, Event
from tests.servers.consul import ConsulServer
from tests.waiting import async_wait_until


def waiting(server: ConsulServer, key: str) -> int:
    return len(server.keys(places_of(key)))


def written(server: ConsulServer, changes: int, candidates: int = 200) -> list[int]:
    """Entries in the server's log for each change of the leader, until all wait again."""
    key = f"bench/{uuid.uuid4().hex}"
    elected: list[Event] = []
    order: asyncio.Queue[None] = asyncio.Queue()

    async def lead_by_turns(candidate: aio.Candidate) -> None:
        async for leads in candidate.run_for_election():
            if leads:
                await order.get()
                await candidate.resign()

    async def all_changes() -> list[int]:
        def hook(event: Event) -> None:
            if isinstance(event, Elected):
                elected.append(event)

        def settled(terms: int) -> bool:
            return len(elected) == terms and waiting(server, key) == candidates - 1

        counts = []
        async with aio.new_store(server.url, hooks=[hook]) as store:
            runs = [
                asyncio.ensure_future(lead_by_turns(aio.Candidate(store, key, str(n), ttl=60)))
                for n in range(candidates)
            ]
            await async_wait_until(lambda: settled(1), 60, "all to wait")
            for change in range(changes):
                before = server.writes()
                order.put_nowait(None)
                await async_wait_until(lambda n=change: settled(n + 2), 20, "the next")  # type: ignore[misc]
                counts.append(server.writes() - before)
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        return counts

    return asyncio.run(all_changes())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--changes", type=int, default=30)
    parser.add_argument("--ttl", type=float, default=2.0, help="seconds; from 10 on: defaults")
    wanted = parser.parse_args()
    with ConsulServer(fast=wanted.ttl < 10) as server:

        def is_queued(key: str) -> bool:
            return waiting(server, key) == 1

        def make() -> Backend:
            return ConsulBackend(Address("consul", (server.endpoint,)), Context())

        floor = partial(deleted, make, is_queued=is_queued)
        acquired = partial(floor, proof=lambda watcher, key: watcher.put(key, b"z"))
        bar = f"under {2000 * wanted.ttl + 500:g} ms"
        show(
            f"Consul {server.version}",
            [
                Round("floor: delete + blocking query", floor, wanted.resign, "-"),
                Round("the same, and one write", acquired, wanted.resign, "-"),
                *hand_overs(Ground(server.url, wanted.ttl, is_queued), wanted, bar),
            ],
        )
        if wanted.changes:
            counts = sorted(written(server, wanted.changes))
            sys.stdout.write(
                f"writes for a change of the leader, 200 candidates, {len(counts)} changes: "
                f"median {counts[len(counts) // 2]}, max {counts[-1]}; bar: 3\n"
            )


if __name__ == "__main__":
    main()
