"""Operators: many of them, over a long time."""

from __future__ import annotations

import pytest

from leadership import Store, new_store

from .peers_cluster import SECRET, PeersCluster, running

pytestmark = pytest.mark.backend("peers")


def operator(cluster: PeersCluster) -> Store:
    return new_store("peers", cluster.addresses, observe=True, secret=SECRET)


def test_an_operator_is_heard_however_many_others_came_since() -> None:
    with running(1) as cluster, operator(cluster) as lasting:
        before = lasting.members()
        for _ in range(20):
            with operator(cluster) as passing:
                passing.members()
        assert lasting.members() == before
