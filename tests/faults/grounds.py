"""The grounds that there are."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.network_namespaces import can_be_made

from .ground import Ground
from .members import RelayedPeersGround, ScatteredPeersGround
from .served import ConsulGround, EtcdGround, ZooKeeperGround

_SERVED: dict[str, Callable[[bool, Path, random.Random], Ground]] = {
    "etcd": EtcdGround,
    "consul": ConsulGround,
    "zookeeper": ZooKeeperGround,
}

BACKENDS = ("etcd", "consul", "zookeeper", "peers")


def ground(backend: str, clustered: bool, folder: Path, chance: random.Random) -> Ground:
    """Not started yet.

    Args:
        clustered: on three servers instead of one. Of peers: each on a machine of its own,
            where such can be had.
        folder: for what has to be remembered.
    """
    if backend != "peers":
        return _SERVED[backend](clustered, folder, chance)
    states = folder / "states" if chance.random() < 0.5 else None
    if clustered and can_be_made():
        return ScatteredPeersGround(states)
    return RelayedPeersGround(states, chance)
