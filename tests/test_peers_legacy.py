"""A node that speaks electio's protocol alone, in the member list: it sees us, and has no vote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leadership import Candidate, Store
from leadership.backends._electio import node_id

from .electio_node import ElectioProcess
from .peers_cluster import PeersCluster, driver_of
from .waiting import wait_until

pytestmark = pytest.mark.backend("peers")

KEY = "service/leader"


@pytest.fixture
def cluster() -> PeersCluster:
    return PeersCluster(4, ttl_ceiling=2)


@pytest.fixture
def legacy(cluster: PeersCluster) -> Iterator[ElectioProcess]:
    """The last member."""
    with ElectioProcess(cluster.addresses[3], cluster.addresses) as process:
        yield process


@pytest.fixture
def stores(cluster: PeersCluster, legacy: ElectioProcess) -> Iterator[list[Store]]:
    """The three members that are ours."""
    several = cluster.start(0, 1, 2)
    yield several
    for store in several:
        store.close()


def test_it_names_our_leader_as_its_master_and_moves_nothing(
    cluster: PeersCluster, stores: list[Store], legacy: ElectioProcess
) -> None:
    ids = [node_id("c1", address) for address in cluster.addresses]
    with Candidate(stores[1], KEY, "a", ttl=2).campaign(timeout=20) as term:
        wait_until(lambda: legacy.master == ids[1], 20, "the legacy node to follow our leader")
        said = legacy.ask()
        assert said is not None
        assert all(said["Members"][each]["Active"] for each in ids), "it sees us"
        # Master of its own once more, it demands that all follow, and is brought back.
        legacy.ask(f"/follow?fromId={ids[0]}&masterId={legacy.id}")
        legacy.ask("/erasemaster?masterId=x")
        wait_until(lambda: legacy.master == ids[1], 20, "the legacy node to be brought back")
        assert term.is_valid()
        for store in stores:
            leader = driver_of(store).knowledge.leader(KEY)
            assert leader is not None
            assert (leader.node, leader.term) == (cluster.addresses[1], term.token)
    # Whoever leads next is its next master.
    with Candidate(stores[2], KEY, "b", ttl=2).campaign(timeout=20) as next_term:
        wait_until(lambda: legacy.master == ids[2], 20, "the legacy node to follow the next one")
        assert next_term.token > term.token


def test_it_counts_in_the_majority_and_never_as_a_vote(
    cluster: PeersCluster, stores: list[Store], legacy: ElectioProcess
) -> None:
    with Candidate(stores[0], KEY, "a", ttl=2).campaign(timeout=20):
        wait_until(
            lambda: legacy.address in driver_of(stores[0]).node.legacy, what="it to be known"
        )
    stores[2].close()
    # Three of four are a majority, and only two of ours are left.
    with pytest.raises(TimeoutError):
        Candidate(stores[0], KEY, "a", ttl=2).campaign(timeout=4)
