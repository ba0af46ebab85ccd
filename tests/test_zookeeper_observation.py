"""Who leads an election on ZooKeeper, seen by those who follow: how soon they are told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from leadership.backends._zookeeper_connection import Connection
from leadership.backends._zookeeper_observation import leaders

from .loops import on_a_loop
from .servers.zookeeper import ZooKeeperClient
from .waiting import async_wait_until
from .zookeeper_elections import contender, opened, win


class TwoAtATime:
    """Answers a connection's requests once two of them wait for it."""

    def __init__(self, connection: Connection) -> None:
        self._request = connection.request
        self._both = asyncio.Event()
        self._asked = 0

    async def request(self, ask: Any, *expected: Any, **more: Any) -> Any:
        self._asked += 1
        if self._asked == 2:
            self._both.set()
        answer = self._request(ask, *expected, **more)
        await self._both.wait()
        return await answer


@on_a_loop
async def test_a_new_value_and_a_new_leader_are_asked_for_in_one_round_trip(
    zookeeper: ZooKeeperClient, key: str
) -> None:
    async with opened(zookeeper) as backend, opened(zookeeper) as other:
        first, second = contender(other, key), contender(other, key)
        await win(first)
        looked: list[None] = []
        second.on_answer = lambda: looked.append(None)
        following = asyncio.ensure_future(win(second))
        await async_wait_until(lambda: looked, what="its place")
        path = backend._path(key)
        async with backend._watching() as connection:
            request = connection.request
            async with contextlib.aclosing(leaders(connection, path, backend._names)) as told:
                seen = await anext(told)
                assert seen is not None
                connection.request = TwoAtATime(connection).request  # type: ignore[method-assign]
                await first.proclaim(b"new")
                async with asyncio.timeout(10):
                    changed = await anext(told)
                assert changed is not None
                assert (changed.value, changed.token) == (b"new", seen.token)
                connection.request = TwoAtATime(connection).request  # type: ignore[method-assign]
                await first.leave()
                async with asyncio.timeout(10):
                    changed = await anext(told)
                assert changed is not None
                assert changed.token > seen.token
                await following
                connection.request = request  # type: ignore[method-assign]
        await second.leave()
        for each in (first, second):
            await each.close()
