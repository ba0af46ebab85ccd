"""What the tests of elections on etcd share."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leadership import Store, new_store
from leadership.backend import Address, Context
from leadership.backends._etcd_contender import EtcdContender
from leadership.backends._grpc import etcdrpc, grpc
from leadership.backends.etcd import EtcdBackend
from leadership.clock import SystemClock
from leadership.events import Event
from leadership.lease import Claim

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


NO_REPLY = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE,
    grpc.aio.Metadata(),
    grpc.aio.Metadata(),
    "the reply was lost",
    None,
)


@contextlib.asynccontextmanager
async def opened(
    *endpoints: str, emit: Callable[[Event], None] = lambda event: None, **options: Any
) -> AsyncIterator[EtcdBackend]:
    backend = EtcdBackend(
        Address("etcd", endpoints, "", options), Context(emit=emit, request_timeout=3.0)
    )
    try:
        yield backend
    finally:
        await backend.close()


def contender(backend: EtcdBackend, key: str, value: bytes = b"a", ttl: float = 30) -> Any:
    made = backend.contender(key, value, ttl, False)
    assert isinstance(made, EtcdContender)
    return made


async def win(part: EtcdContender) -> tuple[Claim, list[str]]:
    lost: list[str] = []
    async with asyncio.timeout(20):
        return await part.campaign(lost.append), lost


class Late:
    """Holds back the next transaction that does `what`: its sender gets no reply."""

    def __init__(self, backend: EtcdBackend, what: str) -> None:
        self._connection = backend._connection
        self._send = self._connection._send
        self._what = what
        self.held: Any = None
        monkey: Any = self._connection
        monkey._send = self._intercept

    async def _intercept(self, method: Any, request: Any, *rest: Any) -> Any:
        ops = request.success if isinstance(request, etcdrpc.TxnRequest) else ()
        if self.held is None and any(op.HasField(f"request_{self._what}") for op in ops):
            self.held = request
            raise NO_REPLY
        return await self._send(method, request, *rest)

    async def arrive(self) -> None:
        """It is carried out now, however long ago it was sent."""
        assert self.held is not None
        await self._connection.call(lambda link: link.kv.Txn, self.held, repeatable=False)
