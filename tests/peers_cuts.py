"""Rounds in which the leader is cut off or put to sleep: who said what, and when?"""

from __future__ import annotations

import signal
from collections.abc import Callable

from .network_namespaces import Network
from .peers_processes import Candidates, Won

Cut = Callable[[Network, int], None]


def both_ways(network: Network, leader: int) -> None:
    """Nothing that it sends arrives, and nothing reaches it."""
    network.isolate(leader)


def deaf(network: Network, leader: int) -> None:
    """What it sends arrives, and nothing comes back."""
    for other in _others(network, leader):
        network.cut(other, leader)


def dumb(network: Network, leader: int) -> None:
    """Nothing that it sends arrives."""
    for other in _others(network, leader):
        network.cut(leader, other)


CUTS: dict[str, Cut] = {"both ways": both_ways, "deaf": deaf, "dumb": dumb}


def _others(network: Network, number: int) -> list[int]:
    return [other for other in range(len(network.hosts)) if other != number]


def cut_off(several: Candidates, network: Network, cut: Cut, leader: Won) -> tuple[float, Won]:
    """Cut the leader off until another leads.

    Returns:
        The seconds by which its False came before the other's True, and the other.
    """
    cut(network, leader.number)
    said = several.processes[leader.number].wait("standing", leader=False)
    successor = several.won()
    network.heal()
    assert successor.token > leader.token
    return successor.at - said["at"], successor


def asleep(several: Candidates, leader: Won) -> Won:
    """Stop the leader's process until another leads; who wakes is no leader, and says so first."""
    sleeper = several.processes[leader.number]
    sleeper.sleep()
    sleeper.order("check")
    successor = several.won()
    sleeper.signal(signal.SIGCONT)
    assert sleeper.wait("checked")["leader"] is False
    assert successor.token > leader.token
    return successor
