"""What a Python user would take instead, each as its own documentation shows it.

Where a library leaves the renewal to its user, as etcd3's lock and Consul's sessions do, a
thread renews at a third of the ttl: the rate of `leadership`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import consul
import etcd3
from kazoo.client import KazooClient
from tooz import coordination

from bench.entrants import Entrant, Place


class Renewal:
    """Calls a function at a third of the ttl for the time of a `with` block."""

    def __init__(self, renew: Callable[[], object], ttl: float) -> None:
        self._renew = renew
        self._interval = ttl / 3
        self._over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._go_on, daemon=True).start()

    def __exit__(self, *outcome: object) -> None:
        self._over.set()

    def _go_on(self) -> None:
        while not self._over.wait(self._interval):
            self._renew()


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


class ToozElection(Entrant):
    """Runs for the election of a group, and asks ten times a second, as its tutorial does."""

    title = "tooz election"

    POLL = 0.1
    """Seconds, as in tooz's tutorial."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._coordinator: Any = coordination.get_coordinator(
            f"zookeeper://{place.endpoint}?timeout={place.ttl:g}", place.name.encode()
        )
        self._coordinator.start()
        self._group = place.key.replace("/", "-").encode()
        self._leads = threading.Event()
        self._pause = threading.Event()
        with contextlib.suppress(coordination.GroupAlreadyExist):
            self._coordinator.create_group(self._group).get()
        self._coordinator.join_group(self._group).get()

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        self._leads.clear()

        def when_elected(event: object) -> None:
            self._leads.set()
            elected()

        self._coordinator.watch_elected_as_leader(self._group, when_elected)
        while not self._leads.is_set():
            self._coordinator.heartbeat()
            self._coordinator.run_watchers()
            self._pause.wait(self.POLL)
        resigning()
        self._coordinator.unwatch_elected_as_leader(self._group, when_elected)
        self._coordinator.stand_down_group_leader(self._group)

    def is_leader(self) -> bool:
        return self._leads.is_set()


class ToozLock(Entrant):
    """`coordinator.get_lock(name)`, with tooz's own heart beating; it has no election on etcd."""

    title = "tooz lock"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._coordinator: Any = coordination.get_coordinator(self._url(place), place.name.encode())
        self._coordinator.start(start_heart=True)
        self._lock = self._coordinator.get_lock(place.key.encode())

    def _url(self, place: Place) -> str:
        ttl = int(place.ttl)
        return f"etcd3+http://{place.endpoint}?lock_timeout={ttl}&membership_timeout={ttl}"

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        self._lock.acquire()
        elected()
        resigning()
        self._lock.release()

    def is_leader(self) -> bool:
        return bool(self._lock.acquired)


class ToozZooKeeperLock(ToozLock):
    """The same on ZooKeeper."""

    def _url(self, place: Place) -> str:
        return f"zookeeper://{place.endpoint}?timeout={place.ttl:g}"


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
