"""Very many requests at once to a Consul agent that is slow, and lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from leadership.backends._consul_agents import Access, Agents
from leadership.backends._consul_session import renew_session
from leadership.clock import SystemClock

from .loops import on_a_loop
from .servers.ports import LOOPBACK

LIMIT = 1.0
SLOW = 0.4


class SlowAgent:
    """Takes its time for each renewal, and answers no blocking query.

    Attributes:
        most: renewals that it was asked for at once.
    """

    def __init__(self) -> None:
        self.most = 0
        self._at_once = 0

    async def renew(self, request: web.Request) -> web.Response:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        await asyncio.sleep(SLOW)
        self._at_once -= 1
        return web.json_response([{"TTL": "10s"}])

    async def query(self, request: web.Request) -> web.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


@asynccontextmanager
async def serving(agent: SlowAgent) -> AsyncGenerator[Agents]:
    application = web.Application()
    application.router.add_put("/v1/session/renew/{id}", agent.renew)
    application.router.add_get("/v1/kv/{key}", agent.query)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    agents = Agents((f"{LOOPBACK}:{runner.addresses[0][1]}",), Access(), 5.0, SystemClock())
    try:
        yield agents
    finally:
        await agents.close()
        await runner.cleanup()


@on_a_loop
async def test_who_waits_its_turn_has_all_of_its_time_and_the_agent_is_not_taken_for_dead() -> None:
    agent = SlowAgent()
    async with serving(agent) as agents:
        query = asyncio.ensure_future(agents.poll("/v1/kv/key", (), 1, 30))
        renewed = await asyncio.gather(
            *(renew_session(agents, str(number), LIMIT) for number in range(128))
        )
        assert renewed == [10.0] * 128
        assert agent.most <= 64
        assert not query.done()
        query.cancel()
        await asyncio.wait([query])
