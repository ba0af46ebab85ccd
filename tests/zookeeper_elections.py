"""What the tests of elections on ZooKeeper share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from leadership import Store, aio
from leadership.backend import Address, Context
from leadership.backends._zookeeper_contender import ZooKeeperContender
from leadership.backends.zookeeper import ZooKeeperBackend
from leadership.candidate import CandidateBase
from leadership.events import Event
from leadership.lease import Claim

from .candidate_process import CandidateProcess
from .servers.zookeeper import ZooKeeperClient
from .waiting import wait_until


def entries(client: KazooClient, key: str) -> list[str]:
    """The names of an election's nodes, in the order of their making."""
    made = []
    try:
        for name in client.get_children(f"/{key}"):
            stat = client.exists(f"/{key}/{name}")
            if stat is not None:
                made.append((stat.czxid, name))
    except NoNodeError:
        pass
    return [name for _, name in sorted(made)]


def session_of(candidate: CandidateBase[Any]) -> tuple[int, bytes]:
    """The id and password of the session that a candidate's entry hangs on."""
    assert candidate._candidacy is not None
    session = candidate._candidacy._contender._session  # type: ignore[union-attr]
    client_id: tuple[int, bytes] = session.connection._client.client_id
    return client_id


def expire(server: ZooKeeperClient, session: tuple[int, bytes]) -> None:
    """End a session as another client that knows its password."""
    end_session(server.endpoint, session)


def end_session(endpoint: str, session: tuple[int, bytes]) -> None:
    """The same, at an address."""
    thief = KazooClient(hosts=endpoint, client_id=session)
    thief.start(timeout=10)
    thief.stop()
    thief.close()


def backend_of(store: Store | aio.Store) -> ZooKeeperBackend:
    backend = store.core.backend
    assert isinstance(backend, ZooKeeperBackend)
    return backend


def session_id(store: Store, ttl: float) -> int:
    """The id of the session that a store's elections with this ttl share."""
    session = backend_of(store)._election.sessions._slots[ttl, False][0]._session
    assert session is not None
    return session.id


@contextmanager
def two_processes(
    client: KazooClient, url: str, key: str, ttl: float, other_url: str | None = None
) -> Iterator[tuple[CandidateProcess, CandidateProcess]]:
    """One that leads, and one that waits behind it."""
    with CandidateProcess(url, key, "leader", ttl) as leader:
        leader.wait("standing", leader=True)
        with CandidateProcess(other_url or url, key, "other", ttl) as other:
            wait_until(lambda: len(entries(client, key)) == 2, 20, "the second entry")
            yield leader, other


@asynccontextmanager
async def opened(
    server: ZooKeeperClient, emit: Callable[[Event], None] = lambda event: None, **options: Any
) -> AsyncIterator[ZooKeeperBackend]:
    """A backend by itself, on the running loop."""
    backend = ZooKeeperBackend(
        Address("zookeeper", tuple(server.endpoints), "", options),
        Context(emit=emit, request_timeout=3.0),
    )
    try:
        yield backend
    finally:
        await backend.close()


def contender(backend: ZooKeeperBackend, key: str, ttl: float = 30) -> Any:
    """Any, because these tests look at what is inside."""
    made = backend.contender(key, b"a", ttl, False)
    assert isinstance(made, ZooKeeperContender)
    return made


async def win(part: ZooKeeperContender) -> tuple[Claim, list[str]]:
    """The claim, and where the reasons of its loss will be told."""
    lost: list[str] = []
    async with asyncio.timeout(20):
        return await part.campaign(lost.append), lost
