"""What a Python user would take on ZooKeeper: kazoo's election, as its documentation shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kazoo.client import KazooClient

from bench.entrants import Entrant, Place


class KazooElection(Entrant):
    """`client.Election(path).run(function)`."""

    title = "kazoo Election"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._client = KazooClient(hosts=place.endpoint, timeout=place.ttl)
        self._client.start()
        self._path = f"/{place.key}"
        self._election = self._client.Election(self._path, place.name)

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        def lead() -> None:
            elected()
            resigning()

        self._election.run(lead)

    def is_leader(self) -> bool:
        return bool(self._election.lock.is_acquired)

    def proclaim(self, value: str) -> None:
        self._client.set(self._path, value.encode())

    def follow(self, told: Callable[[str], None]) -> None:
        @self._client.DataWatch(self._path)  # type: ignore[untyped-decorator]
        def changed(data: bytes | None, stat: object) -> None:
            told((data or b"").decode())

        threading.Event().wait()
