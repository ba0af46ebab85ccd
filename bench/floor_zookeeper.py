"""ZooKeeper's own floor: a delete and the watch event, on kazoo's client and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import NodeExistsError

from bench.crowds import CLOCK, FloorCrowd
from bench.entrants import Entrant, Place, Role

ABREAST = 100
"""Requests under way: with some 270 kazoo blocks who asks."""


class ZooKeeperFloor(Entrant):
    """No election: whoever sees the node deleted is next, and makes it again."""

    title = "floor: delete + watch event"
    role = Role.FLOOR

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._client = KazooClient(hosts=place.endpoint, timeout=place.ttl)
        self._client.start()
        self._path = f"/{place.key}"
        self._has_led = False

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        if self._has_led or not self._created():
            self._wait_until_deleted(elected)
            self._created()
        else:
            elected()
        self._has_led = True
        resigning()
        self._client.delete(self._path)

    def _created(self) -> bool:
        try:
            self._client.create(self._path, b"x", makepath=True)
        except NodeExistsError:
            return False
        return True

    def _wait_until_deleted(self, elected: Callable[[], None]) -> None:
        told = threading.Event()
        made = threading.Event()

        def changed(event: Any) -> None:
            if event.type == "DELETED":
                self._prove(elected, told.set)
            else:
                made.set()

        # Whoever leads may not have made it yet: then this watch tells of that, and the next
        # one of its end.
        if self._client.exists(self._path, watch=changed) is None:
            made.wait()
            self._client.exists(self._path, watch=changed)
        told.wait()

    def _prove(self, elected: Callable[[], None], proved: Callable[[], None]) -> None:
        """What whoever is told must do still, before it may lead; runs where answers come in."""
        elected()
        proved()

    def is_leader(self) -> bool:
        return self._has_led

    def proclaim(self, value: str) -> None:
        self._client.set(self._path, value.encode())

    def follow(self, told: Callable[[str], None]) -> None:
        def changed(event: Any) -> None:
            # The event does not carry the value.
            self._client.get_async(self._path, watch=changed).rawlink(read)

        def read(answer: Any) -> None:
            told(answer.get()[0].decode())

        changed(None)
        threading.Event().wait()


class ZooKeeperFloorAndProof(ZooKeeperFloor):
    """Who is woken must still see that it is first, and that a quorum has its node."""

    title = "the same, a read and a check"

    def _prove(self, elected: Callable[[], None], proved: Callable[[], None]) -> None:
        def prove() -> None:
            parent = self._path.rpartition("/")[0]
            seen = self._client.get_children_async(parent)
            transaction = self._client.transaction()
            transaction.check(parent, -1)
            checked = transaction.commit_async()
            seen.get()
            checked.get()
            elected()
            proved()

        threading.Thread(target=prove).start()


class ZooKeeperFloorCrowd(FloorCrowd):
    """A directory and an entry in it for each, made in one step, and a watch on the entry."""

    title = "floor: as many entries, or watches"

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self._client = KazooClient(hosts=Place(url, "", "", ttl).endpoint, timeout=ttl)
        self._client.start()

    def elections(self, number: int, deadline: float) -> int:
        self._client.ensure_path(f"/{self.key}")
        places = threading.Semaphore(ABREAST)

        def made(answer: Any) -> None:
            _, entry = answer.get()
            self._client.exists_async(entry, watch=lambda event: None).rawlink(watched)

        def watched(answer: Any) -> None:
            places.release()
            self.told.one()

        for each in range(number):
            if CLOCK.now() > deadline:
                break
            places.acquire()
            transaction = self._client.transaction()
            transaction.create(f"/{self.key}/{each}")
            transaction.create(f"/{self.key}/{each}/n-", b"x", ephemeral=True, sequence=True)
            transaction.commit_async().rawlink(made)
        return self.told.wait(number, deadline)

    def close(self) -> None:
        self._client.stop()
        super().close()
