"""Sessions are shared by elections, kept apart per key, and end with their last user."""

from __future__ import annotations

import asyncio

import pytest

from leadership.clock import ManualClock
from leadership.errors import HandleClosed, StoreUnavailable
from leadership.lease import Lease
from leadership.session import Session, SessionPool, Slot

from .loops import on_a_loop, settle


class FakeSession(Session):
    def __init__(self, server: FakeServer, ttl: float) -> None:
        self.lease = Lease(ManualClock(), 0.01)
        self.ttl = ttl
        self._server = server
        server.open.add(self)

    async def close(self) -> None:
        await settle()
        self._server.open.discard(self)


class FakeServer:
    """Opens sessions, when the test lets it."""

    def __init__(self) -> None:
        self.open: set[FakeSession] = set()
        self.opened = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.errors: list[Exception] = []

    def pool(self) -> SessionPool[FakeSession]:
        return SessionPool(lambda ttl: asyncio.ensure_future(self._open(ttl)))

    async def _open(self, ttl: float) -> FakeSession:
        self.opened += 1
        await self.answers.wait()
        if self.errors:
            raise self.errors.pop(0)
        return FakeSession(self, ttl)


@on_a_loop
async def test_elections_with_the_same_ttl_share_one_session() -> None:
    server = FakeServer()
    pool = server.pool()
    slots = [pool.reserve(f"election/{number}", 15) for number in range(100)]
    sessions = await asyncio.gather(*(slot.session() for slot in slots))
    assert len(set(sessions)) == server.opened == 1
    assert sessions[0].ttl == 15


@on_a_loop
async def test_reserving_opens_nothing() -> None:
    server = FakeServer()
    pool = server.pool()
    slot = pool.reserve("key", 15)
    await settle()
    assert server.opened == 0
    await pool.give_back(slot, "key")
    assert server.opened == 0


@on_a_loop
async def test_another_ttl_is_another_session() -> None:
    server = FakeServer()
    pool = server.pool()
    first, second = pool.reserve("a", 15), pool.reserve("b", 10)
    assert await first.session() is not await second.session()
    assert {session.ttl for session in server.open} == {10, 15}


@on_a_loop
async def test_the_kth_contender_for_a_key_uses_the_kth_session() -> None:
    server = FakeServer()
    pool = server.pool()
    for_a = [await pool.reserve("a", 15).session() for _ in range(3)]
    for_b = [await pool.reserve("b", 15).session() for _ in range(3)]
    assert len(set(for_a)) == 3
    assert for_b == for_a


@on_a_loop
async def test_a_place_that_was_given_back_is_taken_again() -> None:
    server = FakeServer()
    pool = server.pool()
    first, second = pool.reserve("a", 15), pool.reserve("a", 15)
    sessions = [await first.session(), await second.session()]
    pool.reserve("b", 15)  # keeps the first session alive
    await pool.give_back(first, "a")
    assert await pool.reserve("a", 15).session() is sessions[0]
    assert len(server.open) == 2


@on_a_loop
async def test_a_session_of_ones_own_is_shared_with_nobody() -> None:
    server = FakeServer()
    pool = server.pool()
    own = pool.reserve("b", 15, own=True)
    shared = pool.reserve("a", 15)
    another = pool.reserve("c", 15, own=True)
    late = pool.reserve("d", 15)
    assert late is shared
    assert len({await slot.session() for slot in (shared, own, another, late)}) == 3
    await pool.give_back(own, "b")
    assert len(server.open) == 2
    # Given back, it is not reused either: it is gone.
    assert pool.reserve("e", 15) is shared


@on_a_loop
async def test_one_that_leaves_never_ends_the_session_and_the_last_one_does() -> None:
    server = FakeServer()
    pool = server.pool()
    slots = {key: pool.reserve(key, 15) for key in "abc"}
    session = await slots["a"].session()
    for key in "ab":
        await pool.give_back(slots[key], key)
        assert server.open == {session}
    await pool.give_back(slots["c"], "c")
    assert server.open == set()
    assert await pool.reserve("a", 15).session() is not session


@on_a_loop
async def test_giving_back_twice_takes_nothing_from_others() -> None:
    server = FakeServer()
    pool = server.pool()
    slot = pool.reserve("a", 15)
    pool.reserve("b", 15)
    await slot.session()
    await pool.give_back(slot, "a")
    await pool.give_back(slot, "a")
    assert len(server.open) == 1


@on_a_loop
async def test_a_lost_session_is_replaced_once_for_all_its_users() -> None:
    server = FakeServer()
    pool = server.pool()
    slots = [pool.reserve(key, 15) for key in "abc"]
    lost = await slots[0].session()
    lost.lease.end("expired")
    replaced = await asyncio.gather(*(slot.session() for slot in slots))
    assert len(set(replaced)) == 1
    assert replaced[0] is not lost
    assert server.opened == 2


@on_a_loop
async def test_a_failed_opening_is_told_to_all_who_wait_and_tried_anew_by_the_next() -> None:
    server = FakeServer()
    server.errors.append(StoreUnavailable("no answer"))
    pool = server.pool()
    slot = pool.reserve("a", 15)
    waiting = await asyncio.gather(slot.session(), slot.session(), return_exceptions=True)
    assert [type(each) for each in waiting] == [StoreUnavailable] * 2
    assert isinstance(await slot.session(), FakeSession)
    assert server.opened == 2


@on_a_loop
async def test_one_users_cancellation_does_not_take_the_session_from_the_others() -> None:
    server = FakeServer()
    server.answers.clear()
    pool = server.pool()
    slot = pool.reserve("a", 15)
    pool.reserve("b", 15)
    first, second = asyncio.ensure_future(slot.session()), asyncio.ensure_future(slot.session())
    await settle()
    first.cancel()
    await settle()
    server.answers.set()
    assert (await second) in server.open
    assert first.cancelled()
    assert server.opened == 1


@on_a_loop
async def test_cancellation_while_it_opens_leaves_nothing_at_the_server() -> None:
    server = FakeServer()
    server.answers.clear()
    pool = server.pool()
    slot = pool.reserve("a", 15)
    opening = asyncio.ensure_future(slot.session())
    await settle()
    opening.cancel()
    leaving = asyncio.ensure_future(pool.give_back(slot, "a"))
    await settle()
    assert not leaving.done(), "the answer that names the session is still under way"
    server.answers.set()
    await leaving
    assert server.opened == 1
    assert server.open == set()


@on_a_loop
async def test_cancellation_while_an_opening_fails_leaves_no_complaint() -> None:
    server = FakeServer()
    server.answers.clear()
    server.errors.append(StoreUnavailable("no answer"))
    pool = server.pool()
    slot = pool.reserve("a", 15)
    opening = asyncio.ensure_future(slot.session())
    await settle()
    opening.cancel()
    leaving = asyncio.ensure_future(pool.give_back(slot, "a"))
    server.answers.set()
    await leaving


@on_a_loop
async def test_closing_the_pool_ends_all_sessions_also_one_that_is_opening() -> None:
    server = FakeServer()
    pool = server.pool()
    slots: list[Slot[FakeSession]] = [pool.reserve("a", ttl) for ttl in (10, 15, 15)]
    await slots[0].session()
    await slots[1].session()
    server.answers.clear()
    opening = asyncio.ensure_future(slots[2].session())
    await settle()
    closing = asyncio.ensure_future(pool.close())
    await settle()
    server.answers.set()
    await closing
    await asyncio.gather(opening, return_exceptions=True)
    assert server.open == set()


@on_a_loop
async def test_after_the_pool_was_closed_nobody_opens_a_session_that_would_stay() -> None:
    server = FakeServer()
    pool = server.pool()
    slot = pool.reserve("a", 15)
    await slot.session()
    await pool.close()
    with pytest.raises(HandleClosed, match="make a new store"):
        await slot.session()
    await pool.give_back(slot, "a")
    assert server.open == set()
