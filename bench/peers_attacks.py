"""Whatever strangers send to a leader: its term, its memory and its log all along.

    python -m bench.peers_attacks [--seconds 30]

Three processes with a secret, ttl 4 s. Memory is resident, before and at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.peers_attacks import ATTACKS, Target
from tests.peers_cluster import SECRET
from tests.peers_processes import candidates
from tests.test_peers_attacks import memory, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    seconds = parser.parse_args().seconds
    write = sys.stdout.write
    write(f"{'attack':<20}{'same term':>10}{'before':>9}{'peak':>9}  told of\n")
    with candidates(3, ttl=4) as three:
        leader = three.won()
        process = three.processes[leader.number]
        addresses = tuple(three.cluster.addresses)
        target = Target(addresses[leader.number], addresses, SECRET)
        for name, attack in ATTACKS.items():
            # From here on the kernel measures the peak anew.
            Path(f"/proc/{process.process.pid}/clear_refs").write_text("5")
            before, heard = memory(process), len(process.said)
            asyncio.run(attack(target, seconds))
            process.order("check")
            same = process.wait("checked")["token"] == leader.token
            told = [line["reason"] for line in process.said[heard:] if line["event"] == "refused"]
            write(f"{name:<20}{'yes' if same else 'NO':>10}{before >> 20:>6} MB")
            write(
                f"{peak_memory(process) >> 20:>6} MB  {len(told)}: {'; '.join(sorted({*told}))}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
