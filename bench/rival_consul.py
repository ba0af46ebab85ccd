"""What a Python user would write on Consul, which has no such library: its guide, on py-consul."""

from __future__ import annotations

import threading
from collections.abc import Callable

import consul

from bench.entrants import Entrant, Place, Renewal


class ConsulLock(Entrant):
    """A session and the key, as Consul's guide to leader election shows them, on py-consul.

    The lock delay is Consul's default, 15 s: it is the guide's only protection from a leader
    that does not know yet that its session is over.
    """

    title = "py-consul lock"

    LOCK_DELAY = 15.0
    """Seconds: Consul's default."""

    RETRY = 1.0
    """Seconds after a refusal while the lock delay lasts: there is nothing to watch then."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._client = consul.Consul(host=place.host, port=place.port)
        self._session = self._client.session.create(name=place.name, ttl=int(place.ttl))
        self._pause = threading.Event()
        renewal = Renewal(lambda: self._client.session.renew(self._session), place.ttl)
        renewal.__enter__()

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        key, name = self.place.key, self.place.name
        while not self._client.kv.put(key, name, acquire=self._session):
            self._wait_until_free()
        elected()
        resigning()
        self._client.kv.put(key, name, release=self._session)

    def _wait_until_free(self) -> None:
        index, pair = self._client.kv.get(self.place.key)
        if pair is None or "Session" not in pair:
            self._pause.wait(self.RETRY)
        while pair is not None and "Session" in pair:
            index, pair = self._client.kv.get(self.place.key, index=index, wait="60s")

    def is_leader(self) -> bool:
        _, pair = self._client.kv.get(self.place.key)
        return pair is not None and pair.get("Session") == self._session

    def proclaim(self, value: str) -> None:
        self._client.kv.put(self.place.key, value, acquire=self._session)

    def follow(self, told: Callable[[str], None]) -> None:
        index = None
        while True:
            index, pair = self._client.kv.get(self.place.key, index=index, wait="60s")
            told("" if pair is None else (pair["Value"] or b"").decode())
