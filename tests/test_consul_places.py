"""Places on Consul, and the session that they hang on: made when needed, and never left behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from leadership.backends import _consul_session
from leadership.backends._consul_agents import Agents
from leadership.backends._consul_requests import LOCK_FLAGS
from leadership.errors import SessionLost

from .consul_elections import contender, opened, places, session_for, win
from .loops import on_a_loop
from .servers.consul_client import ConsulClient
from .waiting import async_wait_until

pytestmark = pytest.mark.backend("consul")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b'{"session":"\xff","value":""}', id="no text"),
        pytest.param(b'{"session":"a","value":"","x":' + b"[" * 2000, id="deep"),
        pytest.param(b"[]", id="no place"),
    ],
)
@on_a_loop
async def test_what_anybody_wrote_among_the_places_disturbs_nobody(
    consul: ConsulClient, key: str, value: bytes
) -> None:
    before = session_for(consul, f"{key}.waiting/before", value)
    async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
        first, second = contender(one, key), contender(two, key, b"b")
        await win(first)
        since = session_for(consul, f"{key}.waiting/since", value)
        waiting = asyncio.ensure_future(win(second))
        await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
        assert not any(task.done() for task in first._tasks)
        await first.leave()
        await waiting
        await second.leave()
        for each in (first, second):
            await each.close()
    for session in (before, since):
        consul.destroy_session(session)


@on_a_loop
async def test_a_session_that_is_being_ended_does_not_outlive_the_store(
    consul: ConsulClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy, begun = _consul_session.destroy_session, asyncio.Event()

    async def stuck(agents: Agents, session: str, timeout: float) -> None:
        if not begun.is_set():
            # Its turn does not come.
            begun.set()
            await asyncio.Event().wait()
        await destroy(agents, session, timeout)

    holder = session_for(consul, key, flags=str(LOCK_FLAGS))
    async with opened(consul.endpoint) as one:
        part = contender(one, key, ttl=1)
        waiting = asyncio.ensure_future(win(part))
        await async_wait_until(lambda: places(consul, key), 10, "the place")
        monkeypatch.setattr(_consul_session, "destroy_session", stuck)
        for_places = part._session._waiting
        consul.destroy_session(holder)
        await waiting
        await asyncio.wait_for(begun.wait(), 10)
        assert for_places in consul.sessions()
        await part.leave()
        await part.close()
        assert for_places not in consul.sessions()


@on_a_loop
async def test_who_campaigns_again_without_having_left_may_have_a_place(
    consul: ConsulClient, key: str
) -> None:
    async with opened(consul.endpoint) as one:
        part = contender(one, key)
        await win(part)
        assert not part.may_have_place()
        consul.delete(key)
        holder = session_for(consul, key, flags=str(LOCK_FLAGS))
        waiting = asyncio.ensure_future(win(part))
        await async_wait_until(lambda: places(consul, key), 10, "the place")
        assert part.may_have_place()
        consul.destroy_session(holder)
        await waiting
        await part.leave()
        await part.close()


@on_a_loop
async def test_who_is_refused_forgets_the_session_that_it_used_and_no_later_one(
    consul: ConsulClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(consul.endpoint) as one:
        part = contender(one, key)
        await win(part)
        session = part._session
        used = await session.waiting()

        async def refuse(*operations: Any, repeatable: bool = True) -> Any:
            # Another one on this session was refused before us, and made a new one.
            session._waiting = "later"
            raise SessionLost("gone")

        with monkeypatch.context() as patched:
            patched.setattr(part._election.agents, "transact", refuse)
            assert await part._election.places.take(session, key, b"") is None
        assert session._waiting == "later"
        session._waiting = used
        await part.leave()
        await part.close()


@on_a_loop
async def test_the_guardian_of_who_leads_hears_of_a_session_that_is_made_later(
    consul: ConsulClient, key: str
) -> None:
    holder = session_for(consul, key, flags=str(LOCK_FLAGS))
    async with opened(consul.endpoint) as one:
        led, waits = contender(one, f"{key}/led"), contender(one, key)
        plans: list[Any] = []
        led.on_new_plan = lambda: plans.append(led.release_plan())
        await win(led)
        waiting = asyncio.ensure_future(win(waits))
        await async_wait_until(lambda: places(consul, key), 10, "the place")
        assert led._session is waits._session
        assert led._session._waiting in json.dumps(plans[-1].arguments)
        consul.destroy_session(holder)
        await waiting
        for each in (led, waits):
            await each.leave()
            await each.close()
