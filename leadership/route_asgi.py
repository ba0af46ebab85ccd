"""The ASGI middleware: requests and WebSockets are answered by the leader, wherever they arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any
from urllib.parse import quote

from .route_body import ClientGoneError, KeptBody
from .route_headers import Fields, addressed
from .route_serving import Serving
from .route_upstream import Connections, Forwarding
from .route_websocket import Link
from .router import NO_TARGET, Participant, Policy, Request, Router, say

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TERM = "leadership.term"
"""Where the application finds its term: in the scope, or in the environ."""

_GONE = (ClientGoneError, OSError)
"""The client has gone: what we make of that, and what a server may say when something is sent."""

_NOT_OURS = frozenset({b"date", b"server"})
"""What the server in front adds to every answer."""


class ASGIMiddleware:
    """Has each request answered by the leader: by `app` where this process leads.

    While it leads, `scope["leadership.term"]` is the term that held when the
    request was taken. Elsewhere the request is forwarded to the leader's
    value, or redirected there. Without a leader it waits for one, and gets
    503 with Retry-After when there is none in time. A request that was sent
    to a leader which broke off is sent to the next one only if its method is
    idempotent and its body is kept; any other gets one 502.

    The candidate's value must be the address at which this very process
    answers. So that no request fails when the leader gives way, it leads by
    `candidate.run(lead_async)`, or its own code calls `drain_async(term)`.

    Args:
        app: the ASGI application.
        participant: this process's candidate, or a follower where it has none.
        policy: see `Policy`.

    Raises:
        ConfigurationError: the participant is none.
    """

    def __init__(self, app: App, participant: Participant, policy: Policy | None = None) -> None:
        self._app = app
        self._router = Router(participant, policy or Policy())
        self._connections = Connections(self._router.policy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def close(self) -> None:
        """Stop following, close what is idle; the next request begins anew. At lifespan's end."""
        self._router.view.close()
        await self._connections.close()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's, and the end of ours; an application may know of none."""
        words: list[str] = []

        async def received() -> Message:
            message = await receive()
            words.append(message["type"])
            return message

        async def sent(message: Message) -> None:
            words.append(message["type"])
            if message["type"].startswith("lifespan.shutdown."):
                # The server ends its loop with this word, and whatever is open then.
                await self.close()
            await send(message)

        try:
            await self._app(scope, received, sent)
        except Exception:
            if "lifespan.startup.complete" in words or "lifespan.startup.failed" in words:
                raise
            while "lifespan.shutdown" not in words:
                asked = (await received())["type"]
                await sent({"type": f"{asked}.complete"})
        finally:
            await self.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._router.serve()
        if serving is not None:
            await self._serve(serving, scope, receive, send)
            return
        inbound = _Inbound(receive)
        body = KeptBody(inbound.chunks(), self._router.policy.keep)
        reply = _Reply(send)
        request = _request(scope, body)
        if request is None:
            await say(reply, scope["method"], 400, NO_TARGET)
            return
        try:
            serving = await _ours(inbound, lambda: self._route(request, reply))
        except _GONE:
            serving = None
        finally:
            if serving is None:
                body.close()
                inbound.close()
        if serving is not None:
            try:
                await self._serve(serving, scope, _Replayed(inbound, body).receive, send)
            finally:
                inbound.close()

    async def _serve(self, serving: Serving, scope: Scope, receive: Receive, send: Send) -> None:
        with serving:
            await self._app({**scope, TERM: serving.term}, receive, send)

    async def _route(self, request: Request, reply: _Reply) -> Serving | None:
        if self._router.policy.mode == "forward":
            await request.body.begin()
        forwarding = Forwarding(self._router, self._connections, request, reply)
        return await self._router.route(request, reply, forwarding.attempt)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        inbound = _Inbound(receive)
        try:
            serving = self._router.serve()
            if serving is None:
                serving = await self._link(scope, inbound, send)
                receive = _Again(inbound).receive
            if serving is not None:
                # It may stay open for days, and so keeps no term from ending.
                serving.end()
                await self._app({**scope, TERM: serving.term}, receive, send)
        finally:
            inbound.close()

    async def _link(self, scope: Scope, inbound: _Inbound, send: Send) -> Serving | None:
        """Relay a WebSocket to the leader, to its end; unless we have to answer it ourselves."""
        await inbound.next()
        body = KeptBody(_nothing(), 1)
        await body.begin()
        request = _request({**scope, "method": "GET", "scheme": _plain(scope)}, body)
        reply = _Denial(scope, send)
        if request is None:
            await say(reply, "GET", 400, NO_TARGET)
            return None
        protocols = scope.get("subprotocols", ())
        link = Link(self._router, self._connections, request, reply, protocols)
        inbound.read = True
        try:
            serving = await _ours(inbound, lambda: self._router.route(request, reply, link.attempt))
            if link.socket is not None:
                await link.relay(_Client(inbound, send))
        except _GONE:
            return None
        finally:
            await link.close()
        return serving


async def _ours(
    inbound: _Inbound, route: Callable[[], Coroutine[Any, Any, Serving | None]]
) -> Serving | None:
    """What `route` leaves to us, under a term that holds still; it is asked again until then.

    Raises:
        ClientGoneError: before that.
    """
    while True:
        serving = await _unless_gone(inbound, route())
        # The loop has run others in between, and the term may be over: then another leads.
        if serving is None or serving.term.is_valid():
            return serving
        serving.end()


async def _unless_gone(
    inbound: _Inbound, routing: Coroutine[Any, Any, Serving | None]
) -> Serving | None:
    """What `routing` returns; it is given up when the client has gone."""
    route = asyncio.ensure_future(routing)
    gone = asyncio.ensure_future(inbound.gone())
    try:
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done():
                raise ClientGoneError
        finally:
            route.cancel()
            gone.cancel()
            await asyncio.gather(route, gone, return_exceptions=True)
    except BaseException:
        route.add_done_callback(_not_served)
        raise
    return route.result()


def _not_served(route: asyncio.Future[Serving | None]) -> None:
    """Nobody answers what was left to us: it is not to keep its term from ending."""
    if not route.cancelled() and route.exception() is None and (serving := route.result()):
        serving.end()


def _request(scope: Scope, body: KeptBody) -> Request | None:
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"")
    fields = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    version = scope.get("http_version", "1.1")
    known = addressed(scope["method"], raw + b"?" + query if query else raw, fields, version)
    if known is None:
        return None
    path, fields = known
    client = scope.get("client")
    return Request(
        scope["method"],
        path,
        fields,
        body,
        scope.get("scheme", "http"),
        client[0] if client else None,
        version,
    )


def _plain(scope: Scope) -> str:
    return {"ws": "http", "wss": "https"}.get(scope.get("scheme", "ws"), "http")


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class _Inbound:
    """What the server tells of one request; a wait that is given up loses no message.

    Attributes:
        read: whether the body has been read, so that all there is to come is the client's end.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._pending: asyncio.Future[Message] | None = None
        self._changed = asyncio.Event()
        self._read = False

    @property
    def read(self) -> bool:
        return self._read

    @read.setter
    def read(self, read: bool) -> None:
        self._read = read
        self._changed.set()

    async def next(self) -> Message:
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._receive())
        pending = self._pending
        message = await asyncio.shield(pending)
        self._pending = None
        return message

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self._read:
            message = await self.next()
            if message["type"] != "http.request":
                raise ClientGoneError
            if not message.get("more_body", False):
                self.read = True
            yield message.get("body", b"")

    async def gone(self) -> None:
        """Return once the client has gone; seen only when its body has been read."""
        await self._changed.wait()
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._receive())
        await asyncio.wait({self._pending})

    def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()


class _Replayed:
    """The body again from its beginning, for the application, then what else is told."""

    def __init__(self, inbound: _Inbound, body: KeptBody) -> None:
        self._inbound = inbound
        self._body = body
        self._position = 0
        self._ended = False

    async def receive(self) -> Message:
        if self._ended:
            return await self._inbound.next()
        try:
            chunk = await self._body.chunk(self._position)
        except ClientGoneError:
            return {"type": "http.disconnect"}
        self._position += 1
        self._ended = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}


class _Again:
    """A WebSocket's opening again, for the application, then what else is told."""

    def __init__(self, inbound: _Inbound) -> None:
        self._inbound = inbound
        self._opened = False

    async def receive(self) -> Message:
        if self._opened:
            return await self._inbound.next()
        self._opened = True
        return {"type": "websocket.connect"}


class _Reply:
    """The way back over HTTP."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def start(self, status: int, fields: Fields) -> None:
        headers = [(n.lower(), v) for n, v in fields if n.lower() not in _NOT_OURS]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _Denial:
    """The answer to a WebSocket that is not accepted; only 403 where the server has no other."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._can_answer = "websocket.http.response" in (scope.get("extensions") or {})

    async def start(self, status: int, fields: Fields) -> None:
        if self._can_answer:
            headers = [(n.lower(), v) for n, v in fields]
            kind = "websocket.http.response.start"
            await self._send({"type": kind, "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        if self._can_answer:
            kind = "websocket.http.response.body"
            await self._send({"type": kind, "body": data, "more_body": True})

    async def finish(self) -> None:
        if self._can_answer:
            kind = "websocket.http.response.body"
            await self._send({"type": kind, "body": b"", "more_body": False})
        else:
            await self._send({"type": "websocket.close", "code": 1013})


class _Client:
    """The client's side of a WebSocket that is relayed."""

    def __init__(self, inbound: _Inbound, send: Send) -> None:
        self._inbound = inbound
        self._send = send
        self.closed_with = (1006, "")

    async def accept(self, protocol: str | None, fields: Fields) -> None:
        headers = [(n.lower(), v) for n, v in fields if n.lower() not in _NOT_OURS]
        accepted = {"type": "websocket.accept", "subprotocol": protocol, "headers": headers}
        await self._send(accepted)

    async def receive(self) -> str | bytes | None:
        message = await self._inbound.next()
        if message["type"] == "websocket.disconnect":
            self.closed_with = (message.get("code") or 1005, message.get("reason") or "")
            return None
        words: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if words is None else words

    async def send(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        await self._send({"type": "websocket.send", kind: message})

    async def close(self, code: int, reason: str) -> None:
        # By OSError a server says that the client has gone, some by RuntimeError.
        with contextlib.suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
