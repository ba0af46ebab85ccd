"""What the tests of elections on etcd share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leadership import Store, new_store
from leadership.clock import SystemClock
from leadership.events import Event

from .servers.etcd_client import EtcdClient

CLOCK = SystemClock()


@pytest.fixture
def key() -> str:
    return f"test/{uuid.uuid4().hex}"


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def store(etcd: EtcdClient, events: list[Event]) -> Iterator[Store]:
    with new_store(etcd.url, hooks=[events.append]) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def told(events: list[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def leases(etcd: EtcdClient) -> set[str]:
    return set(etcd.ctl("lease", "list").split("\n")[1:]) - {""}


def entries(etcd: EtcdClient, key: str) -> list[str]:
    return etcd.ctl("get", "--prefix", f"{key}/", "--keys-only").split()
