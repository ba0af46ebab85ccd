"""The WSGI middleware: as the one for ASGI, for threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from .route_asgi import TERM
from .route_body import ClientGoneError, KeptBody
from .route_headers import Fields, addressed
from .route_serving import Serving
from .route_upstream import Connections, CutOffError, Forwarding
from .router import Participant, Policy, Request, Router

T = TypeVar("T")

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_CHUNK = 65_536
"""Bytes that are read of a request's body at once."""

_OF_THE_BODY = ("CONTENT_TYPE", "CONTENT_LENGTH")


class WSGIMiddleware:
    """`ASGIMiddleware` for WSGI applications: the same arguments, the same promises.

    `environ["leadership.term"]` is the term. The sending is done on a thread
    of the middleware's own; the request's thread reads and writes for it.
    WebSockets are not part of WSGI.
    """

    def __init__(self, app: App, participant: Participant, policy: Policy | None = None) -> None:
        self._app = app
        self._router = Router(participant, policy or Policy())
        self._connections = Connections(self._router.policy)
        self._lock = threading.Lock()
        self._loop: _LoopThread | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        serving = self._router.serve()
        if serving is not None:
            return _served(self._app, serving, environ, start_response)
        exchange = _Exchange(environ, self._running())
        return exchange.run(self._router, self._connections, self._app, start_response)

    def close(self) -> None:
        """Stop following, close what is idle, end the thread; the next request begins anew."""
        with self._lock:
            running, self._loop = self._loop, None
        if running is not None:
            running.end(self._connections)
        # Not before: what still waits would begin to follow again.
        self._router.view.close()

    def _running(self) -> _LoopThread:
        with self._lock:
            # A fork's child has none of its parent's threads.
            if self._loop is None or self._loop.pid != os.getpid():
                self._loop = _LoopThread()
            return self._loop


class _LoopThread:
    """An event loop on a thread of its own: users' traffic must not delay a lease."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="leadership-routing", daemon=True
        )
        self._thread.start()

    def end(self, connections: Connections) -> None:
        asyncio.run_coroutine_threadsafe(self._end(connections), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end(self, connections: Connections) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await connections.close()


@dataclass(frozen=True, slots=True)
class _Read:
    """The loop wants more of the request's body."""

    data: asyncio.Future[bytes]


@dataclass(frozen=True, slots=True)
class _Start:
    status: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class _Send:
    data: bytes
    sent: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Over:
    """Routing has ended; `serving` where the application has to answer."""

    serving: Serving | None
    error: BaseException | None


_Step = _Read | _Start | _Send | _Over


class _Exchange:
    """One request, between its own thread, which reads and writes, and the loop, which sends."""

    def __init__(self, environ: Environ, running: _LoopThread) -> None:
        self._environ = environ
        self._loop = running.loop
        self._steps: queue.SimpleQueue[_Step] = queue.SimpleQueue()
        self._left = _length(environ)
        self._routing: concurrent.futures.Future[None] | None = None

    def run(
        self, router: Router, connections: Connections, app: App, start_response: StartResponse
    ) -> Iterable[bytes]:
        request_of = _request_of(self._environ)
        if request_of is None:
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        body = KeptBody(self._chunks(), router.policy.keep)
        request = request_of(body)
        try:
            step = self._routed(router, connections, request)
            if isinstance(step, _Over):
                if step.serving is None:
                    raise step.error or ClientGoneError
                environ = {**self._environ, "wsgi.input": _replayed(body, self)}
                return _served(app, step.serving, environ, start_response)
            assert isinstance(step, _Start)
            start_response(_line(step.status), _native(step.fields))
        except BaseException:
            self._give_up()
            raise
        return _Answer(self._answer(), self._give_up)

    def _routed(self, router: Router, connections: Connections, request: Request) -> _Start | _Over:
        """The answer's beginning, or the end; where we have to answer, under a term that holds."""
        while True:
            self._routing = asyncio.run_coroutine_threadsafe(
                self._route(router, connections, request), self._loop
            )
            step = self._next()
            assert not isinstance(step, _Send)
            serving = step.serving if isinstance(step, _Over) else None
            # Its way from the loop took a while, and the term may be over: then another leads.
            if serving is None or serving.term.is_valid():
                return step
            serving.end()

    def _give_up(self) -> None:
        if self._routing is not None:
            self._routing.cancel()

    def _answer(self) -> Iterator[bytes]:
        while isinstance(step := self._next(), _Send):
            yield step.data
            self._settle(step.sent, None)
        assert isinstance(step, _Over)
        if step.error is not None:
            # The server breaks the connection: the client must not believe it has all.
            raise step.error

    def _next(self) -> _Start | _Send | _Over:
        """The loop's next word; what it wants to read is read meanwhile."""
        while isinstance(step := self._steps.get(), _Read):
            try:
                data = self.read(_CHUNK)
            except BaseException as error:
                self._fail(step.data, error)
            else:
                self._settle(step.data, data)
        return step

    def read(self, size: int) -> bytes:
        """Of the request's body, as it comes."""
        if self._left is not None:
            size = min(size, self._left)
        if size == 0:
            return b""
        data: bytes = self._environ["wsgi.input"].read(size)
        if self._left is not None:
            self._left -= len(data)
            if not data:
                raise ClientGoneError
        return data

    def on_loop(self, work: Any) -> Any:
        """Run `work` on the loop, reading for it meanwhile."""
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.add_done_callback(lambda _: self._steps.put(_Over(None, None)))
        self._next()
        return done.result()

    def _settle(self, future: asyncio.Future[T], value: T) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(value)

        self._loop.call_soon_threadsafe(settle)

    def _fail(self, future: asyncio.Future[bytes], error: BaseException) -> None:
        def fail() -> None:
            if not future.done():
                future.set_exception(
                    error if isinstance(error, ClientGoneError) else ClientGoneError()
                )

        self._loop.call_soon_threadsafe(fail)

    # --- on the loop ---

    async def _route(self, router: Router, connections: Connections, request: Request) -> None:
        serving: Serving | None = None
        error: BaseException | None = None
        try:
            if router.policy.mode == "forward":
                await request.body.begin()
            forwarding = Forwarding(router, connections, request, self)
            serving = await router.route(request, self, forwarding.attempt)
        except BaseException as raised:
            # No server expects a cancellation in a thread of its own.
            closed = CutOffError("the middleware was closed")
            error = raised if isinstance(raised, Exception) else closed
            if not isinstance(raised, (ClientGoneError, CutOffError)):
                raise
        finally:
            self._steps.put(_Over(serving, error))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            data: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._steps.put(_Read(data))
            chunk = await data
            if not chunk:
                return
            yield chunk

    async def start(self, status: int, fields: Fields) -> None:
        self._steps.put(_Start(status, fields))

    async def send(self, data: bytes) -> None:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._steps.put(_Send(data, sent))
        await sent

    async def finish(self) -> None:
        pass


class _Replayed(io.RawIOBase):
    """The body again from its beginning, for the application."""

    def __init__(self, body: KeptBody, exchange: _Exchange) -> None:
        self._body = body
        self._exchange = exchange
        self._position = 0
        self._chunk = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            self._chunk = self._exchange.on_loop(self._body.chunk(self._position)) or b""
            self._position += 1
        taken = self._chunk[: len(buffer)]
        buffer[: len(taken)] = taken
        self._chunk = self._chunk[len(taken) :]
        return len(taken)


def _replayed(body: KeptBody, exchange: _Exchange) -> io.BufferedReader:
    return io.BufferedReader(_Replayed(body, exchange))


class _Answer:
    """What a server iterates and then closes, also where it has not begun."""

    def __init__(self, chunks: Iterator[bytes], end: Callable[[], object]) -> None:
        self._chunks = chunks
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._end()


def _served(
    app: App, serving: Serving, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """The application's answer; the request is over when the server has done with it."""
    try:
        chunks = app({**environ, TERM: serving.term}, start_response)
        iterator = iter(chunks)
    except BaseException:
        serving.end()
        raise

    def end() -> None:
        try:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        finally:
            serving.end()

    return _Answer(iterator, end)


def _length(environ: Environ) -> int | None:
    """Bytes of the request's body; None where the server itself says when it ends."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0, int(environ["CONTENT_LENGTH"]))
    return None if environ.get("wsgi.input_terminated") else 0


def _request_of(environ: Environ) -> Callable[[KeptBody], Request] | None:
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if not raw:
        plain = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        query = environ.get("QUERY_STRING", "")
        raw = quote(plain.encode("latin-1")) + (f"?{query}" if query else "")
    given = [
        (name.removeprefix("HTTP_").replace("_", "-").title(), value)
        for name, value in environ.items()
        if _is_field(name) or (name in _OF_THE_BODY and value)
    ]
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
    method = environ["REQUEST_METHOD"]
    version = environ.get("SERVER_PROTOCOL", "HTTP/1.1").rpartition("/")[2]
    known = addressed(method, raw.encode("latin-1"), fields, version)
    if known is None:
        return None
    path, told = known
    return lambda body: Request(
        method,
        path,
        told,
        body,
        environ.get("wsgi.url_scheme", "http"),
        environ.get("REMOTE_ADDR") or None,
        version,
    )


def _is_field(name: str) -> bool:
    # Of these two there is one name only. By the other some servers pass on what a client
    # spelt with _ for -: a length that they did not take for one, as the leader would.
    return name.startswith("HTTP_") and name.removeprefix("HTTP_") not in _OF_THE_BODY


def _line(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return f"{status} -"


def _native(fields: Fields) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
