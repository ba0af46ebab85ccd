"""A leader that is cut off or asleep says False before another says True, every time.

    python -m bench.peers_faults [--rounds 20]

Three processes, each on a machine of its own (network namespaces: needs root
on Linux), ttl 1 s. The margin is from the old leader's False to the new one's
True; who slept cannot say anything before it wakes, and says False then.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from tests.network_namespaces import machines
from tests.peers_cuts import CUTS, asleep, cut_off
from tests.peers_processes import candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    write = sys.stdout.write
    write(f"{'fault':<24}{'in order':>12}{'least margin':>16}{'median':>12}\n")
    with machines(3) as network, candidates(3, network) as several:
        for name, cut in CUTS.items():
            margins = []
            for _ in range(rounds):
                margin, _ = cut_off(several, network, cut, several.leading())
                margins.append(margin)
            kept = sum(margin > 0 for margin in margins)
            write(f"{'cut off, ' + name:<24}{kept:>6} of {rounds:<3}")
            write(f"{1000 * min(margins):>13.1f} ms{1000 * statistics.median(margins):>9.1f} ms\n")
            sys.stdout.flush()
        for _ in range(rounds):
            asleep(several, several.leading())
        write(f"{'asleep':<24}{rounds:>6} of {rounds:<3}\n")


if __name__ == "__main__":
    main()
