"""The faults that tests inject: they prove nothing if they do not break anything."""

from __future__ import annotations

import asyncio

import pytest

from leadership import new_store
from leadership.backend import Address, Context
from leadership.backends.memory import MemoryBackend
from leadership.contention import CompareAndSwapContender
from leadership.errors import AccessDenied, ConfigurationError, StoreUnavailable
from leadership.faults import FaultyBackend

from .loops import on_a_loop, settle

pytestmark = pytest.mark.backend("memory")

ADDRESS = Address("memory", ("faults",))


@on_a_loop
async def test_a_cut_fails_every_call_and_breaks_every_watch() -> None:
    store = FaultyBackend(MemoryBackend(ADDRESS, Context()))
    pair = await store.put("key", b"x")
    waiting = store.watch("key")
    busy = store.watch_tree("")
    assert await anext(waiting) == pair
    assert await anext(busy) == [pair]
    broken = asyncio.ensure_future(anext(waiting))
    await settle()
    with store.cut_off():
        with pytest.raises(StoreUnavailable):
            await broken
        for call in (
            store.connect(),
            store.get("key"),
            store.put("key", b""),
            store.delete("key"),
            store.list(""),
            store.delete_tree("key"),
            store.atomic_put("key", b"", pair),
            store.atomic_delete("key", pair),
            anext(store.watch("key")),
        ):
            with pytest.raises(StoreUnavailable):
                await call
    with pytest.raises(StoreUnavailable):
        await anext(busy)
    assert await store.get("key") == pair
    assert store.calls["get"] == 3
    await store.delete("key")


@on_a_loop
async def test_a_watch_ends_with_its_backend_and_with_its_reader() -> None:
    here = MemoryBackend(ADDRESS, Context())
    store = FaultyBackend(MemoryBackend(ADDRESS, Context()))
    states = store.watch("key")
    await anext(states)
    reading = asyncio.ensure_future(anext(states))
    await settle()
    reading.cancel()
    await asyncio.wait([reading])
    assert here.space._watchers == {}
    await store.close()


@on_a_loop
async def test_a_refused_call_changes_nothing_and_a_lost_one_does() -> None:
    here = MemoryBackend(ADDRESS, Context())
    store = FaultyBackend(MemoryBackend(ADDRESS, Context()))
    store.refuse("put", AccessDenied("no"))
    store.lose_reply("put")
    with pytest.raises(AccessDenied):
        await store.put("key", b"refused")
    assert await here.get("key") is None
    with pytest.raises(StoreUnavailable):
        await store.put("key", b"lost")
    pair = await here.get("key")
    assert pair is not None
    assert pair.value == b"lost"
    store.lose_reply("atomic_put")
    with pytest.raises(StoreUnavailable):
        await store.atomic_put("key", b"", None)
    assert await store.delete("key") is True


def test_what_it_does_not_know_is_refused_with_advice() -> None:
    store = FaultyBackend(MemoryBackend(Address("memory", ("x",)), Context()))
    with pytest.raises(ConfigurationError, match="give one of get, put"):
        store.lose_reply("watch")


def test_a_backend_with_an_idiom_of_its_own_is_refused() -> None:
    class Native(MemoryBackend):
        def contender(
            self, key: str, value: bytes, ttl: float, own_session: bool
        ) -> CompareAndSwapContender:
            raise NotImplementedError

    with pytest.raises(ConfigurationError, match="cut its network off"):
        FaultyBackend(Native(Address("native", ("x",)), Context()))


def test_under_a_store_it_breaks_what_the_store_does() -> None:
    with new_store("memory://faults-under") as store:
        faults = FaultyBackend.under(store)
        store.put("key", "x")
        with faults.cut_off(), pytest.raises(StoreUnavailable):
            store.get("key")
        assert store.exists("key")
        assert store.capabilities == MemoryBackend.capabilities
