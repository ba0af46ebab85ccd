"""One Consul session, renewed every third of its ttl, with another one for those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ..backend import Context
from ..errors import LeadershipError, SessionLost, StoreError, StoreUnavailable
from ..renewal import GrantedTtls, Holder, RenewedSession
from ._consul_agents import Agents, decoded
from ._consul_requests import ConsulEntry, duration_of, seconds_of


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


class Contending(Holder, Protocol):
    """Whose key and place hang on the session."""

    def may_have_place(self) -> bool:
        """Whether it waits, or something that it wrote may still make it wait."""

    def sessions_changed(self) -> None:
        """There is another one to be ended with it."""


class ConsulSession(RenewedSession):
    """One session that lets go of its keys when it ends, for the keys of elections.

    And, while somebody waits, a second one whose end removes its keys, for the
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
        ttls: GrantedTtls,
    ) -> None:
        super().__init__(context, ttl)
        self._agents = agents
        self._options = options
        self.id = session
        self._asked = ttl
        self._ttls = ttls
        # A renewal that is answered after this does not count: another session is made.
        self._kept_until = math.inf
        self.holders: set[Contending] = set()
        # What undoes the writes of unknown outcome of contenders that left, by key.
        self.sweeps: dict[str, asyncio.Future[Any]] = {}
        self._waiting: str | None = None
        # One for places that is being ended; `close` may come in between.
        self._ending: str | None = None
        # When it was seen last that somebody may have a place.
        self._waited_at = -math.inf
        self._making: asyncio.Future[str] | None = None

    @classmethod
    async def open(
        cls,
        agents: Agents,
        context: Context,
        options: SessionOptions,
        ttl: float,
        ttls: GrantedTtls,
    ) -> ConsulSession:
        """Make a session, and renew it once: that tells which ttl the server grants."""
        # The lease clock starts before the send: the server's cannot have started earlier.
        sent_at = context.clock.now()
        made = await create_session(
            agents, ttl, options, name="leadership: an election", deletes=False
        )
        session = cls(agents, context, options, made, ttl, ttls)
        session._confirm(sent_at, ttl)
        try:
            await session._renew()
            ttls.check(ttl, session.ttl)
        except SessionLost as error:
            # Answers came so late that it ran out before it was of use: another one is made.
            await session.close()
            raise StoreUnavailable(f"a session ended before it was renewed: {error}") from error
        except BaseException:
            await session.close()
            raise
        session.begin()
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
            self._waited_at = self._clock.now()
            for holder in list(self.holders):
                holder.sessions_changed()

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

    def forget_waiting(self, session: str) -> None:
        """That session for places is gone, and with it the places; there may be another by now."""
        if self._waiting == session:
            self._waiting = None

    def _holders(self) -> Collection[Holder]:
        return self.holders

    def _is_cut(self, failures: int) -> bool:
        return self._agents.is_cut(failures)

    async def _renew(self) -> None:
        limit = min(self.ttl / 4, self._context.request_timeout)
        sent_at = self._clock.now()
        granted = await renew_session(self._agents, self.id, limit)
        if self._clock.now() > self._kept_until:
            # A server that decided to end it, and found no majority for that, tries again 10 s
            # later and more, whatever was renewed since. And one that stopped leading in the
            # middle of a renewal may yet come to decide so. Whoever led on it has lost already.
            await destroy_session(self._agents, self.id, limit)
            raise SessionLost("it was not renewed for so long that a server may yet end it")
        self._confirm(sent_at, granted)
        self._was_confirmed(sent_at)
        # A server under load asks for fewer renewals.
        self.ttl = granted
        if self._task is not None:
            self._ttls.tell(self._asked, granted)
        if self._waiting is not None:
            await self._keep_waiting(self._waiting, limit)

    def _confirm(self, sent_at: float, seconds: float) -> None:
        self._kept_until = sent_at + seconds
        self.lease.confirm(sent_at, seconds)

    async def _keep_waiting(self, waiting: str, limit: float) -> None:
        """Renew the session for places; end one that nobody has needed for a ttl."""
        now = self._clock.now()
        if self.sweeps or any(holder.may_have_place() for holder in self.holders):
            self._waited_at = now
        if now - self._waited_at < self.ttl:
            await self._renew_waiting(waiting, limit)
        else:
            # Forgotten first: who comes meanwhile makes another one.
            self.forget_waiting(waiting)
            self._ending = waiting
            await destroy_session(self._agents, waiting, limit)
            self._ending = None

    async def _renew_waiting(self, waiting: str, limit: float) -> None:
        """The places are not worth the lead: trouble with them is not that of the lease."""
        try:
            await renew_session(self._agents, waiting, limit)
        except SessionLost:
            self.forget_waiting(waiting)
        except StoreError:
            pass

    def _stop(self) -> None:
        for key in list(self.sweeps):
            self.end_sweep(key)

    async def close(self) -> None:
        ended = self.lease.ended is not None
        self.lose("the session was closed")
        await self._stopped()
        if self._making is not None:
            await asyncio.wait([self._making])
        left = [each for each in (self._waiting, self._ending) if each is not None]
        left += [] if ended else [self.id]
        limit = min(2.0, self._context.request_timeout)
        await asyncio.gather(*(destroy_session(self._agents, each, limit) for each in left))
