"""tooz, which offers the same on several stores, as its tutorials show it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from tooz import coordination

from bench.entrants import Entrant, Place


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
