"""Many of what else a Python user would take, in one process."""

from __future__ import annotations

import threading
import uuid

import consul
import etcd3
from kazoo.client import KazooClient

from bench.crowds import CLOCK, InThreads
from bench.entrants import Place, Renewal


class KazooCrowd(InThreads):
    """An `Election` for each, all on one client."""

    title = "kazoo Election"

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self._client = KazooClient(hosts=Place(url, "", "", ttl).endpoint, timeout=ttl)
        self._client.start()

    def contend(self, key: str) -> None:
        self._client.Election(f"/{key}", "a").run(self.lead)

    def followers(self, number: int, deadline: float) -> int:
        self._number = number
        path = f"/{self.key}"
        self._client.ensure_path(path)
        for each in range(number):
            if CLOCK.now() > deadline:
                return each
            self._client.DataWatch(path, lambda data, stat: self.told.one())
        return self.told.wait(number, deadline)

    def proclaim(self) -> float:
        self.told.reset()
        began = CLOCK.now()
        self._client.set(f"/{self.key}", uuid.uuid4().bytes)
        return self.told.since(began, self._number)

    def close(self) -> None:
        # Those that wait learn of the end by an exception in their threads.
        threading.excepthook = lambda args: None
        self._client.stop()


class Etcd3Crowd(InThreads):
    """A `Lock` for each, all on one client, each with a lease that must be refreshed."""

    title = "etcd3 Lock"

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        place = Place(url, "", "", ttl)
        self._client = etcd3.client(host=place.host, port=place.port)

    def contend(self, key: str) -> None:
        lock = self._client.lock(key, ttl=int(self.ttl))
        lock.acquire(timeout=None)
        with Renewal(lock.refresh, self.ttl):
            self.lead()
        lock.release()

    def followers(self, number: int, deadline: float) -> int:
        self._number = number
        self._client.put(self.key, "x")
        for each in range(number):
            if CLOCK.now() > deadline:
                return each
            self._client.add_watch_callback(self.key, lambda answer: self.told.one())
        return number

    def proclaim(self) -> float:
        self.told.reset()
        began = CLOCK.now()
        self._client.put(self.key, uuid.uuid4().hex)
        return self.told.since(began, self._number)


class ConsulCrowd(InThreads):
    """One session for all, and a thread that waits for each."""

    title = "py-consul lock"

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self._place = Place(url, "", "", ttl)
        client = self._client()
        self._shared = client.session.create(ttl=int(ttl))
        Renewal(lambda: client.session.renew(self._shared), ttl).__enter__()

    def _client(self) -> consul.Consul:
        return consul.Consul(host=self._place.host, port=self._place.port)

    def contend(self, key: str) -> None:
        if key != self.key:
            self._lead_once(key, self._shared)
            return
        # Candidates for one key are told apart by their sessions.
        client = self._client()
        session = client.session.create(ttl=int(self.ttl))
        with Renewal(lambda: client.session.renew(session), self.ttl):
            self._lead_once(key, session)

    def _lead_once(self, key: str, session: str) -> None:
        client = self._client()
        while not client.kv.put(key, "a", acquire=session):
            index, pair = client.kv.get(key)
            while pair is not None and "Session" in pair:
                index, pair = client.kv.get(key, index=index, wait="60s")
        self.lead()
        client.kv.put(key, "a", release=session)

    def close(self) -> None:
        self._client().session.destroy(self._shared)
