"""Processes of the peers backend that are cut off, put to sleep, killed and restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import network_namespaces
from .network_namespaces import Network, machines
from .peers_cuts import CUTS, Cut, asleep, cut_off
from .peers_processes import Candidates, candidates

pytestmark = pytest.mark.backend("peers")

ROUNDS = 2
"""A few; `bench.peers_faults` plays as many as the bars ask for."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if not network_namespaces.can_be_made():
        pytest.skip("needs root and network namespaces; test_peers_backend cuts inside the process")
    with machines(3) as several:
        yield several


@pytest.fixture(scope="module")
def apart(network: Network) -> Iterator[Candidates]:
    with candidates(3, network) as several:
        yield several


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_leader_cut_off_says_false_before_another_says_true(
    apart: Candidates, network: Network, cut: Cut
) -> None:
    leader = apart.leading()
    for _ in range(ROUNDS):
        earlier, leader = cut_off(apart, network, cut, leader)
        assert earlier > 0


def test_who_sleeps_through_its_ttl_wakes_as_no_leader(apart: Candidates) -> None:
    leader = apart.leading()
    for _ in range(ROUNDS):
        leader = asleep(apart, leader)


@pytest.mark.parametrize("durable", [False, True], ids=["no state_dir", "state_dir"])
def test_tokens_rise_over_a_rolling_and_a_full_restart(durable: bool, tmp_path: Path) -> None:
    with candidates(3, states=tmp_path if durable else None) as several:
        leader = several.won()
        several.processes[leader.number].kill()
        successor = several.won()
        several.restart(leader.number)
        tokens = [leader.token, successor.token]
        for process in several.processes:
            process.kill()
        several.restart(0, 1, 2)
        tokens.append(several.won().token)
    assert tokens == sorted(set(tokens))
