"""Elections for any store with TTL keys, compare-and-swap and watch.

The entry is the election's key itself: an envelope with the leader's value
and a nonce of this attempt, so that an answer that never came is resolved by
reading. The token is the index of the write that created it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

import msgspec

from .backend import Backend, Contender, Entry, KVPair
from .errors import KeyExists, KeyModified, NoSuccessor, NotLeader, StoreError, StoreUnavailable
from .events import LeaseRenewed
from .lease import Claim, Lease, claim

DELETED = "the entry was deleted at the store"
REPLACED = "another's entry stands at the store"


class Envelope(msgspec.Struct, frozen=True):
    """What stands under the key while somebody leads."""

    value: bytes
    nonce: str
    # The index of the creating write, which that write itself could not know.
    token: int | None = None


def unseal(pair: KVPair | None) -> Envelope | None:
    """The envelope under a key, or None where nothing or a stranger's value stands."""
    if pair is None:
        return None
    try:
        return msgspec.json.decode(pair.value, type=Envelope)
    except msgspec.DecodeError:
        return None


def token_of(pair: KVPair, envelope: Envelope) -> int:
    return pair.index if envelope.token is None else envelope.token


async def observe_by_watch(backend: Backend, key: str) -> AsyncGenerator[Entry | None, None]:
    """Follow the envelope under `key`; a renewal, which rewrites it, is not told."""
    last: Entry | None = None
    first = True
    async with contextlib.aclosing(backend.watch(key)) as states:
        async for pair in states:
            envelope = unseal(pair)
            entry = None
            if pair is not None and envelope is not None:
                entry = Entry(envelope.value, token_of(pair, envelope))
            if first or entry != last:
                yield entry
            first, last = False, entry


class WaitingRoom:
    """Who waits for each key of a store that is all in one process. Any thread may call.

    Args:
        changed: is told the key at each coming and going.
    """

    def __init__(self, changed: Callable[[str], None] = lambda key: None) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._waiting: dict[str, list[CompareAndSwapContender]] = {}

    @contextlib.contextmanager
    def entered(self, key: str, contender: CompareAndSwapContender) -> Iterator[None]:
        """The contender waits for the time of the block."""
        with self._lock:
            self._waiting.setdefault(key, []).append(contender)
        self._changed(key)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[key].remove(contender)
                if not self._waiting[key]:
                    del self._waiting[key]
            self._changed(key)

    def values(self, key: str) -> tuple[bytes, ...]:
        """What those who wait would lead with, first come first."""
        with self._lock:
            return tuple(each.value for each in self._waiting.get(key, ()))

    def first(self, key: str, name: str) -> CompareAndSwapContender | None:
        """Of those who wait under that name, the one that came first."""
        with self._lock:
            waiting = self._waiting.get(key, ())
            return next((each for each in waiting if each.candidate_id == name), None)

    def holds(self, key: str, contender: CompareAndSwapContender) -> bool:
        """Whether the contender waits."""
        with self._lock:
            return contender in self._waiting.get(key, ())


class CompareAndSwapContender(Contender):
    """Creates the key to win, rewrites it to renew, removes it to leave."""

    def __init__(self, backend: Backend, key: str, value: bytes, ttl: float) -> None:
        self._backend = backend
        self._clock = backend.context.clock
        self._key = key
        self._value = value
        self._ttl = ttl
        # Our entry as we last saw it; its nonce stays known after an unknown
        # outcome, until a read or a removal has settled it.
        self._nonce: str | None = None
        self._pair: KVPair | None = None
        # Whether a removal was begun, and not confirmed: it may come late.
        self._leaving = False
        self._lease: Lease | None = None
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._yield_until = float("-inf")

    @property
    def value(self) -> bytes:
        """What it leads with, or would."""
        return self._value

    async def campaign(self, lost: Callable[[str], None]) -> Claim:
        # The caller may not have taken an earlier claim, as one that came too late.
        await self._stop_tasks()
        if self._leaving:
            # Its term is over: the same entry must not begin another with the same token.
            await self.leave()
        room = self._backend.waiting_room
        if room is None:
            return await self._contend(lost)
        # Who hands over to us writes our entry for us.
        self._choose_nonce()
        with room.entered(self._key, self):
            return await self._contend(lost)

    async def _contend(self, lost: Callable[[str], None]) -> Claim:
        await self._give_others_a_chance()
        async with contextlib.aclosing(self._backend.watch(self._key)) as states:
            async for pair in states:
                if self.on_answer is not None:
                    self.on_answer()
                if pair is not None:
                    envelope = unseal(pair)
                    if envelope is None or envelope.nonce != self._nonce:
                        continue
                    # An attempt whose answer never came had created it. It is
                    # not known when it was sent, so only a renewal makes it ours.
                    return await self._lead(pair, envelope, lost, float("-inf"))
                created = await self._create()
                if created is not None:
                    return await self._lead(*created, lost, self._sent_at)
        raise StoreUnavailable(f"the watch on {self._key!r} ended; it is opened again")

    async def _give_others_a_chance(self) -> None:
        """Who just resigned waits until somebody else has led, or nobody wanted to.

        Without a queue at the store the one that resigned is the first to see
        the key free, and would win straight back.
        """
        if self._clock.now() < self._yield_until:
            await self._clock.wait_for(self._see_another(), self._yield_until)
        self._yield_until = float("-inf")

    async def _see_another(self) -> None:
        async with contextlib.aclosing(self._backend.watch(self._key)) as states:
            async for pair in states:
                if pair is not None:
                    return

    async def _create(self) -> tuple[KVPair, Envelope] | None:
        envelope = Envelope(self._value, self._choose_nonce())
        self._sent_at = self._clock.now()
        try:
            pair = await self._backend.atomic_put(
                self._key, msgspec.json.encode(envelope), None, self._ttl
            )
        except KeyExists:
            return None
        return pair, envelope

    def _choose_nonce(self) -> str:
        if self._nonce is None:
            self._nonce = f"{self._backend.context.random.getrandbits(64):016x}"
        # Else the outcome of an earlier attempt is not known, and it may still
        # arrive: by the same nonce whichever comes first is known as ours.
        return self._nonce

    async def _lead(
        self, pair: KVPair, envelope: Envelope, lost: Callable[[str], None], sent_at: float
    ) -> Claim:
        context = self._backend.context
        self._pair = pair
        self._token = token_of(pair, envelope)
        self._lease = Lease(self._clock, context.max_clock_drift)
        self._lease.confirm(sent_at, self._ttl)
        if not self._lease.is_valid():
            try:
                await self._rewrite()
            except KeyModified as error:
                raise StoreUnavailable(f"{self._key!r} was taken while it was looked at") from error
        told = False

        def tell(reason: str) -> None:
            nonlocal told
            if not told:
                told = True
                lease.end(reason)
                lost(reason)

        lease = self._lease
        self._tasks = [
            asyncio.ensure_future(self._renew(lease, tell)),
            asyncio.ensure_future(self._guard(tell)),
        ]
        return claim(self._token, lease)

    async def _rewrite(self, value: bytes | None = None) -> None:
        """Write our entry anew, for a new ttl.

        Args:
            value: another value than before; it is ours only once it was written, so
                that a proclamation that was given up is not made by a later renewal.

        Raises:
            KeyModified: it is no longer there, or not ours.
        """
        async with self._writing:
            if self._pair is None or self._lease is None or self._nonce is None:
                raise KeyModified(DELETED)
            written = self._value if value is None else value
            envelope = Envelope(written, self._nonce, self._token)
            for retried in (False, True):
                sent_at = self._clock.now()
                try:
                    self._pair = await self._backend.atomic_put(
                        self._key, msgspec.json.encode(envelope), self._pair, self._ttl
                    )
                    break
                except KeyModified as error:
                    # Perhaps by ourselves: an earlier write whose answer never came.
                    present = await self._backend.get(self._key)
                    seen = unseal(present)
                    if present is None:
                        raise KeyModified(DELETED) from error
                    if retried or seen is None or seen.nonce != self._nonce:
                        raise KeyModified(REPLACED) from error
                    self._pair = present
            self._value = written
            self._lease.confirm(sent_at, self._ttl)

    async def _renew(self, lease: Lease, tell: Callable[[str], None]) -> None:
        pause = self._ttl / 3
        while True:
            await self._clock.sleep(pause)
            if lease.ended is not None:
                return
            sent_at = self._clock.now()
            try:
                await self._rewrite()
            except KeyModified as error:
                tell(str(error))
                return
            except StoreError:
                # Whatever it is, the lease's deadline tells it; until then try on.
                pause = self._ttl / 10
            else:
                pause = self._ttl / 3
                now = self._clock.now()
                self._backend.context.emit(
                    LeaseRenewed(self._key, now, now - sent_at, lease.valid_until)
                )

    async def _guard(self, tell: Callable[[str], None]) -> None:
        while True:
            with contextlib.suppress(StoreError):
                async with contextlib.aclosing(self._backend.watch(self._key)) as states:
                    async for pair in states:
                        envelope = unseal(pair)
                        if envelope is None or envelope.nonce != self._nonce:
                            tell(DELETED if pair is None else REPLACED)
                            return
            await self._clock.sleep(self._ttl / 10)

    async def proclaim(self, value: bytes) -> None:
        try:
            await self._rewrite(value)
        except KeyModified as error:
            raise NotLeader(f"{self._key!r} is led by another now; campaign again") from error

    async def leave(self) -> None:
        await self._stop_tasks()
        self._leaving = True
        while self._nonce is not None:
            present = await self._backend.get(self._key)
            seen = unseal(present)
            if present is None or seen is None or seen.nonce != self._nonce:
                self._nonce = None
                break
            with contextlib.suppress(KeyModified):
                await self._backend.atomic_delete(self._key, present)
                self._nonce = None
        self._leaving = False
        if self._pair is not None:
            # We led, perhaps some failed attempts at leaving ago.
            self._yield_until = self._clock.now() + min(1.0, self._ttl / 4)
            self._pair = None

    async def find_successor(self, name: str) -> None:
        room = self._backend.waiting_room
        if room is None:
            await super().find_successor(name)
        elif room.first(self._key, name) is None:
            raise NoSuccessor(
                f"nobody waits for {self._key!r} as {name!r}: name a candidate that does, "
                "or resign to anybody"
            )

    async def hand_over(self, name: str) -> None:
        room = self._backend.waiting_room
        successor = None if room is None else room.first(self._key, name)
        if room is not None and successor is not None:
            await self._stop_tasks()
            await self._write_for(successor, room)
        await self.leave()

    async def _write_for(self, successor: CompareAndSwapContender, room: WaitingRoom) -> None:
        """Put the successor's entry in the place of ours; its watch shows it to it."""
        present = await self._backend.get(self._key)
        seen = unseal(present)
        if present is None or seen is None or seen.nonce != self._nonce:
            return
        entry = msgspec.json.encode(Envelope(successor._value, successor._choose_nonce()))
        with contextlib.suppress(KeyModified):
            written = await self._backend.atomic_put(self._key, entry, present, successor._ttl)
            # Who left the room before this look may not have seen the entry, and
            # would not remove it; who leaves after it sees it.
            if not room.holds(self._key, successor):
                await self._backend.atomic_delete(self._key, written)

    async def close(self) -> None:
        await self._stop_tasks()

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
