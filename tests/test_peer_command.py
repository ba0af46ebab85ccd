"""`leadership peer`: nodes that vote for others, and say what they are at."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from leadership import Candidate, Follower, new_store

from .command import Command, leadership
from .peers_cluster import PeersCluster
from .servers.ports import free_port

pytestmark = pytest.mark.backend("peers")

SECRET = "a secret of this test"


@pytest.fixture
def cluster() -> PeersCluster:
    return PeersCluster(3, secret=SECRET.replace(" ", "_"))


def node(cluster: PeersCluster, number: int) -> Command:
    return Command(
        *("peer", "--listen", cluster.addresses[number], "--ttl-ceiling", "1", "--json"),
        *("--members", ",".join(cluster.addresses)),
        LEADERSHIP_SECRET=SECRET.replace(" ", "_"),
    )


@pytest.fixture
def two_nodes(cluster: PeersCluster) -> Iterator[list[Command]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(node(cluster, number)) for number in (1, 2)]


def test_a_program_leads_by_the_votes_of_nodes_that_only_vote(
    cluster: PeersCluster, two_nodes: list[Command]
) -> None:
    with (
        new_store(cluster.url(0)) as store,
        Candidate(store, "k", "a", ttl=1).campaign(timeout=30),
        new_store(cluster.url()) as client,
    ):
        assert Follower(client, "k").wait_for_leader(10) == "a"
    for each in two_nodes:
        assert each.wait_for("ready")["node"] in cluster.addresses
        each.send(signal.SIGTERM)
        assert each.status() == 143


def test_a_command_runs_while_it_leads_on_peers(
    cluster: PeersCluster, two_nodes: list[Command]
) -> None:
    ended = leadership(
        *("run", "--store", cluster.url(0), "--key", "k", "--id", "a", "--ttl", "1"),
        *("--connect-timeout", "30", "--", "sh", "-c", 'echo "token $LEADERSHIP_TOKEN"; exit 7'),
    )
    assert ended.returncode == 7, ended.stderr
    assert int(ended.stdout.removeprefix("token ")) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--listen", "h:1", "--members", "h:2,h:3"), "not in the list of members"),
        (("--listen", "h", "--members", "h"), "write host:port"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options: tuple[str, ...], message: str) -> None:
    ended = leadership("peer", *options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_address_in_use_is_one_line_and_status_2(two_nodes: list[Command]) -> None:
    two_nodes[0].wait_for("starting")
    taken = f"127.0.0.1:{free_port()}"
    with Command("peer", "--listen", taken, "--members", taken, "--json") as first:
        first.wait_for("starting")
        ended = leadership("peer", "--listen", taken, "--members", taken)
    assert ended.returncode == 2
    assert "cannot listen" in ended.stderr
