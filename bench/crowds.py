"""Many at once in one process: elections, candidates for one key, followers of one key.

Each library as its documentation shows it: who needs a thread for each gets a thread for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from bench.entrants import Role
from leadership import aio
from leadership.backend import Backend, Context
from leadership.clock import SystemClock
from leadership.registry import load_backend, parse_address

T = TypeVar("T")

CLOCK = SystemClock()
ABREAST = 1_000
"""Enter at a time: what all of them would need at once while they enter is no cost of each."""

PATIENCE = 60.0
"""Seconds for the next leader to lead, or for all followers to be told."""


class Crowd(ABC):
    """One process of many; a deadline is a moment on `CLOCK` after which no more enter."""

    title: ClassVar[str]
    role: ClassVar[Role] = Role.RIVAL

    def __init__(self, url: str, ttl: float) -> None:
        self.url = url
        self.ttl = ttl
        self.key = f"crowd/{uuid.uuid4().hex}"

    @abstractmethod
    def elections(self, number: int, deadline: float) -> int:
        """Lead at so many keys; how many it came to."""

    def candidates(self, number: int, deadline: float) -> int:
        """Contend with so many for one key; returns once the first leads."""
        raise NotImplementedError

    def resign(self) -> float:
        """Seconds from the leader's call that resigns until the next one leads."""
        raise NotImplementedError

    def followers(self, number: int, deadline: float) -> int:
        """Follow one key so often; how many are told of it now."""
        raise NotImplementedError

    def proclaim(self) -> float:
        """Seconds from the call that changes the key's value until all are told."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027
        """Release what can be released at once."""

    @classmethod
    def can(cls, what: str) -> bool:
        """Whether it has the method of that name."""
        return getattr(cls, what) is not getattr(Crowd, what)


class Told:
    """Counts who has been told; may be asked by one thread and told by many."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._last = 0.0

    def one(self) -> None:
        """One more."""
        with self._changed:
            self._count += 1
            self._last = CLOCK.now()
            self._changed.notify_all()

    def reset(self) -> None:
        with self._changed:
            self._count = 0

    def wait(self, number: int, deadline: float) -> int:
        """Until so many were told, or the deadline; how many were."""
        with self._changed:
            self._changed.wait_for(lambda: self._count >= number, deadline - CLOCK.now())
            return self._count

    def since(self, began: float, number: int) -> float:
        """Seconds from `began` until the last of so many was told.

        Raises:
            TimeoutError: they were not within `PATIENCE`.
        """
        count = self.wait(number, CLOCK.now() + PATIENCE)
        if count < number:
            raise TimeoutError(f"{count} of {number} were told within {PATIENCE:g} s")
        return self._last - began


class OnLoop(Crowd):
    """What runs on an event loop of its own, in a thread of its own."""

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self.told = Told()
        self._kept: list[asyncio.Future[object]] = []
        self._entering = asyncio.Semaphore(ABREAST)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result()

    async def _spawn(self, acts: list[Coroutine[Any, Any, object]]) -> None:
        self._kept += [asyncio.ensure_future(act) for act in acts]

    def spawn(self, acts: list[Coroutine[Any, Any, object]]) -> None:
        """Have all of them run, and tell of each that enters."""
        self.run(self._spawn(acts))

    async def _end(self) -> None:
        for each in self._kept:
            each.cancel()
        await asyncio.gather(*self._kept, return_exceptions=True)

    def close(self) -> None:
        self.run(self._end())


class OurCrowd(OnLoop):
    """This library: all on one store."""

    title = "leadership"
    role = Role.OURS

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self._store = aio.new_store(url)
        self._candidates: list[aio.Candidate] = []
        self._leading: aio.Candidate | None = None

    def _candidate(self, key: str, number: int) -> aio.Candidate:
        candidate = aio.Candidate(self._store, key, str(number), ttl=self.ttl)
        self._candidates.append(candidate)
        return candidate

    async def _lead(self, candidate: aio.Candidate) -> None:
        await candidate.campaign()
        self._leading = candidate
        self.told.one()

    async def _enter(self, candidate: aio.Candidate) -> None:
        async with self._entering:
            await self._lead(candidate)

    def elections(self, number: int, deadline: float) -> int:
        many = [self._candidate(f"{self.key}/{each}", each) for each in range(number)]
        self.spawn([self._enter(each) for each in many])
        return self.told.wait(number, deadline)

    def candidates(self, number: int, deadline: float) -> int:
        many = [self._candidate(self.key, each) for each in range(number)]
        self.spawn([self._lead(each) for each in many])
        return number if self.told.wait(1, deadline) else 0

    def resign(self) -> float:
        assert self._leading is not None
        self.told.reset()
        began = CLOCK.now()
        self.run(self._leading.resign())
        return self.told.since(began, 1)

    async def _follow(self) -> None:
        async for _ in aio.Follower(self._store, self.key).follow_election():
            self.told.one()

    def followers(self, number: int, deadline: float) -> int:
        self._number = number
        self._author = self._candidate(self.key, 0)
        self.run(self._lead(self._author))
        self.told.reset()
        self.spawn([self._follow() for _ in range(number)])
        return self.told.wait(number, deadline)

    def proclaim(self) -> float:
        self.told.reset()
        began = CLOCK.now()
        self.run(self._author.proclaim(uuid.uuid4().hex))
        return self.told.since(began, self._number)

    def close(self) -> None:
        super().close()
        self.run(self._store.close())


class FloorCrowd(OnLoop):
    """So many keys written, or so many watches, with the same client."""

    title = "floor: as many creates, or watches"
    role = Role.FLOOR

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self._backend = self.run(self._connected())

    async def _connected(self) -> Backend:
        address = parse_address(self.url, None, {})
        backend = load_backend(address.scheme)(address, Context())
        await backend.connect()
        return backend

    async def _create(self, number: int) -> None:
        async with self._entering:
            await self._backend.atomic_put(f"{self.key}/{number}", b"x", None)
        self.told.one()

    def elections(self, number: int, deadline: float) -> int:
        self.spawn([self._create(each) for each in range(number)])
        return self.told.wait(number, deadline)

    async def _watch(self) -> None:
        async with contextlib.aclosing(self._backend.watch(self.key)) as states:
            async for _ in states:
                self.told.one()

    def followers(self, number: int, deadline: float) -> int:
        self._number = number
        self.run(self._backend.put(self.key, b"x"))
        self.spawn([self._watch() for _ in range(number)])
        return self.told.wait(number, deadline)

    def proclaim(self) -> float:
        self.told.reset()
        began = CLOCK.now()
        self.run(self._backend.put(self.key, uuid.uuid4().hex.encode()))
        return self.told.since(began, self._number)

    def close(self) -> None:
        super().close()
        self.run(self._backend.delete_tree("crowd"))
        self.run(self._backend.close())


class InThreads(Crowd):
    """What blocks a thread for each of many."""

    def __init__(self, url: str, ttl: float) -> None:
        super().__init__(url, ttl)
        self.told = Told()
        self._resigning: list[threading.Event] = []
        self._began = 0.0

    def lead(self) -> None:
        """To be called by whoever leads: blocks until it is to resign."""
        resigning = threading.Event()
        self._resigning.append(resigning)
        self.told.one()
        resigning.wait()

    def start(self, act: Callable[[int], object], number: int, deadline: float) -> int:
        """A thread for each of so many, while there is time; how many were started."""
        for each in range(number):
            if CLOCK.now() > deadline:
                return each
            threading.Thread(target=act, args=[each], daemon=True).start()
        return number

    @abstractmethod
    def contend(self, key: str) -> None:
        """Contend for the key, call `lead` when it leads, release it."""

    def elections(self, number: int, deadline: float) -> int:
        started = self.start(lambda each: self.contend(f"{self.key}/{each}"), number, deadline)
        return self.told.wait(started, deadline)

    def candidates(self, number: int, deadline: float) -> int:
        started = self.start(lambda each: self.contend(self.key), number, deadline)
        return started if self.told.wait(1, deadline) else 0

    def resign(self) -> float:
        self.told.reset()
        began = CLOCK.now()
        self._resigning[-1].set()
        return self.told.since(began, 1)
