"""What a Python user would take on etcd: etcd3's lock, as its documentation shows it."""

from __future__ import annotations

from collections.abc import Callable

import etcd3

from bench.entrants import Entrant, Place, Renewal


class Etcd3Lock(Entrant):
    """`with client.lock(name, ttl)`, refreshed; its waiters all watch the one key."""

    title = "etcd3 Lock"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._client = etcd3.client(host=place.host, port=place.port)
        self._client.status()
        self._lock = self._client.lock(place.key, ttl=int(place.ttl))

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        self._lock.acquire(timeout=None)
        elected()
        with Renewal(self._lock.refresh, self.place.ttl):
            resigning()
        self._lock.release()

    def is_leader(self) -> bool:
        return bool(self._lock.is_acquired())

    def proclaim(self, value: str) -> None:
        self._client.put(self.place.key, value)

    def follow(self, told: Callable[[str], None]) -> None:
        value, _ = self._client.get(self.place.key)
        events, _ = self._client.watch(self.place.key)
        told((value or b"").decode())
        for event in events:
            if isinstance(event, etcd3.events.PutEvent):
                told(event.value.decode())
