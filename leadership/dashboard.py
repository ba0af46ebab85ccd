"""The live page, served over HTTP by aiohttp; on the engine's loop."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence

from aiohttp import web

from .errors import ConfigurationError
from .page import OTHER_NAME, Hosts, Page
from .silent_log import SILENT
from .survey import Survey


class Dashboard:
    """A survey and the server that shows it.

    Args:
        survey: which is started and closed here.
        listen: `host:port`, or `[v6]:port`; port 0 takes any that is free.
        hosts: names by which browsers may ask, beside that, addresses and localhost.

    Attributes:
        address: where it listens, once it does.
    """

    def __init__(self, survey: Survey, listen: str, hosts: Sequence[str] = ()) -> None:
        self._host, self._port = checked_listen(listen)
        self._hosts = Hosts([listen, *hosts], "--host ")
        self._survey = survey
        self._page = Page(survey)
        self._runner: web.ServerRunner | None = None
        self.address = listen

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self._host).is_loopback
        return self._host == "localhost"

    async def start(self) -> None:
        """Listen, and follow the elections.

        Raises:
            ConfigurationError: the address cannot be listened at.
        """
        self._survey.start()
        server = web.Server(self._answer, handler_cancellation=True, access_log=None, logger=SILENT)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.close()
            raise ConfigurationError(
                f"cannot listen at {self.address}: {error.strerror or error}; end what uses it, "
                "or give another address"
            ) from error
        port = self._runner.addresses[0][1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Stop listening; every browser's stream ends. Idempotent."""
        await self._survey.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        refusal = self._hosts.refusal(request.headers.get("Host"))
        if refusal is not None:
            return web.Response(status=OTHER_NAME, text=refusal)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        if request.path == "/":
            return web.Response(body=self._page.document, headers=self._page.document_headers)
        if request.path != "/events":
            return web.Response(status=404, text="not found: the page is at /")
        if request.method == "HEAD":
            return web.Response(headers=self._page.events_headers)
        if self._page.is_full:
            return web.Response(status=503, headers={"Retry-After": "5"})
        response = web.StreamResponse(headers=self._page.events_headers)
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            async with contextlib.aclosing(self._page.events()) as events:
                async for event in events:
                    await response.write(event)
        return response


def checked_listen(listen: str) -> tuple[str, int]:
    """The host and the port of `host:port` or `[v6]:port`.

    Raises:
        ConfigurationError: it is neither.
    """
    host, separator, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and int(port) < 65536
    if not separator or not bare or not is_port or (":" in bare and bare == host):
        raise ConfigurationError(
            f"listen={listen!r}: write HOST:PORT, such as 127.0.0.1:8080, or [::]:8080"
        )
    return bare, int(port)
