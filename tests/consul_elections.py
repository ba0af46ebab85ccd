"""What the tests of elections on Consul share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from leadership import Store, new_store
from leadership.backend import Address, Context
from leadership.backends._consul_contender import ConsulContender
from leadership.backends._consul_requests import places_of
from leadership.backends.consul import ConsulBackend
from leadership.events import Event
from leadership.lease import Claim

from .servers.consul_client import ConsulClient
from .servers.consul_relay import ConsulRelay
from .servers.fault_proxy import FaultProxy
from .waiting import wait_until


@pytest.fixture
def consul_store(consul: ConsulClient, events: list[Event]) -> Iterator[Store]:
    with new_store(consul.url, hooks=[events.append]) as opened:
        yield opened


@pytest.fixture
def consul_relay(consul: ConsulClient) -> Iterator[ConsulRelay]:
    with ConsulRelay(consul.endpoint) as relay:
        yield relay


@pytest.fixture
def consul_proxy(consul: ConsulClient) -> Iterator[FaultProxy]:
    host, _, port = consul.endpoint.rpartition(":")
    with FaultProxy(int(port), host) as proxy:
        yield proxy


@pytest.fixture
def relayed_store(
    consul: ConsulClient, consul_relay: ConsulRelay, events: list[Event]
) -> Iterator[Store]:
    """A store behind the relay."""
    with new_store(consul.url_of(consul_relay.endpoint), hooks=[events.append]) as store:
        yield store


def places(consul: ConsulClient, key: str) -> list[str]:
    """Who waits for the key, by session."""
    return [each.rpartition("/")[2] for each in consul.keys(places_of(key))]


def until_waiting(consul: ConsulClient, key: str, count: int = 1) -> None:
    wait_until(lambda: len(places(consul, key)) == count, 10, f"{count} places")


def session_for(consul: ConsulClient, entry: str, value: bytes = b"", **query: str) -> str:
    """Of somebody else's, that holds this entry."""
    made: str = consul.api("PUT", "session/create", {"Behavior": "delete", "LockDelay": "0s"})["ID"]
    assert consul.put(entry, value, acquire=made, **query)
    return made


@contextlib.asynccontextmanager
async def opened(
    *endpoints: str, emit: Callable[[Event], None] = lambda event: None, **options: Any
) -> AsyncIterator[ConsulBackend]:
    address = Address("consul", endpoints, "", {"session_ttl_min": 1, **options})
    backend = ConsulBackend(address, Context(emit=emit, request_timeout=3.0))
    try:
        yield backend
    finally:
        await backend.close()


def contender(backend: ConsulBackend, key: str, value: bytes = b"a", ttl: float = 30) -> Any:
    made = backend.contender(key, value, ttl, False)
    assert isinstance(made, ConsulContender)
    return made


async def win(part: ConsulContender) -> tuple[Claim, list[str]]:
    lost: list[str] = []
    async with asyncio.timeout(20):
        return await part.campaign(lost.append), lost
