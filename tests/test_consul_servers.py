"""The Consul servers that the tests start, and the relay that knows Consul's requests."""

from __future__ import annotations

import sys
import urllib.error

import pytest

from .servers.consul import ConsulCluster, ConsulServer
from .servers.consul_client import ConsulClient, ConsulError
from .servers.consul_relay import Asked, ConsulRelay, LostReplyError, Told
from .servers.run import main
from .waiting import wait_until


def test_a_started_server_takes_writes_and_counts_them(consul: ConsulClient, key: str) -> None:
    before = consul.writes()
    assert consul.put(key, b"1")
    assert consul.entry(key)["Value"] == b"1"  # type: ignore[index]
    assert consul.writes() > before
    consul.delete(key)
    assert consul.keys(key) == []


@pytest.mark.long
def test_a_session_may_live_one_second_and_ten_with_default_times(
    consul: ConsulClient, default_consul: ConsulServer
) -> None:
    consul.destroy_session(consul.api("PUT", "session/create", {"TTL": "1s"})["ID"])
    with pytest.raises(ConsulError, match="Invalid Session TTL"):
        default_consul.api("PUT", "session/create", {"TTL": "9s"})


@pytest.mark.long
def test_a_killed_server_is_gone_and_comes_back_with_its_data(
    consul_server: ConsulServer, key: str
) -> None:
    consul_server.put(key, b"1")
    consul_server.kill()
    assert not consul_server.is_running
    with pytest.raises(OSError, match="refused"):
        consul_server.entry(key)
    consul_server.start()
    assert consul_server.entry(key)["Value"] == b"1"  # type: ignore[index]


@pytest.mark.long
def test_a_cluster_survives_its_leader(consul_cluster: ConsulCluster, key: str) -> None:
    first = consul_cluster.leader()
    first.kill()
    second = consul_cluster.leader()
    assert second is not first
    wait_until(lambda: second.put(key, b"1"), 20, "a write")
    assert not (first.folder / "data").samefile(second.folder / "data")


def test_the_relay_hands_on_changes_and_loses(
    consul: ConsulClient, consul_relay: ConsulRelay, key: str
) -> None:
    through = ConsulClient([consul_relay.endpoint])
    assert through.put(key, b"1")
    assert through.entry(key) == consul.entry(key)

    def lose(asked: Asked, answer: Told) -> Told:
        raise LostReplyError

    consul_relay.after = lose
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        through.put(key, b"2")
    assert consul.entry(key)["Value"] == b"2"  # type: ignore[index]
    consul_relay.before = lambda asked: Told(429, b"enough")
    with pytest.raises(ConsulError, match="429"):
        through.put(key, b"3")
    assert consul.entry(key)["Value"] == b"2"  # type: ignore[index]
    consul.delete(key)


@pytest.mark.long
@pytest.mark.usefixtures("consul")
def test_run_gives_the_command_a_consul() -> None:
    program = "import os, sys; sys.exit(not sys.argv[1] == os.environ['LEADERSHIP_STORE'])"
    assert main(["consul", "--", sys.executable, "-c", program, "{url}"]) == 0
