"""An agent between a store and a real Consul: it hands on, changes, holds back or loses requests.

Unlike the relay of bytes it knows what is asked, so that a test can pick one request.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Self, TypeVar

import aiohttp
from aiohttp import web

from tests.servers.ports import LOOPBACK


@dataclass
class Asked:
    """One request, as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes

    @property
    def operations(self) -> list[dict[str, Any]]:
        """Those of a transaction, or none."""
        if self.path != "/v1/txn":
            return []
        return [each["KV"] for each in json.loads(self.body)]

    def does(self, verb: str, key: str = "") -> bool:
        """Whether it is a transaction with this operation."""
        return any(each["Verb"] == verb and key in ("", each["Key"]) for each in self.operations)

    @property
    def writes(self) -> bool:
        if self.path == "/v1/txn":
            reads = {"get", "get-tree", "check-index", "check-not-exists", "check-session"}
            return any(each["Verb"] not in reads for each in self.operations)
        return self.method != "GET" and "/session/renew/" not in self.path


@dataclass
class Told:
    """One answer, which a test may change."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> Any:
        """None where there is nothing: of a key that is not there."""
        return json.loads(self.body) if self.body else None


class LostReplyError(Exception):
    """Raised by a hook: the connection is closed without an answer."""


class StallError(Exception):
    """Raised by a hook: there is no answer, and the connection stays open."""


P = ParamSpec("P")
T = TypeVar("T")

BeforeHook = Callable[[Asked], Told | None]
AfterHook = Callable[[Asked, Told], Told]


class ConsulRelay:
    """Listens on loopback and asks ``endpoint``; a thread of its own.

    ``before`` may answer in the server's place, or raise :exc:`LostReplyError` or
    :exc:`StallError`: then the server is not asked. ``after`` may change the answer, or
    raise: then it is lost, or held back.
    Both run on the relay's thread; what else they raise is raised at the end of the block, for
    whoever asked takes it for the server's. ``most`` is how many requests were under way at once,
    blocking queries left out.
    """

    def __init__(self, endpoint: str) -> None:
        self._target = endpoint
        self.before: BeforeHook = lambda asked: None
        self.after: AfterHook = lambda asked, told: told
        self.asked: list[Asked] = []
        self.most = 0
        self._under_way = 0
        self._broken: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="consul-relay", daemon=True
        )
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    @property
    def endpoint(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def send(self, asked: Asked) -> Told:
        """Send a request that was held back, however long ago."""
        return asyncio.run_coroutine_threadsafe(self._forward(asked), self._loop).result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._broken and exception[0] is None:
            raise self._broken[0]

    async def _start(self) -> int:
        # Those that wait for their next use count among what a server takes from one address.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
        self._client = aiohttp.ClientSession(connector=connector)
        application = web.Application(client_max_size=16 * 2**20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        # Whoever leaves takes the server's query with it.
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.Response:
        asked = Asked(request.method, request.path, dict(request.query), await request.read())
        self.asked.append(asked)
        short = "index" not in asked.query
        self._under_way += short
        self.most = max(self.most, self._under_way)
        try:
            told = self._hook(self.before, asked)
            if told is None:
                told = self._hook(self.after, asked, await self._forward(asked))
        except StallError:
            await asyncio.get_running_loop().create_future()
            raise
        except LostReplyError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        finally:
            self._under_way -= short
        return web.Response(status=told.status, body=told.body, headers=told.headers)

    def _hook(self, hook: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return hook(*arguments, **named)
        except (LostReplyError, StallError):
            raise
        except Exception as error:
            self._broken.append(error)
            raise

    async def _forward(self, asked: Asked) -> Told:
        async with self._client.request(
            asked.method,
            f"http://{self._target}{asked.path}",
            params=asked.query,
            data=asked.body or None,
        ) as answer:
            headers = {
                name: value
                for name, value in answer.headers.items()
                if name.startswith("X-Consul-")
            }
            return Told(answer.status, await answer.read(), headers)
