"""WebSockets that are passed on to the leader: opened there, then relayed both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import aiohttp

from .following import Leader
from .route_headers import Fields, end_to_end
from .route_target import Target
from .route_upstream import (
    BROKEN_OFF,
    NOT_CONNECTED,
    Connections,
    onward,
    unless_superseded,
)
from .route_verbatim import texts
from .router import MISDIRECTED, Outcome, Reply, Request, Router, say

LONGEST_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message; what is longer closes the connection with 1009."""

COME_BACK = 1012
"""The close code that says: the service restarts, connect again."""

_MESSAGES = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
_HANDSHAKE = b"sec-websocket-"


class Client(Protocol):
    """The client's side of a WebSocket."""

    async def accept(self, protocol: str | None, fields: Fields) -> None: ...

    async def receive(self) -> str | bytes | None:
        """The next message, None once the client has closed."""
        ...

    async def send(self, message: str | bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    @property
    def closed_with(self) -> tuple[int, str]:
        """The client's close code and reason; 1006 where it broke off."""
        ...


class Link:
    """One WebSocket of a client, and the one that stands for it at the leader.

    Attributes:
        socket: the leader's, once an attempt was answered by it.
    """

    def __init__(
        self,
        router: Router,
        connections: Connections,
        request: Request,
        reply: Reply,
        protocols: Iterable[str],
    ) -> None:
        self._router = router
        self._connections = connections
        self._request = request
        self._reply = reply
        self._protocols = tuple(protocols)
        self._leader: Leader | None = None
        self._client: Client | None = None
        self.socket: aiohttp.ClientWebSocketResponse | None = None

    async def attempt(self, target: Target, leader: Leader) -> Outcome:
        """Open it at the leader; a refusal by the application there is passed on."""
        try:
            await unless_superseded(self._router, leader, self._open(target))
        except aiohttp.WSServerHandshakeError as error:
            if error.status == MISDIRECTED:
                return Outcome.MISSED
            status = error.status if error.status >= 400 else 502
            await say(self._reply, "GET", status, "the leader refused the WebSocket")
            return Outcome.ANSWERED
        except NOT_CONNECTED:
            return Outcome.MISSED
        except BROKEN_OFF:
            return Outcome.BROKEN
        self._leader = leader
        return Outcome.ANSWERED

    async def _open(self, target: Target) -> None:
        fields = onward(self._router, self._request)
        self.socket = await self._connections.session(kept=False).ws_connect(
            target.url(self._request.path),
            protocols=self._protocols,
            headers=texts([(n, v) for n, v in fields if not _is_handshake(n)]),
            max_msg_size=LONGEST_MESSAGE,
            autoclose=True,
        )

    async def relay(self, client: Client) -> None:
        """Pass messages on both ways until either side closes, or another leads."""
        assert self.socket is not None
        assert self._leader is not None
        self._client = client
        answered = self.socket._response.raw_headers
        fields = [(n, v) for n, v in end_to_end(answered) if not _is_handshake(n)]
        await client.accept(self.socket.protocol, fields)
        ways = [
            asyncio.ensure_future(way)
            for way in (self._inward(client), self._outward(client), self._later())
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        inward, outward, _ = ways
        if _returned(inward):
            await self.close()
        elif not _returned(outward):
            await client.close(COME_BACK, "the leader has changed")

    async def _inward(self, client: Client) -> None:
        assert self.socket is not None
        while (message := await client.receive()) is not None:
            if isinstance(message, str):
                await self.socket.send_str(message)
            else:
                await self.socket.send_bytes(message)

    async def _outward(self, client: Client) -> None:
        assert self.socket is not None
        while (message := await self.socket.receive()).type in _MESSAGES:
            await client.send(message.data)
        # An end without a word is told like one of 1000, which it is not.
        code, reason = 1006, ""
        if message.type is aiohttp.WSMsgType.CLOSE:
            code, reason = message.data, message.extra or ""
        elif message.type is aiohttp.WSMsgType.ERROR:
            code = self.socket.close_code or code
        # 1006 is what a connection that broke is called, and never sent.
        if code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
            await client.close(COME_BACK, "the leader has gone")
        else:
            await client.close(sendable(code), reason)

    async def _later(self) -> None:
        assert self._leader is not None
        await self._router.view.superseded(self._leader)
        await self._router.clock.sleep(self._router.policy.finish)

    async def close(self) -> None:
        """Close the leader's side, if it is open, as the client has closed its own."""
        if self.socket is None:
            return
        code, reason = (1006, "") if self._client is None else self._client.closed_with
        if code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
            code = aiohttp.WSCloseCode.GOING_AWAY
        await self.socket.close(code=sendable(code), message=reason.encode())


def _is_handshake(name: bytes) -> bool:
    return name.lower().startswith(_HANDSHAKE)


def _returned(way: asyncio.Future[None]) -> bool:
    return way.done() and not way.cancelled() and way.exception() is None


def sendable(code: int) -> int:
    """A close code as it may be sent: some only say that none came."""
    return 1000 if code in (1004, 1005, 1006, 1015) or not 1000 <= code < 5000 else code
