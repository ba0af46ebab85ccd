"""Elections on Consul, the same as Go's `api.Lock` and `consul lock` take part in.

The entry is the election's key itself, held by the leader's session. Who waits
has a place beside the key, so that only the next in rank tries when the key
becomes free; other clients have none, and try as they like. The index of the
write that acquired the key is the fencing token: Consul's index is one counter
for the datacenter, and survives restarts, also of the key.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ..backend import Context
from ..errors import HandleClosed, StoreError
from ..renewal import GrantedTtls
from ..session import SessionPool
from ._consul_agents import Agents
from ._consul_contender import ConsulContender
from ._consul_places import Places
from ._consul_requests import ConsulEntry, deleting, unchanged
from ._consul_session import ConsulSession, SessionOptions
from ._consul_watch import Target, Watches


class Election:
    """What all contenders of one store share."""

    def __init__(
        self, agents: Agents, watches: Watches, context: Context, options: SessionOptions
    ) -> None:
        self.agents = agents
        self.watches = watches
        self.context = context
        ttls = GrantedTtls("Consul", context)
        self.sessions: SessionPool[ConsulSession] = SessionPool(
            lambda ttl: asyncio.ensure_future(
                ConsulSession.open(agents, context, options, ttl, ttls)
            )
        )
        self.places = Places(agents, watches, context)
        # Keys that one of ours tries to take, and until when the others leave it the time: they
        # would only lose to it, and a process of many may need longer than a step to send it.
        self.trying: dict[str, float] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    def contender(
        self, key: str, value: bytes, ttl: float, own_session: bool, guarded: bool = False
    ) -> ConsulContender:
        return ConsulContender(self, key, value, ttl, own_session, guarded)

    def spawn(self, work: Any) -> asyncio.Future[None]:
        async def until_closed() -> None:
            with contextlib.suppress(HandleClosed):
                await work

        task = asyncio.ensure_future(until_closed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what a write of unknown outcome may still do ---

    def sweep(self, session: ConsulSession, key: str, place: str) -> None:
        """Undo what such a write does when it arrives, until the session ends or is used again.

        A session contends for a key by one contender at a time, so whatever it
        holds of it now is nobody's.
        """
        session.end_sweep(key)
        work = asyncio.gather(
            self._sweep(session, Target(key)), self._sweep(session, Target(place))
        )
        self.spawn(work)
        # Not the task that waits for it: one that is cancelled before it has begun passes
        # nothing on, and what nobody can end any more would undo every later win.
        session.sweeps[key] = work

    async def _sweep(self, session: ConsulSession, target: Target) -> None:
        while session.lease.ended is None:
            with contextlib.suppress(StoreError):
                async with contextlib.aclosing(self.watches.states(target)) as states:
                    async for seen in states:
                        entry = seen.entry
                        if entry is not None and session.owns(entry):
                            await self.agents.transact(
                                unchanged(entry.key, entry.modify_index), deleting(entry.key)
                            )
            await self.context.clock.sleep(min(1.0, session.ttl / 10))

    async def read(self, key: str) -> ConsulEntry | None:
        """The key's entry as of now."""
        return (await self.watches.read(Target(key))).entry

    async def close(self) -> None:
        await self.sessions.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
