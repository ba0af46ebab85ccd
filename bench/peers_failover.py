"""How long until another node leads: real processes of a cluster without a server, ttl 1 s.

    python -m bench.peers_failover [--nodes 3,5] [--kill 100]

Each trial kills the whole node that leads, and counts on CLOCK_BOOTTIME until
another's True. The floor is the promise itself: what the last heartbeat left of
it when the leader died, which nobody may cut short. A killed node is started
again, and takes part before the next trial.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys

from bench.trials import heading, row
from tests.peers_processes import candidates


def killed(size: int, trials: int) -> list[float]:
    """Seconds from SIGKILL of the leader's node to another's True."""
    times = []
    with candidates(size) as cluster:
        leader = cluster.won()
        for _ in range(trials):
            at = cluster.processes[leader.number].kill()
            dead, leader = leader, cluster.won()
            assert leader.token > dead.token, "tokens rise"
            times.append(leader.at - at)
            cluster.restart(dead.number)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="3,5")
    parser.add_argument("--kill", type=int, default=100)
    wanted = parser.parse_args()
    write = sys.stdout.write
    write(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ")
    write(f"Python {platform.python_version()}, {platform.system()} {platform.release()}\n")
    write(heading())
    for size in (int(each) for each in wanted.nodes.split(",")):
        name = f"SIGKILL -> another's True, {size} nodes"
        write(row(name, killed(size, wanted.kill), "p95 at most 1200 ms") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
