"""Where a server runs: on this machine, or on one of a test's own."""

from dataclasses import dataclass

from tests.network_namespaces import Network
from tests.servers.ports import LOOPBACK


@dataclass(frozen=True, slots=True)
class Place:
    """A machine.

    Attributes:
        host: its address.
        command: what a program is run under there.
    """

    host: str = LOOPBACK
    command: tuple[str, ...] = ()


HERE = Place()


def places(size: int, network: Network | None) -> list[Place]:
    """For the members of a cluster: a machine each of that network, or all of them here."""
    if network is None:
        return [HERE] * size
    return [Place(host, tuple(network.command(n))) for n, host in enumerate(network.hosts)]
