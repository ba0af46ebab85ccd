"""How long an answer of ZooKeeper is waited for, and what is left of one that nobody waits for."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from leadership import new_store
from leadership.backends._zookeeper_connection import _WINDOW
from leadership.backends._zookeeper_deadlines import Deadlines
from leadership.backends._zookeeper_tree import data_of
from leadership.clock import ManualClock

from .conftest import MakeZooKeeper
from .loops import on_a_loop, settle
from .waiting import async_wait_until
from .zookeeper_elections import backend_of

LIMIT = 4.0


def asked(deadlines: Deadlines) -> asyncio.Future[Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    deadlines.add(answer)
    return answer


@on_a_loop
async def test_each_has_the_same_time_from_when_it_was_asked() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock, LIMIT)
    early, answered = asked(deadlines), asked(deadlines)
    clock.advance(LIMIT / 2)
    late = asked(deadlines)
    answered.set_result("an answer")
    clock.advance(LIMIT / 2)
    await settle()
    assert isinstance(early.exception(), TimeoutError)
    assert answered.result() == "an answer"
    assert not late.done()
    clock.advance(LIMIT / 2)
    await settle()
    assert isinstance(late.exception(), TimeoutError)
    # Nobody was left to set the timer for it: it is set anew.
    again = asked(deadlines)
    clock.advance(LIMIT)
    await settle()
    assert isinstance(again.exception(), TimeoutError)


@on_a_loop
async def test_what_was_answered_is_let_go_of_by_the_next() -> None:
    deadlines = Deadlines(ManualClock(), LIMIT)
    answer = asked(deadlines)
    answer.set_result("an answer")
    held = weakref.ref(answer)
    del answer
    kept = asked(deadlines)
    gc.collect()
    assert held() is None
    assert not kept.done()


def test_what_is_given_up_has_its_place_until_the_server_answers(
    make_own_zookeeper: MakeZooKeeper,
) -> None:
    server = make_own_zookeeper()
    with new_store(server.url) as store:
        assert store.get("x") is None

        async def scenario() -> None:
            connection = await backend_of(store)._shared.connection()
            window = connection._window

            async def ask() -> Any:
                return await connection.request(data_of("/zookeeper"), repeatable=True)

            server.pause()
            given_up = [asyncio.ensure_future(ask()) for _ in range(_WINDOW)]
            await settle()
            late = asyncio.ensure_future(ask())
            for each in given_up:
                each.cancel()
            await asyncio.wait(given_up)
            await settle()
            assert (window._free, late.done()) == (0, False)
            server.resume()
            await late
            await async_wait_until(lambda: window._free == _WINDOW, 10, "all places")
            assert connection._outstanding == {}

        store.core.call(scenario)


def test_over_a_broken_connection_who_was_sent_keeps_its_place_before_the_queue(
    make_own_zookeeper: MakeZooKeeper,
) -> None:
    server = make_own_zookeeper()
    with new_store(server.url) as store:
        assert store.get("x") is None

        async def scenario() -> None:
            connection = await backend_of(store)._shared.connection()

            def ask() -> asyncio.Task[object]:
                asking = connection.request(data_of("/zookeeper"), repeatable=True)
                return asyncio.ensure_future(asking)

            server.pause()
            # Half of them are under way, the others queue.
            asked = [ask() for _ in range(2 * _WINDOW)]
            sending = connection._client._queue
            await async_wait_until(lambda: connection._outstanding and not sending, what="all sent")
            connection._handler.give_up()
            await async_wait_until(lambda: not connection.is_connected, what="the break")
            await settle()
            assert len(connection._window._waiting) == _WINDOW
            server.resume()
            await asyncio.gather(*asked)

        store.core.call(scenario)
