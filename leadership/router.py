"""One request's way to the leader, once for all servers: here, on to another process, or refused.

Who took a request from a client does all the trying again; every other router
on the way only serves it or refuses it. So there is one hop at most, and a
refusal (421, which says that nothing was done) may be tried again elsewhere
whatever the method.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, Protocol

from . import aio, route_serving
from .candidate import Candidate, CandidateBase
from .checks import checked_seconds
from .errors import ConfigurationError
from .events import LeaderUnroutable
from .follower import Follower, FollowerBase
from .following import Leader
from .route_body import ClientGoneError, KeptBody
from .route_headers import Fields, Way
from .route_leader import LeaderView
from .route_serving import Serving
from .route_target import Target, parse_target

Participant = Candidate | aio.Candidate | Follower | aio.Follower

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""What may be sent twice (RFC 9110, 9.2.2)."""

MISDIRECTED = 421
"""The answer of who was taken for the leader: nothing was done."""

NO_TARGET = "only paths are forwarded, of one host and one length"
"""What a client is told with 400 whose target, Host or length is in doubt."""

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds before the same leader is tried again; the last one from then on."""

_MOST_BROKEN = 3
"""A request that has broken off so often may be what ends the leaders: no other gets it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests are brought to the leader.

    Attributes:
        mode: "forward" sends them on, "redirect" answers 307 with the leader's address.
        wait: seconds that a request waits for a leader that can be reached;
            longer than the ttl, a leader's sudden death fails no idempotent request.
        retry_after: seconds that a 503 asks the client to wait.
        connect_timeout: seconds for a connection to the leader.
        finish: seconds that a request which was sent to a former leader may
            still take, once a later one is known.
        keep: bytes of a body that are kept so that it can be sent again, and
            of an answer that are read before it is passed on.
        most_waiting: how many requests may wait for a leader; 503 to more.
        trust_forwarded: whether Forwarded and X-Forwarded-* of requests are
            believed and added to; they are replaced if not.
        tls: for leaders whose value is an https URL; Python's defaults if None.
    """

    mode: Literal["forward", "redirect"] = "forward"
    wait: float = 30.0
    retry_after: int = 1
    connect_timeout: float = 3.0
    finish: float = 10.0
    keep: int = 65_536
    most_waiting: int = 1_000
    trust_forwarded: bool = False
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("forward", "redirect"):
            raise ConfigurationError(f"mode={self.mode!r}: give 'forward' or 'redirect'")
        for name in ("wait", "connect_timeout", "finish"):
            checked_seconds(name, getattr(self, name))
        for name in ("retry_after", "keep", "most_waiting"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"{name}={number!r}: give a whole number from 1")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came, whatever server took it.

    Attributes:
        path: the path and query as they were sent, byte for byte.
        scheme: what the client came by.
        client: its address, if it has one.
        version: of HTTP, such as 1.1.
    """

    method: str
    path: str
    fields: Fields
    body: KeptBody
    scheme: str
    client: str | None
    version: str


class Reply(Protocol):
    """The way back to the client; each call returns when there is room for more."""

    async def start(self, status: int, fields: Fields) -> None: ...

    async def send(self, data: bytes) -> None: ...

    async def finish(self) -> None: ...


class Outcome(Enum):
    """What became of one attempt."""

    ANSWERED = auto()
    """The client has the answer."""
    MISSED = auto()
    """Nothing was done: not connected, or refused."""
    BROKEN = auto()
    """It was sent, and no answer came: it may have been done."""


Attempt = Callable[[Target, Leader], Awaitable[Outcome]]


class Router:
    """Decides, for each request of one election, who answers it.

    Args:
        participant: a candidate, whose process answers while it leads, or a follower.
    """

    def __init__(self, participant: Participant, policy: Policy) -> None:
        if isinstance(participant, CandidateBase):
            self._candidate: Candidate | aio.Candidate | None = participant
            follower = FollowerBase(participant._store, participant.key)
        elif isinstance(participant, FollowerBase):
            self._candidate, follower = None, participant
        else:
            raise ConfigurationError(
                f"{participant!r} cannot tell who leads: give a Candidate or a Follower"
            )
        self.policy = policy
        self.view = LeaderView(follower)
        self._core = follower.core
        self.clock = follower.core.context.clock
        self.way = Way(follower.key, follower.core.context.random)
        self._key = follower.key
        self._waiting = 0
        self._told: str | None = None

    def serve(self) -> Serving | None:
        """Whether we lead: then the request is ours to answer, and has to be ended."""
        return route_serving.begin(self._candidate)

    async def route(self, request: Request, reply: Reply, attempt: Attempt) -> Serving | None:
        """Have the request answered by whoever leads, waiting for one within bounds.

        Returns:
            What the caller has to answer itself, its body from the beginning;
            None where it is answered.

        Raises:
            ClientGoneError: before it was answered.
        """
        passed = self.way.passed(request.fields)
        deadline = self.clock.now() + self.policy.wait
        broken = tries = 0
        while True:
            if (serving := self.serve()) is not None:
                return serving
            if passed:
                await self._refuse_passed(request, reply)
                return None
            leader = self.view.look()
            target = self._target(leader)
            outcome = Outcome.MISSED
            if leader is not None and target is not None:
                if self.policy.mode == "redirect":
                    await _redirect(request, reply, target.location(request.path, request.scheme))
                    return None
                outcome = await attempt(target, leader)
                if outcome is Outcome.ANSWERED:
                    return None
            if request.body.client_gone:
                raise ClientGoneError
            if outcome is Outcome.BROKEN:
                broken += 1
                deadline = self.clock.now() + self.policy.wait
                may_repeat = request.method in IDEMPOTENT and broken < _MOST_BROKEN
                if not may_repeat or not request.body.repeatable:
                    await say(reply, request.method, 502, "the leader broke off before it answered")
                    return None
            elif not request.body.repeatable:
                await self._unavailable(
                    request, reply, "the leader changed, and the body is not kept"
                )
                return None
            if self.clock.now() >= deadline or self._waiting >= self.policy.most_waiting:
                await self._unavailable(request, reply, "there is no leader that can be reached")
                return None
            # Nothing to try, and so nothing to try again: only a change helps, or our own win.
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            await self._pause(leader, min(deadline, self.clock.now() + pause))

    async def _pause(self, leader: Leader | None, until: float) -> None:
        self._waiting += 1
        try:
            await self.clock.wait_for(self.view.change(leader), until)
        finally:
            self._waiting -= 1

    def _target(self, leader: Leader | None) -> Target | None:
        """Where to send; None where nobody leads, or we do and do not know it yet or any more."""
        if leader is None or leader.value is None:
            return None
        if self._candidate is not None and leader.value == self._candidate.value:
            return None
        try:
            return parse_target(leader.value)
        except ConfigurationError as error:
            if self._told != leader.value:
                self._told = leader.value
                self._core.emit(LeaderUnroutable(self._key, self.clock.now(), str(error)))
            return None

    async def _refuse_passed(self, request: Request, reply: Reply) -> None:
        if self._candidate is None:
            # Whoever only follows is never the leader: its address leads back here.
            await say(reply, request.method, 508, "the leader's address is that of a router")
        else:
            await say(
                reply, request.method, MISDIRECTED, "this process does not lead; nothing was done"
            )

    async def _unavailable(self, request: Request, reply: Reply, why: str) -> None:
        again = str(self.policy.retry_after).encode()
        await say(reply, request.method, 503, why, [(b"Retry-After", again)])


async def _redirect(request: Request, reply: Reply, location: str) -> None:
    fields = [(b"Location", location.encode("latin-1")), (b"Cache-Control", b"no-store")]
    await say(reply, request.method, 307, "the leader is elsewhere", fields)


async def say(
    reply: Reply, method: str, status: int, why: str, fields: Fields | None = None
) -> None:
    """An answer of our own."""
    content = f"{why}\n".encode()
    await reply.start(
        status,
        [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(content)).encode()),
            *(fields or []),
        ],
    )
    if method != "HEAD":
        await reply.send(content)
    await reply.finish()
