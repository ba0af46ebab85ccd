"""Operators: many of them, over a long time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leadership import Store, new_store
from leadership.errors import ConfigurationError, HandleClosed, StoreUnavailable

from .peers_cluster import SECRET, PeersCluster, driver_of, running
from .servers.ports import free_port
from .waiting import wait_until

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


@pytest.mark.parametrize("observes", [False, True])
def test_a_change_that_waits_ends_with_its_store(tmp_path: Path, observes: bool) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    cluster = PeersCluster(1, state_dir=tmp_path)
    with cluster.start(0)[0] as node, operator(cluster) as observer:
        asked = observer if observes else node
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(asked.change_members, add=nobody)
            wait_until(lambda: bool(driver_of(node).members._obstacle), what="what it waits for")
            asked.close()
            with pytest.raises(HandleClosed):
                change.result(10)


def test_who_was_never_a_member_cannot_be_removed(tmp_path: Path) -> None:
    with running(1, state_dir=tmp_path) as cluster, operator(cluster) as asked:
        with pytest.raises(ConfigurationError, match="is no member"):
            asked.change_members(remove="10.0.0.9:7000", timeout=20)


def test_where_no_node_answers_nothing_can_still_come_about() -> None:
    with operator(PeersCluster(1)) as asked, pytest.raises(StoreUnavailable, match="no node"):
        asked.change_members(add="127.0.0.1:7000", timeout=0.5)
