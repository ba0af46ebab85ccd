"""A small reverse proxy, which sends every request to the leader of one election."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import aiohttp
from aiohttp import web

from . import aio
from .clock import Timer
from .errors import LeadershipError
from .route_body import ClientGoneError, KeptBody
from .route_headers import Fields, addressed
from .route_target import split_listen
from .route_upstream import Connections, CutOffError, Forwarding
from .route_verbatim import texts, write_verbatim
from .route_websocket import LONGEST_MESSAGE, Link, sendable
from .router import NO_TARGET, Policy, Request, Router, say
from .silent_log import SILENT

FIRST_REQUEST_WITHIN = 60.0
"""Seconds for the head of a connection's first request; whoever takes longer is cut off."""

_UNSUPPORTED = 501


class _Server(web.Server):
    """Tells which of its connections have ended."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        ended: Callable[[asyncio.BaseProtocol], None],
    ) -> None:
        super().__init__(
            answer,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=cast("logging.Logger", None),
            logger=SILENT,
        )
        self._ended = ended

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self._ended(handler)


class Proxy:
    """Listens at one address, and has each request answered by whoever leads.

    Args:
        follower: of the election; its leader's value is where requests go.
        listen: `host:port`.

    Raises:
        ConfigurationError: the address is none.
    """

    def __init__(self, follower: aio.Follower, listen: str, policy: Policy | None = None) -> None:
        self._router = Router(follower, policy or Policy())
        self._connections = Connections(self._router.policy)
        self._listen = listen
        self._host, self._port = split_listen(listen)
        self._server = _Server(self._answer, self._not_silent)
        self._listening: asyncio.Server | None = None
        self._silent: dict[asyncio.BaseProtocol, Timer] = {}

    async def start(self) -> None:
        """Begin to listen, and to follow.

        Raises:
            LeadershipError: the address is in use, or not ours.
        """
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(self._accepted, self._host, self._port)
        except OSError as error:
            raise LeadershipError(
                f"cannot listen at {self._listen}: {error.strerror or error}; "
                "end what uses it, or give another address"
            ) from error
        self._router.view.look()

    async def close(self, grace: float) -> None:
        """Stop listening, and end what is under way.

        Args:
            grace: seconds that requests may take until they are broken off.
        """
        if self._listening is not None:
            self._listening.close()
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()
        self._server.pre_shutdown()
        await self._server.shutdown(grace)
        self._router.view.close()
        await self._connections.close()

    def _accepted(self) -> asyncio.Protocol:
        """A new connection: the server itself bounds only the waits after its first request."""
        handler = self._server()
        clock = self._router.clock

        def end() -> None:
            del self._silent[handler]
            if handler.transport is not None:
                handler.transport.abort()

        self._silent[handler] = clock.call_at(clock.now() + FIRST_REQUEST_WITHIN, end)
        return handler

    def _not_silent(self, handler: asyncio.BaseProtocol) -> None:
        """Its first request has come, or none will."""
        if (timer := self._silent.pop(handler, None)) is not None:
            timer.cancel()

    async def _answer(self, asked: web.BaseRequest) -> web.StreamResponse:
        self._not_silent(asked.protocol)
        fields = [(bytes(name), bytes(value)) for name, value in asked.raw_headers]
        version = f"{asked.version.major}.{asked.version.minor}"
        target = asked.raw_path.encode("utf-8", "surrogateescape")
        known = addressed(asked.method, target, fields, version)
        reply = _Reply(asked)
        if known is None or asked.method == "CONNECT":
            status = _UNSUPPORTED if asked.method == "CONNECT" else 400
            await say(reply, asked.method, status, NO_TARGET)
            return reply.response
        path, fields = known
        body = KeptBody(_chunks(asked), self._router.policy.keep)
        request = Request(
            asked.method,
            path,
            fields,
            body,
            "http",
            _address(asked),
            version,
        )
        try:
            expects = asked.headers.get("Expect", "").lower() == "100-continue"
            if expects and asked.version >= aiohttp.HttpVersion11:
                # It is held back until somebody asks for it, and only we can.
                await asked.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if _opens_websocket(asked):
                return await self._relay(asked, request, reply)
            if self._router.policy.mode == "forward":
                await body.begin()
            forwarding = Forwarding(self._router, self._connections, request, reply)
            await self._router.route(request, reply, forwarding.attempt)
        except (ClientGoneError, CutOffError, ConnectionError):
            # An end in good order would make the client believe that it has got all.
            if asked.transport is not None:
                asked.transport.abort()
        finally:
            body.close()
        return reply.response

    async def _relay(
        self, asked: web.BaseRequest, request: Request, reply: _Reply
    ) -> web.StreamResponse:
        offered = asked.headers.getall("Sec-WebSocket-Protocol", [])
        protocols = [name.strip() for names in offered for name in names.split(",")]
        await request.body.begin()
        link = Link(self._router, self._connections, request, reply, protocols)
        try:
            await self._router.route(request, reply, link.attempt)
            if link.socket is None:
                return reply.response
            client = _Client(asked)
            await link.relay(client)
            return client.socket
        finally:
            await link.close()


async def _chunks(asked: web.BaseRequest) -> AsyncIterator[bytes]:
    try:
        async for chunk in asked.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, web.RequestPayloadError, OSError) as error:
        raise ClientGoneError from error


def _address(asked: web.BaseRequest) -> str | None:
    name = None if asked.transport is None else asked.transport.get_extra_info("peername")
    return name[0] if name else None


def _opens_websocket(asked: web.BaseRequest) -> bool:
    return (
        asked.method == "GET"
        and asked.headers.get("Upgrade", "").lower() == "websocket"
        and "Sec-WebSocket-Key" in asked.headers
    )


class _Answered(web.StreamResponse):
    """The leader's answer as it is: nothing is added where it was silent."""

    async def _prepare_headers(self) -> None:
        own = set(self.headers)
        await super()._prepare_headers()
        for name in ("Content-Type", "Server"):
            if name not in own:
                self.headers.pop(name, None)


class _Reply:
    """The way back over HTTP."""

    def __init__(self, asked: web.BaseRequest) -> None:
        self._asked = asked
        self.response: web.StreamResponse = web.Response(status=500)

    async def start(self, status: int, fields: Fields) -> None:
        self.response = _Answered(status=status)
        self.response.headers.extend(texts(fields))
        write_verbatim(self._asked.protocol, self.response.headers.values())
        await self.response.prepare(self._asked)

    async def send(self, data: bytes) -> None:
        await self.response.write(data)

    async def finish(self) -> None:
        await self.response.write_eof()


class _Client:
    """The client's side of a WebSocket that is relayed."""

    def __init__(self, asked: web.BaseRequest) -> None:
        self._asked = asked
        self.socket = web.WebSocketResponse(max_msg_size=LONGEST_MESSAGE)
        self.closed_with = (1006, "")

    async def accept(self, protocol: str | None, fields: Fields) -> None:
        self.socket = web.WebSocketResponse(
            max_msg_size=LONGEST_MESSAGE,
            protocols=(protocol,) if protocol else (),
            compress=False,
            # Its end may cancel us: what it said must be known before it is answered.
            autoclose=False,
        )
        self.socket.headers.extend(texts(fields))
        write_verbatim(self._asked.protocol, self.socket.headers.values())
        await self.socket.prepare(self._asked)

    async def receive(self) -> str | bytes | None:
        message = await self.socket.receive()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            said: str | bytes = message.data
            return said
        if message.type is aiohttp.WSMsgType.CLOSE:
            self.closed_with = (message.data, message.extra or "")
            await self.close(sendable(message.data), "")
        elif message.type is aiohttp.WSMsgType.ERROR:
            self.closed_with = (self.socket.close_code or 1006, "")
        return None

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.socket.send_str(message)
        else:
            await self.socket.send_bytes(message)

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionError):
            await self.socket.close(code=code, message=reason.encode())
