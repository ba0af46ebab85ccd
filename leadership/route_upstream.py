"""The leader's side of a forwarded request: one attempt to have it answered there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from .following import Leader
from .route_headers import Fields, end_to_end
from .route_target import Target
from .route_verbatim import VerbatimRequest, texts
from .router import IDEMPOTENT, MISDIRECTED, Outcome, Policy, Reply, Request, Router

T = TypeVar("T")

PROMPT = 0.02
"""Seconds that an answer of unknown length is held back, in the hope that it ends meanwhile."""

NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""What is raised before a byte was sent."""

BROKEN_OFF = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What is raised later; ValueError where the two ends do not understand each other."""

_WITHOUT_BODY = (204, 304)
"""Answers whose length, if they tell one, is that of another answer (RFC 9110, 8.6)."""

_LONGEST_FIELD = 65_536
"""Bytes of one header field of an answer."""

_OURS_TO_LEAVE_OUT = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class CutOffError(Exception):
    """The answer ended too soon, and the client has its beginning: its connection must break."""


class Connections:
    """Connections to leaders; made on the event loop that uses them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def session(self, *, kept: bool) -> aiohttp.ClientSession:
        """The way to send.

        Args:
            kept: whether a connection may be used again. On one that the
                leader is just closing it would not be known what became of
                the request, so only for those that can be repeated.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._sessions.clear()
            self._loop = loop
        session = self._sessions.get(kept)
        if session is None:
            tls = True if self._policy.tls is None else self._policy.tls
            session = self._sessions[kept] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, ssl=tls, use_dns_cache=False, force_close=not kept
                ),
                request_class=VerbatimRequest,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                max_field_size=_LONGEST_FIELD,
                skip_auto_headers=_OURS_TO_LEAVE_OUT,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._policy.connect_timeout
                ),
            )
        return session

    async def close(self) -> None:
        """Close what is idle; the next request begins anew."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer whose beginning has arrived; all of it where `whole`."""

    response: aiohttp.ClientResponse
    beginning: bytes
    whole: bool


class Forwarding:
    """Sends one request to the leader, as often as the router says."""

    def __init__(
        self, router: Router, connections: Connections, request: Request, reply: Reply
    ) -> None:
        self._router = router
        self._policy = router.policy
        self._connections = connections
        self._request = request
        self._reply = reply
        self._tried = False
        self._response: aiohttp.ClientResponse | None = None

    async def attempt(self, target: Target, leader: Leader) -> Outcome:
        """Have the leader answer, and pass the answer on.

        Raises:
            CutOffError: the answer broke off on its way.
        """
        try:
            try:
                answer = await unless_superseded(self._router, leader, self._ask(target))
            except NOT_CONNECTED:
                return Outcome.MISSED
            except BROKEN_OFF:
                return Outcome.BROKEN
            if answer.response.status == MISDIRECTED:
                return Outcome.MISSED
            if answer.response.status < 200:
                return Outcome.BROKEN
            # From here on the client has a part of it: what fails is not tried again.
            passing = self._pass_on(answer)
            try:
                await (
                    passing if answer.whole else unless_superseded(self._router, leader, passing)
                )
            except TimeoutError as error:
                raise CutOffError from error
            return Outcome.ANSWERED
        finally:
            if self._response is not None:
                # Its connection is kept if the answer has ended, and closed if not.
                self._response.close()

    async def _ask(self, target: Target) -> _Answer:
        request = self._request
        kept = request.method in IDEMPOTENT and not self._tried
        self._tried = True
        self._response = response = await self._connections.session(kept=kept).request(
            request.method,
            target.url(request.path),
            data=None if request.body.empty else request.body.chunks(),
            headers=texts(onward(self._router, request)),
            allow_redirects=False,
        )
        return await self._beginning(response)

    async def _beginning(self, response: aiohttp.ClientResponse) -> _Answer:
        """Read so much of it that a short one is passed on whole, or not at all."""
        most = self._policy.keep
        length = response.content_length
        if length is not None and length <= most:
            return _Answer(response, await response.content.read(), True)
        parts = bytearray()

        async def fill() -> None:
            while len(parts) < most and not response.content.at_eof():
                parts.extend(await response.content.readany())

        clock = self._router.clock
        await clock.wait_for(fill(), clock.now() + PROMPT)
        return _Answer(response, bytes(parts), response.content.at_eof())

    async def _pass_on(self, answer: _Answer) -> None:
        response, reply = answer.response, self._reply
        fields = end_to_end(response.raw_headers)
        if response.status in _WITHOUT_BODY:
            fields = [(name, value) for name, value in fields if name.lower() != b"content-length"]
        await reply.start(response.status, fields)
        if answer.beginning:
            await reply.send(answer.beginning)
        if not answer.whole:
            chunks = response.content.iter_any()
            while True:
                try:
                    chunk = await anext(chunks, b"")
                except BROKEN_OFF as error:
                    raise CutOffError from error
                if not chunk:
                    break
                await reply.send(chunk)
        await reply.finish()


def onward(router: Router, request: Request) -> Fields:
    """The fields that go to the leader with `request`."""
    return router.way.onward(
        request.fields,
        scheme=request.scheme,
        client=request.client,
        version=request.version,
        trusted=router.policy.trust_forwarded,
    )


async def unless_superseded(router: Router, leader: Leader, answering: Coroutine[Any, Any, T]) -> T:
    """What `answering` returns; `TimeoutError` once a later leader has been known for too long."""
    clock = router.clock
    answer = asyncio.ensure_future(answering)
    later = asyncio.ensure_future(router.view.superseded(leader))
    try:
        await asyncio.wait({answer, later}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await clock.wait_for(asyncio.wait({answer}), clock.now() + router.policy.finish)
        if not answer.done():
            raise TimeoutError("the former leader does not answer")
        return answer.result()
    finally:
        answer.cancel()
        later.cancel()
        await asyncio.gather(answer, later, return_exceptions=True)
