"""One Consul session, renewed every third of its ttl, with another one for those who wait."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ..backend import Context
from ..errors import (
    ConfigurationError,
    LeadershipError,
    SessionLost,
    StoreError,
    StoreUnavailable,
)
from ..events import LeaseRenewed, StoreRecovered, StoreTrouble, TtlGranted
from ..lease import Lease
from ..session import Session
from ._consul_agents import Agents, decoded
from ._consul_requests import ConsulEntry, duration_of, seconds_of

ENDED = "the store ended the session"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How sessions are made.

    Attributes:
        lock_delay: seconds for which nobody may acquire what a session held that was
            invalidated.
        node_health: end with the health of the agent's node too, not by the ttl alone.
    """

    lock_delay: float = 0.0
    node_health: bool = False


class Holder(Protocol):
    """Whose entry hangs on the session."""

    def session_over(self, reason: str) -> None: ...

    def cut_off(self, error: StoreUnavailable) -> None: ...


class _Made(msgspec.Struct, frozen=True):
    ID: str


class _Renewed(msgspec.Struct, frozen=True):
    TTL: str


async def create_session(
    agents: Agents, ttl: float, options: SessionOptions, *, name: str, deletes: bool
) -> str:
    """Make a session; its id.

    A call of our own, since the client library refuses a ttl that a server may accept.

    Args:
        deletes: whether its end removes the keys that it holds, or only lets go of them.
    """
    body = {
        "Name": name,
        "TTL": duration_of(ttl),
        "LockDelay": duration_of(options.lock_delay),
        "Behavior": "delete" if deletes else "release",
    }
    if not options.node_health:
        # An empty list is not the same as none, which means the node's health.
        body |= {"NodeChecks": [], "Checks": []}  # type: ignore[dict-item]
    answer = await agents.call("put", "/v1/session/create", body=body, repeatable=False)
    made: _Made = decoded(answer.body, _Made)
    return made.ID


async def destroy_session(agents: Agents, session: str, timeout: float) -> None:
    """End a session; if that fails it lapses by itself, for nobody renews it."""
    with contextlib.suppress(LeadershipError):
        await agents.call_now(
            "put", f"/v1/session/destroy/{session}", repeatable=True, timeout=timeout
        )


async def renew_session(agents: Agents, session: str, timeout: float) -> float:
    """The ttl that the server grants from now on, in seconds.

    Raises:
        SessionLost: the server does not know it.
    """
    answer = await agents.call_now(
        "put", f"/v1/session/renew/{session}", repeatable=True, timeout=timeout
    )
    if answer.status == 404:
        raise SessionLost("it has expired or was destroyed")
    renewed: list[_Renewed] = decoded(answer.body, list[_Renewed])
    return seconds_of(renewed[0].TTL)


class ConsulSession(Session):
    """One session that lets go of its keys when it ends, for the keys of elections.

    And, once somebody waits, a second one whose end removes its keys, for the
    waiters' places. The server keeps a session for twice its ttl; half of that
    is what we believe in, so nobody needs a lock-delay.
    """

    def __init__(
        self,
        agents: Agents,
        context: Context,
        options: SessionOptions,
        session: str,
        ttl: float,
        told: set[tuple[float, float]],
    ) -> None:
        self._agents = agents
        self._context = context
        self._clock = context.clock
        self._options = options
        self.id = session
        self._asked = ttl
        self.ttl = ttl
        self.lease = Lease(context.clock, context.max_clock_drift)
        self.holders: set[Holder] = set()
        # What undoes the writes of unknown outcome of contenders that left, by key.
        self.sweeps: dict[str, asyncio.Future[Any]] = {}
        self._waiting: str | None = None
        self._making: asyncio.Future[str] | None = None
        self._failures = 0
        self._told_cut = False
        self._told = told
        self.confirmed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        agents: Agents,
        context: Context,
        options: SessionOptions,
        ttl: float,
        told: set[tuple[float, float]],
    ) -> ConsulSession:
        """Make a session, and renew it once: that tells which ttl the server grants.

        Args:
            told: the pairs of an asked and another granted ttl that were told already.
        """
        # The lease clock starts before the send: the server's cannot have started earlier.
        sent_at = context.clock.now()
        made = await create_session(
            agents, ttl, options, name="leadership: an election", deletes=False
        )
        session = cls(agents, context, options, made, ttl, told)
        session.lease.confirm(sent_at, ttl)
        try:
            await session._renew()
            if session.ttl != ttl and context.strict_ttl:
                raise ConfigurationError(
                    f"Consul grants a ttl of {session.ttl:g} s instead of {ttl:g} s: "
                    f"ask for {session.ttl:g}, or leave strict_ttl out"
                )
        except BaseException:
            await session.close()
            raise
        session._task = asyncio.ensure_future(session._keep())
        return session

    async def waiting(self) -> str:
        """The id of the session for places, made when the first one is needed."""
        if self._waiting is not None:
            return self._waiting
        if self._making is None:
            self._making = asyncio.ensure_future(
                create_session(
                    self._agents,
                    self.ttl,
                    SessionOptions(0.0, self._options.node_health),
                    name="leadership: who waits",
                    deletes=True,
                )
            )
            self._making.add_done_callback(self._made)
        # One user's cancellation must not take it from the others.
        return await asyncio.shield(self._making)

    def _made(self, making: asyncio.Future[str]) -> None:
        self._making = None
        if not making.cancelled() and making.exception() is None:
            self._waiting = making.result()

    @property
    def ids(self) -> list[str]:
        """Of the sessions that there are at the server: for places first, then our own."""
        return [self.id] if self._waiting is None else [self._waiting, self.id]

    def owns(self, entry: ConsulEntry) -> bool:
        """Whether the key is held by us."""
        return entry.session is not None and entry.session in (self.id, self._waiting)

    def end_sweep(self, key: str) -> bool:
        """Whoever enters for `key` again takes over what a sweep was for; whether there was one."""
        sweep = self.sweeps.pop(key, None)
        if sweep is not None:
            sweep.cancel()
        return sweep is not None

    def forget_waiting(self) -> None:
        """The session for places is gone, and with it the places."""
        self._waiting = None

    async def _keep(self) -> None:
        """Renew every third of the ttl; when that fails, soon again, by another way."""
        pause = self.ttl / 3
        while True:
            await self._clock.sleep(pause)
            try:
                await self._renew()
            except SessionLost as error:
                self.lose(f"{ENDED}: {error}")
                return
            except Exception as error:
                # Of whatever kind: who stops renewing gives the lease away.
                pause = min(1.0, self.ttl / 20)
                self._failures += 1
                # Once per outage and then at every tenth try: trouble is told, not poured out.
                if self._failures % 10 == 1:
                    self._context.emit(
                        StoreTrouble("", self._clock.now(), str(error), self._failures, pause)
                    )
                # And once per outage to who waits: that asks for itself from then on.
                if self._agents.is_cut(self._failures) and not self._told_cut:
                    self._told_cut = True
                    for holder in list(self.holders):
                        holder.cut_off(StoreUnavailable(f"the session is not renewed: {error}"))
            else:
                pause = self.ttl / 3
                if self._failures:
                    self._context.emit(StoreRecovered("", self._clock.now(), self._failures))
                    self._failures = 0
                    self._told_cut = False

    async def _renew(self) -> None:
        limit = min(self.ttl / 4, self._context.request_timeout)
        sent_at = self._clock.now()
        granted = await renew_session(self._agents, self.id, limit)
        self.lease.confirm(sent_at, granted)
        self.confirmed.set()
        self.confirmed = asyncio.Event()
        now = self._clock.now()
        self._context.emit(LeaseRenewed("", now, now - sent_at, self.lease.valid_until))
        # A server under load asks for fewer renewals.
        self.ttl = granted
        if granted != self._asked and (self._asked, granted) not in self._told:
            self._told.add((self._asked, granted))
            self._context.emit(TtlGranted("", now, self._asked, granted))
        if self._waiting is not None:
            await self._renew_waiting(self._waiting, limit)

    async def _renew_waiting(self, waiting: str, limit: float) -> None:
        """The places are not worth the lead: trouble with them is not that of the lease."""
        try:
            await renew_session(self._agents, waiting, limit)
        except SessionLost:
            if self._waiting == waiting:
                self.forget_waiting()
        except StoreError:
            pass

    def lose(self, reason: str) -> None:
        """The session is gone, and with it every key that it held."""
        self.lease.end(reason)
        self.confirmed.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        for key in list(self.sweeps):
            self.end_sweep(key)
        for holder in list(self.holders):
            holder.session_over(reason)

    async def close(self) -> None:
        ended = self.lease.ended is not None
        self.lose("the session was closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._making is not None:
            await asyncio.wait([self._making])
        left = [*([] if ended else [self.id]), *([self._waiting] if self._waiting else [])]
        limit = min(2.0, self._context.request_timeout)
        await asyncio.gather(*(destroy_session(self._agents, each, limit) for each in left))
