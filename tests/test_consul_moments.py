"""A candidate on Consul is cancelled at each request, just before and just after it is done."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from leadership.backends.consul import ConsulBackend

from .consul_elections import contender, opened, places, win
from .loops import on_a_loop, settle
from .servers.consul_client import ConsulClient
from .waiting import async_wait_until


class Interruption:
    """Cancels `task` at the `at`-th request of a backend, counted from when it is set."""

    def __init__(self, backend: ConsulBackend, at: int, done: bool) -> None:
        self.task: asyncio.Future[Any] | None = None
        self.happened = False
        self._requests = itertools.count(1)
        self._at = at
        self._done = done
        self._send = backend._agents._send
        backend._agents._send = self._counted  # type: ignore[method-assign, assignment]

    async def _counted(self, *arguments: Any) -> Any:
        now = self.task is not None and next(self._requests) == self._at
        if now and not self._done:
            await self._interrupt()
        answer = await self._send(*arguments)
        if now and self._done:
            await self._interrupt()
        return answer

    async def _interrupt(self) -> None:
        assert self.task is not None
        self.happened = True
        self.task.cancel()
        await asyncio.sleep(0)


@pytest.mark.parametrize("done", [False, True])
def test_who_is_cancelled_in_its_campaign_leaves_nothing(
    consul: ConsulClient, key: str, done: bool
) -> None:
    async def interrupted(at: int) -> bool:
        async with opened(consul.endpoint) as backend:
            part = contender(backend, key)
            cut = Interruption(backend, at, done)
            cut.task = asyncio.ensure_future(win(part))
            await asyncio.wait([cut.task])
            cut.task = None
            await part.leave()
            assert consul.keys(key) == [], at
            await win(part)
            await part.leave()
            await part.close()
            return cut.happened

    async def scenario() -> int:
        for at in itertools.count(1):
            if not await interrupted(at):
                return at
        raise AssertionError

    before = set(consul.sessions())
    assert asyncio.run(scenario()) > 4
    assert set(consul.sessions()) <= before


@pytest.mark.parametrize("done", [pytest.param(False, marks=pytest.mark.long), True])
def test_who_is_cancelled_while_it_waits_or_is_handed_the_key_leaves_nothing(
    consul: ConsulClient, key: str, done: bool
) -> None:
    async def interrupted(at: int) -> bool:
        async with opened(consul.endpoint) as backend, opened(consul.endpoint) as other:
            leader, part = contender(other, key), contender(backend, key)
            await win(leader)
            cut = Interruption(backend, at, done)
            cut.task = asyncio.ensure_future(win(part))
            await async_wait_until(
                lambda: cut.task.done() or leader._attendance._seen,  # type: ignore[union-attr]
                what="the leader's notice of who waits",
            )
            if not cut.task.done():
                await leader.leave()
                await asyncio.wait([cut.task])
            cut.task = None
            await part.leave()
            assert places(consul, key) == [], at
            await leader.leave()
            assert consul.keys(key) == [], at
            await win(leader)
            await leader.leave()
            for each in (leader, part):
                await each.close()
            return cut.happened

    async def scenario() -> int:
        for at in itertools.count(1):
            if not await interrupted(at):
                return at
        raise AssertionError

    before = set(consul.sessions())
    assert asyncio.run(scenario()) > 5
    assert set(consul.sessions()) <= before


@pytest.mark.parametrize("done", [False, True])
def test_who_is_cancelled_while_it_leaves_can_leave_again(
    consul: ConsulClient, key: str, done: bool
) -> None:
    async def interrupted(at: int) -> bool:
        async with opened(consul.endpoint) as backend, opened(consul.endpoint) as other:
            part, waiter = contender(backend, key), contender(other, key)
            claim, _ = await win(part)
            waiting = asyncio.ensure_future(win(waiter))
            await async_wait_until(lambda: part._attendance._seen, what="who waits")
            cut = Interruption(backend, at, done)
            cut.task = asyncio.ensure_future(part.leave())
            await asyncio.wait([cut.task])
            cut.task = None
            await part.leave()
            won, _ = await waiting
            assert won.token > claim.token
            await waiter.leave()
            for each in (part, waiter):
                await each.close()
            return cut.happened

    async def scenario() -> int:
        for at in itertools.count(1):
            if not await interrupted(at):
                return at
        raise AssertionError

    assert asyncio.run(scenario()) > 1
    assert consul.keys(key) == []


@on_a_loop
async def test_who_enters_again_at_once_is_not_undone_by_what_it_left_behind(
    consul: ConsulClient, key: str
) -> None:
    async with opened(consul.endpoint) as backend:
        part = contender(backend, key)
        await win(part)
        # A resignation of which no reply came, as the next campaign finds it.
        part._unsure = part._leaving = True
        claim, lost = await win(part)
        await settle()
        still_at_work = {task.get_coro().__name__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        assert "_sweep" not in still_at_work
        assert claim.lease.is_valid()
        assert lost == []
        await part.leave()
