"""What one node that leads many keys sends: as many messages a second as for one key.

    python -m bench.peers_keys [--keys 1,1000] [--seconds 10]

Three nodes in this process, ttl 1 s (`--ttl`); counted where the leader's
requests leave it, headers not among the bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from leadership import Candidate, Store
from leadership.backends._peers_http import Answer
from leadership.clock import SystemClock
from tests.peers_cluster import PeersCluster, driver_of

CLOCK = SystemClock()


class Counter:
    """What a node sends, and what it is answered.

    Attributes:
        requests: how many.
        sent, answered: bytes of their bodies.
    """

    def __init__(self) -> None:
        self.requests = self.sent = self.answered = 0


@contextmanager
def counting(store: Store) -> Iterator[Counter]:
    """Count what the store's node sends."""
    client, counter = driver_of(store)._client, Counter()
    call = client.call

    async def counted(
        method: str, address: str, path: str, body: bytes = b"", **more: object
    ) -> Answer:
        answer = await call(method, address, path, body, **more)  # type: ignore[arg-type]
        counter.requests += 1
        counter.sent += len(body)
        counter.answered += len(answer.body)
        return answer

    client.call = counted  # type: ignore[method-assign]
    try:
        yield counter
    finally:
        client.call = call  # type: ignore[method-assign]


def led(stores: list[Store], keys: int, ttl: float, seconds: float) -> str:
    """One row: what the first node sends while it leads so many."""
    candidates = [Candidate(stores[0], f"many/{number}", "a", ttl=ttl) for number in range(keys)]
    began = CLOCK.now()
    with ThreadPoolExecutor(64) as pool:
        terms = list(pool.map(lambda candidate: candidate.campaign(60), candidates))
    entered = CLOCK.now() - began
    with counting(stores[0]) as counter:
        began = CLOCK.now()
        terms[0].wait_lost(seconds)
        lasted = CLOCK.now() - began
    valid = sum(term.is_valid() for term in terms)
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda candidate: candidate.stop(), candidates))
    cells = [each / lasted for each in (counter.requests, counter.sent, counter.answered)]
    return f"{keys:>8}{entered:>14.2f}{valid:>10}" + "".join(f"{cell:>14.1f}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", default="1,1000")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ttl", type=float, default=1)
    wanted = parser.parse_args()
    write = sys.stdout.write
    names = ("elected in s", "valid", "requests/s", "bytes/s", "answered/s")
    write(
        f"{'keys':>8}{names[0]:>14}{names[1]:>10}" + "".join(f"{n:>14}" for n in names[2:]) + "\n"
    )
    stores = PeersCluster(3, ttl_ceiling=wanted.ttl).start(0, 1, 2)
    try:
        for keys in (int(each) for each in wanted.keys.split(",")):
            write(led(stores, keys, wanted.ttl, wanted.seconds) + "\n")
            sys.stdout.flush()
    finally:
        for store in stores:
            store.close()


if __name__ == "__main__":
    main()
