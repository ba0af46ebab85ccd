"""This library as a benchmark's entrant, and the floor: what its store and client take at least."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bench.entrants import Entrant, Place, Role
from leadership import Candidate, Follower, new_store
from leadership.backend import Backend, Context, KVPair
from leadership.errors import KeyExists
from leadership.registry import load_backend, parse_address

T = TypeVar("T")


class Ours(Entrant):
    """This library."""

    title = "leadership"
    role = Role.OURS

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._store = new_store(place.url)
        self._candidate = Candidate(self._store, place.key, place.name, ttl=place.ttl)
        self._standings = self._candidate.run_for_election()

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        for leads in self._standings:
            if leads:
                elected()
                resigning()
                self._candidate.resign()
                return

    def is_leader(self) -> bool:
        return self._candidate.is_leader()

    def question(self) -> Callable[[], bool]:
        return self._candidate.is_leader

    def proclaim(self, value: str) -> None:
        self._candidate.proclaim(value)

    def close(self) -> None:
        self._store.close()

    def follow(self, told: Callable[[str], None]) -> None:
        for leader in Follower(self._store, self.place.key).follow_election():
            if leader is not None:
                told(leader)


class Floor(Entrant):
    """No election: whoever sees the key deleted is next, and writes it again.

    On our own backend, so with the same client as `Ours`; of etcd and Consul, where that adds
    nothing to the requests.
    """

    title = "floor: delete + watch event"
    role = Role.FLOOR

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._runner = asyncio.Runner()
        self._backend = self._run(self._connected())
        self._has_led = False

    def _run(self, act: Awaitable[T]) -> T:
        async def acting() -> T:
            return await act

        return self._runner.run(acting())

    async def _connected(self) -> Backend:
        address = parse_address(self.place.url, None, {})
        backend = load_backend(address.scheme)(address, Context())
        await backend.connect()
        return backend

    async def _put(self, value: str) -> KVPair:
        return await self._backend.put(self.place.key, value.encode())

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        if self._has_led or not self._run(self._created()):
            self._run(self._deleted(elected))
        else:
            elected()
        self._has_led = True
        self._run(self._put(self.place.name))
        resigning()
        self._run(self._backend.delete(self.place.key))

    async def _created(self) -> bool:
        try:
            await self._backend.atomic_put(self.place.key, b"x", None)
        except KeyExists:
            return False
        return True

    async def _deleted(self, elected: Callable[[], None]) -> None:
        was_there = False
        async with contextlib.aclosing(self._backend.watch(self.place.key)) as states:
            async for state in states:
                if state is None and was_there:
                    await self._prove()
                    elected()
                    return
                was_there = was_there or state is not None

    async def _prove(self) -> None:
        """What whoever is told must do still, before it may lead."""

    def is_leader(self) -> bool:
        return self._has_led

    def proclaim(self, value: str) -> None:
        self._run(self._put(value))

    def follow(self, told: Callable[[str], None]) -> None:
        async def all_states() -> None:
            async with contextlib.aclosing(self._backend.watch(self.place.key)) as states:
                async for state in states:
                    if state is not None:
                        told(state.value.decode())

        self._run(all_states())

    def close(self) -> None:
        self._run(self._backend.close())
        self._runner.close()


class FloorAndRead(Floor):
    """Who is woken must still prove its entry, which takes one read."""

    title = "the same, and one read"

    async def _prove(self) -> None:
        await self._backend.get(self.place.key)


class FloorAndWrite(Floor):
    """Who hears that the key is free must still acquire it."""

    title = "the same, and one write"

    async def _prove(self) -> None:
        await self._put(self.place.name)
