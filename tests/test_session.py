"""Sessions are shared where they may be, and kept apart where they must be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from leadership.clock import ManualClock
from leadership.errors import StoreUnavailable
from leadership.lease import Lease
from leadership.session import Session, SessionPool


class FakeSession(Session):
    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.lease = Lease(ManualClock(), 0.0)
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Opener:
    """Opens sessions when told to, and counts them."""

    def __init__(self) -> None:
        self.opened: list[FakeSession] = []
        self.go = asyncio.Event()
        self.go.set()
        self.fail = False

    def __call__(self, ttl: float) -> asyncio.Future[FakeSession]:
        return asyncio.ensure_future(self._open(ttl))

    async def _open(self, ttl: float) -> FakeSession:
        await self.go.wait()
        if self.fail:
            raise StoreUnavailable("down")
        session = FakeSession(ttl)
        self.opened.append(session)
        return session


def run(scenario: Callable[[Opener, SessionPool[FakeSession]], Awaitable[None]]) -> None:
    async def with_pool() -> None:
        opener = Opener()
        await scenario(opener, SessionPool(opener))

    asyncio.run(with_pool())


def test_contenders_for_different_keys_share_one_session() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slots = [pool.reserve(f"key{n}", 10) for n in range(100)]
        sessions = await asyncio.gather(*(slot.session() for slot in slots))
        assert len(set(sessions)) == len(opener.opened) == 1

    run(scenario)


def test_the_third_contender_for_a_key_has_the_third_session() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slots = [pool.reserve("key", 10) for _ in range(3)]
        others = [pool.reserve("other", 10) for _ in range(3)]
        sessions = [await slot.session() for slot in (*slots, *others)]
        assert len(set(sessions)) == 3
        assert sessions[:3] == sessions[3:]

    run(scenario)


def test_another_ttl_and_an_own_session_are_apart() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slots = [
            pool.reserve("a", 10),
            pool.reserve("b", 20),
            pool.reserve("c", 10, own=True),
            pool.reserve("d", 10),
        ]
        first, longer, own, shared = [await slot.session() for slot in slots]
        assert len({first, longer, own}) == 3
        assert shared is first
        assert longer.ttl == 20

    run(scenario)


def test_the_last_user_closes_and_nobody_before() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        first, second = pool.reserve("a", 10), pool.reserve("b", 10)
        session = await first.session()
        await pool.give_back(first, "a")
        assert session.closed == 0
        assert await second.session() is session
        await pool.give_back(second, "b")
        assert session.closed == 1
        third = pool.reserve("a", 10)
        assert await third.session() is not session

    run(scenario)


def test_a_lost_session_is_replaced_once_for_all() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slots = [pool.reserve(f"key{n}", 10) for n in range(10)]
        old = await slots[0].session()
        old.lease.end("gone")
        new = await asyncio.gather(*(slot.session() for slot in slots))
        assert len(set(new)) == 1
        assert new[0] is not old

    run(scenario)


def test_one_users_cancellation_does_not_take_the_opening_from_another() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        first, second = pool.reserve("a", 10), pool.reserve("b", 10)
        opener.go.clear()
        impatient = asyncio.ensure_future(first.session())
        patient = asyncio.ensure_future(second.session())
        await asyncio.sleep(0)
        impatient.cancel()
        opener.go.set()
        assert (await patient) is opener.opened[0]
        assert len(opener.opened) == 1

    run(scenario)


def test_a_session_whose_opening_nobody_waits_for_is_closed() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slot = pool.reserve("a", 10)
        opener.go.clear()
        waiting = asyncio.ensure_future(slot.session())
        await asyncio.sleep(0)
        waiting.cancel()
        leaving = asyncio.ensure_future(pool.give_back(slot, "a"))
        await asyncio.sleep(0)
        opener.go.set()
        await leaving
        assert [session.closed for session in opener.opened] == [1]

    run(scenario)


def test_an_opening_that_failed_is_tried_again() -> None:
    async def scenario(opener: Opener, pool: SessionPool[FakeSession]) -> None:
        slot = pool.reserve("a", 10)
        opener.fail = True
        with pytest.raises(StoreUnavailable):
            await slot.session()
        opener.fail = False
        assert await slot.session()
        await pool.close()
        assert opener.opened[0].closed == 1

    run(scenario)
