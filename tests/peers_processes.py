"""A cluster of the peers backend in processes: to be killed, stopped, cut off and restarted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .candidate_process import CandidateProcess
from .network_namespaces import Network
from .peers_cluster import PeersCluster
from .waiting import wait_until

KEY = "service/leader"
TTL = 1.0


@dataclass(frozen=True, slots=True)
class Won:
    """A leader's word.

    Attributes:
        number: which member says so.
        token: of its term.
        at: when it said so, in seconds on the clock that all processes share.
    """

    number: int
    token: int
    at: float


class Candidates:
    """Candidates for one key, a process for each member.

    Args:
        size: how many there are.
        network: each runs on a machine of its own there; None: all on this one.
        states: where each node has its state; None: they have none.
        ttl: seconds.
    """

    def __init__(
        self,
        size: int,
        network: Network | None = None,
        states: Path | None = None,
        ttl: float = TTL,
    ) -> None:
        self.cluster = PeersCluster(size, ttl_ceiling=ttl)
        self._ttl = ttl
        self._network = network
        self._states = states
        if network is not None:
            self.cluster.addresses = [f"{host}:7000" for host in network.hosts]
        self.processes: list[CandidateProcess] = []
        self._last: Won | None = None

    def start(self) -> None:
        """Start all of them side by side; they take part at the return."""
        self.processes = [self._started(number) for number in range(len(self.cluster.addresses))]
        for process in self.processes:
            process.wait("ready", timeout=60)

    def _started(self, number: int) -> CandidateProcess:
        url = self.cluster.url(number)
        if self._states is not None:
            url += f"&state_dir={self._states / str(number)}"
        prefix = () if self._network is None else self._network.command(number)
        return CandidateProcess(url, KEY, str(number), self._ttl, prefix)

    def won(self, timeout: float = 30) -> Won:
        """The next word of a leader that nobody has read yet."""

        def told() -> Won | None:
            for number, process in enumerate(self.processes):
                said = process.heard("standing", leader=True)
                if said is not None:
                    return Won(number, said["token"], said["at"])
            return None

        self._last = wait_until(told, timeout, "the next leader")
        return self._last

    def leading(self) -> Won:
        """Whoever was the last to win, which may be about to be the first."""
        return self._last or self.won()

    def restart(self, *numbers: int) -> None:
        """Start these again, once they have ended; they take part at the return."""
        for number in numbers:
            self.processes[number].close()
        for number in numbers:
            self.processes[number] = self._started(number)
        for number in numbers:
            self.processes[number].wait("ready", timeout=60)

    def close(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.close()


@contextlib.contextmanager
def candidates(
    size: int, network: Network | None = None, states: Path | None = None, ttl: float = TTL
) -> Iterator[Candidates]:
    """So many, which take part, and end with the block."""
    several = Candidates(size, network, states, ttl)
    try:
        several.start()
        yield several
    finally:
        several.close()
