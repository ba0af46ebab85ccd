"""Whatever strangers send, the election does not notice; memory and the log stay bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .candidate_process import CandidateProcess
from .peers_attacks import ATTACKS, Attack, Target
from .peers_cluster import SECRET
from .peers_processes import Candidates, candidates

pytestmark = pytest.mark.backend("peers")

SECONDS = 1.5
"""Of each attack; `bench.peers_attacks` goes on for longer."""
GROWTH = 40 << 20
"""Bytes that a node may be larger in an attack than before it: a busy machine leaves more of
what arrives unread for a while, and bodies that are read at all come to 64 MiB."""


@pytest.fixture(scope="module")
def three() -> Iterator[Candidates]:
    # Attacker and victims share a busy machine: heartbeats may be late.
    with candidates(3, ttl=4) as several:
        several.won()
        yield several


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_attack_moves_the_leader(three: Candidates, attack: Attack) -> None:
    leader = three.leading()
    process = three.processes[leader.number]
    addresses = tuple(three.cluster.addresses)
    before = memory(process)
    asyncio.run(attack(Target(addresses[leader.number], addresses, SECRET), SECONDS))
    process.order("check")
    assert process.wait("checked")["token"] == leader.token
    assert peak_memory(process) - before < GROWTH
    said = [line for each in three.processes for line in each.said]
    assert {line["token"] for line in said if line["event"] == "standing" and line["leader"]} == {
        leader.token
    }
    refusals = Counter(
        (line["sender"], line["reason"]) for line in process.said if line["event"] == "refused"
    )
    assert all(count <= 2 for count in refusals.values()), "each is told once in a while"


def memory(process: CandidateProcess) -> int:
    """Bytes of it that are in memory."""
    return _status(process, "VmRSS")


def peak_memory(process: CandidateProcess) -> int:
    """The most that it ever was."""
    return _status(process, "VmHWM")


def _status(process: CandidateProcess, name: str) -> int:
    for line in Path(f"/proc/{process.process.pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)
