"""`Health` over HTTP: as an aiohttp application to embed, and as a server on its own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from aiohttp import web

from .errors import ConfigurationError
from .health import PATHS, Health
from .silent_log import SILENT


def health_application(health: Health) -> web.Application:
    """An aiohttp application that answers GET, HEAD and OPTIONS on `health`'s paths.

    Serve it alone, or below a path of yours: `app.add_subapp("/health", ...)`.
    """
    application = web.Application()
    for path in PATHS:
        handler = _handler(health, path)
        application.router.add_get(path, handler)
        # What HAProxy's check asks with, unless it is told otherwise.
        application.router.add_options(path, handler)
    return application


class HealthServer:
    """Serves `health` on a thread of its own, until closed; a context manager.

    Apart from the thread that keeps the leases: however many ask, they delay no
    renewal, and a stuck one is told as such.

    Args:
        listen: `host:port`, `:port` for all addresses, port 0 for a free one. Who
            can reach it may ask: there is no password.

    Raises:
        ConfigurationError: it is no such address, or cannot be listened at.
    """

    def __init__(self, health: Health, listen: str) -> None:
        self._health = health
        self._host, self._port = host_and_port(listen)
        self._listening: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="leadership-health", daemon=True)
        self._thread.start()
        try:
            self._port = self._listening.result()
        except (OSError, UnicodeError) as error:
            self._thread.join()
            raise ConfigurationError(
                f"cannot serve health at {listen}: {error}; "
                "give an address of this machine that is free"
            ) from error

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def close(self) -> None:
        """Stop listening, end all connections; idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        # Who asks is a probe with a connection of its own: none is worth waiting for.
        server = web.AppRunner(
            health_application(self._health),
            access_log=None,
            logger=SILENT,
            shutdown_timeout=0.1,
        )
        await server.setup()
        try:
            await web.TCPSite(server, self._host or None, self._port).start()
        except Exception as error:
            self._listening.set_exception(error)
        else:
            self._listening.set_result(server.addresses[0][1])
            await self._closing.wait()
        finally:
            await server.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def host_and_port(listen: str) -> tuple[str, int]:
    """`host:port`, `[host]:port` or `:port`, taken apart.

    Raises:
        ConfigurationError: it is none of these.
    """
    host, separator, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigurationError(f"{listen!r}: give host:port, such as 127.0.0.1:8008")
    return host, int(port)


def _handler(
    health: Health, path: str
) -> Callable[[web.Request], Coroutine[Any, Any, web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        told = health.answer(f"{path}?{request.query_string}")
        return web.Response(
            status=told.status,
            body=told.body,
            # A cached answer would be about another moment.
            headers={"Content-Type": told.content_type, "Cache-Control": "no-store"},
        )

    return answer
