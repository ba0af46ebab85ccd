"""HTTP between peers: a bounded server and a client whose every call ends in time.

Whatever arrives costs bounded memory and time, and whoever proves to be a
member is never pushed out by who does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from ..clock import Clock
from ..errors import ConfigurationError, HandleClosed, StoreUnavailable

SILENT = logging.getLogger("leadership.peers.http")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False
"""aiohttp's own complaints of bad requests: ours are rate-limited events."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one node spends on who asks; seconds and bytes.

    Attributes:
        body: the longest body that is read.
        bodies: of all that are being read at a time.
        line: the longest request line.
        header: the longest header, of which there are 64 at most.
        connections: how many may be open; the oldest that has proved nothing goes first.
        slowest: seconds for a whole request to arrive, and for an idle connection to live.
    """

    body: int = 1 << 20
    bodies: int = 64 << 20
    line: int = 8190
    header: int = 2048
    connections: int = 256
    slowest: float = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `status` 0 drops the connection without one.

    Attributes:
        parts: a body that is sent part by part, until its end or the client's; instead of `body`.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: AsyncGenerator[bytes, None] | None = None


DROPPED = Answer(0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose head has arrived.

    Attributes:
        read: its whole body, which is worth reading only where the head is believed.
            Raises `TooLongError`.
        arrived_at: seconds on the clock, when its head had been read.
        came_from: the client's address, for the log.
        has_gone: whether the client has closed the connection since.
        is_member: to be called when it has proved to come from a member.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read: Callable[[], Awaitable[bytes]]
    arrived_at: float
    came_from: str
    has_gone: Callable[[], bool]
    is_member: Callable[[], None]


class TooLongError(Exception):
    """The body is longer than may be read."""


Handler = Callable[[Asked], Awaitable[Answer]]
Refusal = Callable[[str, str], None]
"""Is told of whom something had no effect, and why."""


def _untold(of: str, reason: str) -> None:
    pass


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of `host:port` or `[v6]:port`.

    Raises:
        ConfigurationError: it is neither.
    """
    host, separator, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not separator or not bare or not port.isascii() or not port.isdigit():
        raise ConfigurationError(f"{address!r} is no address: write host:port")
    if not 0 < int(port) < 65536 or (":" in bare and bare == host):
        raise ConfigurationError(f"{address!r} is no address: write host:port or [v6]:port")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class _Connection(web.RequestHandler):
    """One connection; it has a limited time for each whole request."""

    server: Server
    touched_at = 0.0
    member = False
    busy = False

    @property
    def came_from(self) -> str:
        """The client's address, for the log."""
        name = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(name[0]) if name else "unknown"

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            # An error of ours, which must not pass in silence.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a request to this peer node failed", "exception": exc}
            )
        elif isinstance(exc, LineTooLong):
            self.server.refused(self.came_from, "its head is too long")
        else:
            self.server.refused(self.came_from, "it is no HTTP request")
        return _response(Answer(status), close=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.server.closed(self)
        super().connection_lost(exc)


class _Factory(web.Server):
    def __init__(self, server: Server, handler: Any, limits: Limits) -> None:
        # An answer for which nobody waits any more need not be made.
        super().__init__(handler, handler_cancellation=True)
        self._server = server
        self._limits = limits

    def __call__(self) -> _Connection:
        connection = _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=2 * self._limits.slowest,
            logger=SILENT,
            access_log=cast("logging.Logger", None),
            max_line_size=self._limits.line,
            max_field_size=self._limits.header,
            max_headers=64,
            lingering_time=0,
            read_bufsize=1 << 16,
            auto_decompress=False,
        )
        connection.server = self._server
        return connection


class Server:
    """Listens at one address and has each request answered by `handler`."""

    def __init__(
        self,
        handler: Handler,
        clock: Clock,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        refused: Refusal = _untold,
    ) -> None:
        self._handler = handler
        self._clock = clock
        self._limits = limits
        self._tls = tls
        self.refused = refused
        self._reading = 0
        # The oldest first.
        self._connections: dict[_Connection, None] = {}
        self._factory: _Factory | None = None
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self, address: str) -> None:
        """Begin to listen.

        Raises:
            StoreUnavailable: the address is in use, or not ours.
        """
        host, port = split_address(address)
        self._factory = _Factory(self, self._answer, self._limits)
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(
                self._factory,
                host,
                port,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.slowest if self._tls else None,
                backlog=128,
            )
        except OSError as error:
            raise StoreUnavailable(
                f"cannot listen at {address}: {error.strerror or error}; "
                "end what uses it, or give another address with listen="
            ) from error
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def close(self) -> None:
        """Stop listening and close every connection; idempotent."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        self._closed = True
        await _accept_no_more(listening)
        listening.close()
        assert self._sweeping is not None
        assert self._factory is not None
        self._sweeping.cancel()
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._factory.shutdown(0.1)
        await asyncio.wait([self._sweeping])

    @property
    def connections(self) -> int:
        return len(self._connections)

    # --- what connections tell ---

    def opened(self, connection: _Connection) -> None:
        if self._closed:  # it was being accepted when the server closed
            _drop(connection)
            return
        connection.touched_at = self._clock.now()
        self._connections[connection] = None
        if len(self._connections) > self._limits.connections:
            # Not the newest, which may be a member that is about to prove it.
            unproved = (each for each in self._connections if not each.member)
            dropped = next(unproved, connection)
            self.refused(dropped.came_from, "too many connections: one that proved nothing went")
            _drop(dropped)

    def closed(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(self._limits.slowest / 10)
            before = self._clock.now() - self._limits.slowest
            for connection in list(self._connections):
                if connection.touched_at < before and not connection.busy:
                    if not connection.member:
                        self.refused(connection.came_from, "it sent no whole request in time")
                    _drop(connection)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(_Connection, request.protocol)
        arrived_at = self._clock.now()
        transport = request.transport

        def has_gone() -> bool:
            return transport is None or transport.is_closing()

        def is_member() -> None:
            connection.member = True

        async def read() -> bytes:
            # A long poll may take its time; only what has not arrived whole is slow.
            connection.busy = False
            body = await self._read(request)
            connection.busy = True
            return body

        path, _, query = request.raw_path.partition("?")
        asked = Asked(
            request.method,
            path,
            query,
            request.headers,
            read,
            arrived_at,
            connection.came_from,
            has_gone,
            is_member,
        )
        connection.busy = True
        try:
            answer = await self._handler(asked)
            if answer.parts is not None:
                return await _send_parts(request, answer.parts, answer.headers)
        except TooLongError:
            self.refused(asked.came_from, "its body is too long")
            answer = Answer(413)
        finally:
            connection.busy = False
            connection.touched_at = self._clock.now()
        if answer.status == 0:
            _drop(connection)
            return _response(Answer(503), close=True)
        # What was not worth reading is not waited for either.
        return _response(answer, close=not request.content.is_eof())

    async def _read(self, request: web.BaseRequest) -> bytes:
        if (request.content_length or 0) > self._limits.body:
            raise TooLongError
        parts = bytearray()
        try:
            async for part in request.content.iter_any():
                parts += part
                self._reading += len(part)
                if len(parts) > self._limits.body or self._reading > self._limits.bodies:
                    raise TooLongError
            return bytes(parts)
        finally:
            self._reading -= len(parts)


async def _accept_no_more(listening: asyncio.Server) -> None:
    """Let what is being accepted arrive, so that it can be closed.

    asyncio (CPython 3.11) makes the connection a turn after it accepted, and where the
    server has closed in between, it leaves the socket open and tells nobody.
    """
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # only loops that poll have readers
        for each in listening.sockets:
            loop.remove_reader(each.fileno())
        await asyncio.sleep(0)


def _drop(connection: _Connection) -> None:
    if connection.transport is not None:
        connection.transport.abort()


async def _send_parts(
    request: web.BaseRequest, parts: AsyncGenerator[bytes, None], headers: Mapping[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(headers=dict(headers))
    async with contextlib.aclosing(parts):
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            async for part in parts:
                await response.write(part)
    return response


def _response(answer: Answer, close: bool = False) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))
    if close:
        response.force_close()
    return response


class Client:
    """Calls to other nodes over connections that are kept.

    A call never waits for another one's answer: votes and releases do not
    queue behind heartbeats.
    """

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise HandleClosed("the store is closed: make a new one")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ssl=self._tls or False,
                    use_dns_cache=False,
                    # Shorter than the other side's patience, or a request could meet its end.
                    keepalive_timeout=self._limits.slowest / 2,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def call(
        self,
        method: str,
        address: str,
        path: str,
        body: bytes = b"",
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its answer.

        Args:
            timeout: seconds that all of it may take.

        Raises:
            StoreUnavailable: no answer came, or one that is too long.
            HandleClosed: after `close`.
        """
        scheme = "https" if self._tls else "http"
        try:
            async with (
                asyncio.timeout(timeout),
                self._open().request(
                    method,
                    f"{scheme}://{address}{path}",
                    data=body or None,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None),
                ) as response,
            ):
                answer = bytearray()
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > self._limits.body:
                        raise StoreUnavailable(f"{address} answered with more than it may")
                return Answer(response.status, bytes(answer), dict(response.headers))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise StoreUnavailable(f"{address} does not answer: {why}") from error

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
