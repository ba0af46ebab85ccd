"""Nodes of the peers backend in this process: some that run, and addresses for those of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from leadership import Store, new_store
from leadership.backends._peers_driver import Driver
from leadership.backends._peers_http import DROPPED, Answer, Asked
from leadership.backends.peers import PeersBackend
from leadership.errors import StoreUnavailable

from .servers.ports import free_port
from .waiting import wait_until

SECRET = "for the tests only"


def backend_of(store: Store) -> PeersBackend:
    backend = store.core.backend
    assert isinstance(backend, PeersBackend)
    return backend


def is_ready(store: Store) -> bool:
    """Whether its node takes part, and reaches a majority."""
    backend = backend_of(store)
    starting = backend._starting
    if starting is None or not starting.done():
        return False
    driver = starting.result()
    return driver.node.ready and driver.knowledge.reaches_quorum()


class PeersCluster:
    """A member list, and the stores that are its nodes.

    Args:
        size: how many members there are.
        options: of every node.
    """

    def __init__(self, size: int, **options: object) -> None:
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(size)]
        # One machine has one wall clock, so there is no skew to wait for.
        own = {"secret": SECRET, "ttl_ceiling": 1, "wall_clock_skew": 0, "bootstrap": 1}
        self.options: dict[str, object] = {**own, **options}

    def url(self, number: int | None = None) -> str:
        """The address for a member's store; None: for a client that only observes."""
        given = dict(self.options)
        if number is None:
            given = {"observe": 1}
        else:
            given["listen"] = self.addresses[number]
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"peers://{','.join(self.addresses)}?{query}".replace(" ", "%20")

    def start(self, *numbers: int, **more: object) -> list[Store]:
        """Start these nodes side by side; they are ready at the return."""
        stores = [new_store(self.url(number), **more) for number in numbers]  # type: ignore[arg-type]
        with ThreadPoolExecutor(len(stores)) as pool:
            for store in stores:
                pool.submit(store.core.call, backend_of(store).driver)
        for store in stores:
            wait_until(lambda store=store: is_ready(store), 30, "a node that takes part")  # type: ignore[misc]
        return stores


@contextlib.contextmanager
def running(size: int, started: int | None = None, **options: object) -> Iterator[PeersCluster]:
    """A cluster of which the first `started` nodes run, from a real start."""
    cluster = PeersCluster(size, **options)
    stores = cluster.start(*range(size if started is None else started))
    try:
        yield cluster
    finally:
        for store in stores:
            store.close()


@contextlib.contextmanager
def cut_off(store: Store) -> Iterator[None]:
    """Nothing that the store's node sends arrives, and nothing reaches it."""
    driver = driver_of(store)

    async def fails(*arguments: object, **more: object) -> Answer:
        raise StoreUnavailable("cut off for the test")

    async def drops(asked: Asked) -> Answer:
        return DROPPED

    call, handler = driver._client.call, driver._server._handler
    driver._client.call = fails  # type: ignore[method-assign]
    driver._server._handler = drops
    try:
        yield
    finally:
        driver._client.call = call  # type: ignore[method-assign]
        driver._server._handler = handler


def driver_of(store: Store) -> Driver:
    """The node of a store, which is started if it is not."""
    return store.core.call(backend_of(store).driver)
