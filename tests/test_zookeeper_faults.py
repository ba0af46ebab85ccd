"""Faults of all kinds by chance, on ZooKeeper: never two leaders, and one again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import MakeZooKeeper
from .etcd_elections import CLOCK
from .servers.fault_proxy import FaultProxy, Mode
from .servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer
from .test_zookeeper_outages import Rivals, eventually_one_leads_and_nothing_is_left

SECONDS = 30.0
SEEDS = (1, 2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """One for each candidate's loop."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Weather:
    """Four stores, each behind relays of its own, and what happens to relays and servers."""

    def __init__(self, servers: list[ZooKeeperServer], chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance
        self.ways = [[FaultProxy(each.client_port) for each in servers] for _ in range(4)]

    def addresses(self) -> list[str]:
        return ["zookeeper://" + ",".join(each.endpoint for each in way) for way in self.ways]

    def strike(self) -> None:
        chance = self._chance
        kind = chance.random()
        if kind < 0.8:
            for relay in chance.choice(self.ways):
                relay.set(chance.choice([Mode.PASS, *Mode]), chance.uniform(0, 0.4))
        elif kind < 0.9:
            self.clear()
        else:
            server = chance.choice(self._servers)
            server.pause()
            self.pass_by(2)
            server.resume()

    def pass_by(self, longest: float) -> None:
        """Let the candidates live with it for a while."""
        asyncio.run(asyncio.sleep(self._chance.uniform(0.1, longest)))

    def clear(self) -> None:
        for way in self.ways:
            for relay in way:
                relay.set(Mode.PASS)

    def close(self) -> None:
        for way in self.ways:
            for relay in way:
                relay.close()


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 3])
def test_whatever_happens_no_term_begins_before_the_former_is_over(
    make_zookeeper: MakeZooKeeper, threads: ThreadPoolExecutor, key: str, size: int, seed: int
) -> None:
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        if size == 1:
            servers = [make_zookeeper()]
        else:
            servers = stack.enter_context(ZooKeeperEnsemble(cuttable=True)).members
        weather = Weather(servers, chance)
        stack.callback(weather.close)
        rivals = Rivals(key, threads)
        stack.callback(rivals.close)
        rivals.ttl = 2
        for number, address in enumerate(weather.addresses()):
            # Two of one store share a session, and its fate.
            store = rivals.open(address)
            for name in "ab":
                rivals.join_by(store, f"{number}{name}")
        until = CLOCK.now() + SECONDS
        while CLOCK.now() < until:
            weather.strike()
            weather.pass_by(1.2)
            rivals.check()
        weather.clear()
        client = stack.enter_context(servers[0].client())
        eventually_one_leads_and_nothing_is_left(rivals, client)
