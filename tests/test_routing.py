"""The ASGI middleware in real servers: who leads answers, whoever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
import uvicorn

from leadership import Candidate, Follower, Store, aio, new_store
from leadership.errors import ConfigurationError
from leadership.events import WorkOverran
from leadership.route_serving import _in_flight, begin
from leadership.routing import TERM, ASGIMiddleware, Policy, drain, lead, lead_async

from .loops import on_a_loop, settle
from .servers.ports import free_port
from .waiting import async_wait_until, wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/web"


class Application:
    """Tells what it was asked; under /wait it waits for the test first."""

    def __init__(self) -> None:
        self.asked = 0
        self.gone = 0
        self.release = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            raise NotImplementedError

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        early: list[Any] = []
        if scope["path"] == "/impatient":
            # As frameworks do that look whether the client is still there.
            looking = asyncio.ensure_future(receive())
            await asyncio.wait([looking], timeout=0)
            if not looking.cancel():
                early.append(looking.result())
        while not early or early[-1].get("more_body"):
            early.append(await receive())
        body = b"".join(message["body"] for message in early)
        if scope["path"] == "/wait":
            await asyncio.to_thread(self.release.wait, 30)
        told = {"port": scope["server"][1], "token": scope[TERM].token, "size": len(body)}
        text = json.dumps({**told, "method": scope["method"]}).encode()
        headers = [(b"content-length", str(len(text)).encode())]
        headers += [field for field in scope["headers"] if field[0] in (b"x-odd", b"host")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/no":
            await send({"type": "websocket.close"})
            return
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message.get("text") == "leave":
                await send({"type": "websocket.close", "code": 4001, "reason": "asked to"})
                return
            answer = {k: message[k] for k in ("text", "bytes") if message.get(k) is not None}
            await send({"type": "websocket.send", **answer})
        self.gone += 1


class Node:
    """A web server and its candidate; it contends from `stand` on."""

    def __init__(self, url: str, policy: Policy | None, ttl: float = 30) -> None:
        self.port = free_port()
        self.events: list[Any] = []
        self.store = new_store(url, hooks=[self.events.append])
        self.candidate = Candidate(self.store, KEY, f"127.0.0.1:{self.port}", ttl=ttl)
        self.application = Application()
        self._middleware = ASGIMiddleware(self.application, self.candidate, policy)
        config = uvicorn.Config(
            self._middleware,
            port=self.port,
            log_level="critical",
            ws="wsproto",
            lifespan="on",
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self._threads = [threading.Thread(target=self.server.run)]
        self._threads[0].start()
        wait_until(lambda: self.server.started, what="the web server")

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stand(self) -> None:
        self._threads.append(threading.Thread(target=self.candidate.run, args=[lead]))
        self._threads[-1].start()

    def lead(self) -> None:
        self.stand()
        wait_until(self.candidate.is_leader, what="leadership")

    def close(self) -> None:
        self.application.release.set()
        self.candidate.stop()
        self.server.should_exit = True
        for thread in self._threads:
            thread.join(30)
        self.store.close()


class Nodes:
    """Two of them, of which the first leads, when it is told to."""

    def __init__(self, stack: contextlib.ExitStack, policy: Policy | None = None) -> None:
        self.url = f"memory://{uuid.uuid4()}"
        self.pair = [Node(self.url, policy) for _ in range(2)]
        for node in self.pair:
            stack.callback(node.close)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as opened:
        yield opened


def ask(
    url: str, method: str = "GET", data: bytes | None = None, **options: Any
) -> tuple[int, dict[str, Any], dict[str, str]]:
    async def asking() -> tuple[int, dict[str, Any], dict[str, str]]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=data, **options) as response,
        ):
            text = await response.read()
            told = json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
            return response.status, told, dict(response.headers)

    return asyncio.run(asking())


def test_whoever_is_asked_the_leader_answers_under_its_term(stack: contextlib.ExitStack) -> None:
    first, second = Nodes(stack).pair
    first.lead()
    second.stand()
    for node in (first, second):
        for size in (0, 3, 1_000_000):
            status, told, _ = ask(node.url("/a"), "POST", b"x" * size)
            assert (status, told["port"], told["size"]) == (200, first.port, size)
            assert told["token"] == first.candidate.term.token  # type: ignore[union-attr]


def test_by_redirect_the_client_goes_to_the_leader_itself(stack: contextlib.ExitStack) -> None:
    first, second = Nodes(stack, Policy(mode="redirect")).pair
    first.lead()
    _, told, headers = ask(second.url("/a?b=1"), "PUT", b"xyz", allow_redirects=False)
    assert headers["Location"] == first.url("/a?b=1")
    for size in (3, 1_000_000):
        status, told, _ = ask(second.url("/a?b=1"), "PUT", b"x" * size)
        assert (status, told["port"], told["size"]) == (200, first.port, size)
        assert told["method"] == "PUT"


@pytest.mark.parametrize("path", ["/", "/impatient"])
def test_what_waits_at_a_process_that_comes_to_lead_is_answered_there(
    stack: contextlib.ExitStack, pool: ThreadPoolExecutor, path: str
) -> None:
    first, second = Nodes(stack).pair
    waiting = pool.submit(ask, second.url(path), "POST", b"x" * 60_000)
    wait_until(lambda: second._middleware._router._waiting)
    second.lead()
    status, told, _ = waiting.result(20)
    assert (status, told["port"], told["size"]) == (200, second.port, 60_000)
    assert first.application.asked == 0


def test_a_process_that_does_not_lead_refuses_what_was_passed_on_to_it(
    stack: contextlib.ExitStack,
) -> None:
    first, second = Nodes(stack).pair
    first.lead()
    via = second._middleware._router.way._name.decode()
    assert ask(second.url(), "POST", headers={"Via": f"1.1 x, 1.1 {via}"})[0] == 421
    assert ask(first.url(), "POST", headers={"Via": f"1.1 {via}"})[0] == 200
    # What another election's router has passed on is forwarded as any other.
    assert ask(second.url(), headers={"Via": "1.1 leadership-0123-4567"})[0] == 200


def test_a_term_ends_after_its_last_request(
    stack: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    first, second = Nodes(stack).pair
    first.lead()
    second.stand()
    slow = [pool.submit(ask, node.url("/wait"), "POST") for node in (first, second)]
    wait_until(lambda: first.application.asked == 2)
    resigning = pool.submit(first.candidate.resign)
    wait_until(lambda: not first.candidate.is_leader())
    later = pool.submit(ask, first.url(), "POST")
    assert not resigning.done()
    assert Follower(first.store, KEY).leader() == f"127.0.0.1:{first.port}"
    first.application.release.set()
    token = first.candidate.term.token  # type: ignore[union-attr]
    for each in slow:
        status, told, _ = each.result(20)
        assert (status, told["port"], told["token"]) == (200, first.port, token)
    assert resigning.result(20)
    status, told, _ = later.result(20)
    assert (status, told["port"]) == (200, second.port)
    assert told["token"] > token
    assert not any(isinstance(event, WorkOverran) for event in first.events)


def test_a_client_that_goes_ends_its_request_at_the_leader(stack: contextlib.ExitStack) -> None:
    first, second = Nodes(stack).pair
    first.lead()

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.get(second.url("/wait")))
            await asyncio.to_thread(wait_until, lambda: first.application.asked)
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(scenario())
    connections = first.server.server_state.connections
    wait_until(lambda: not connections, what="the end of the forwarded request")


def test_a_body_with_two_lengths_leaves_nothing_behind_for_the_next_request(
    stack: contextlib.ExitStack,
) -> None:
    """The web server here takes both of them, and goes by the chunks."""
    first, second = Nodes(stack).pair
    first.lead()
    lying = (
        "GET /one HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 50\r\n"
        "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    )
    assert ask(second.url())[0] == 200
    with socket.create_connection(("127.0.0.1", second.port), 20) as connection:
        connection.sendall(lying.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["size"] == 1
    assert ask(second.url(), "POST", b"xyz")[1]["size"] == 3


@pytest.mark.parametrize("target", ["/", "http://example.org/a"])
def test_fields_and_targets_reach_the_leader_as_they_came(
    stack: contextlib.ExitStack, target: str
) -> None:
    first, second = Nodes(stack).pair
    first.lead()
    odd = b"x-odd: caf\xe9 \xc3\xa9 \xff"
    host = b"evil" if target.startswith("http") else b"example.org"
    fields = b"\r\n".join((b"Host: " + host, b"Connection: close", odd))
    with socket.create_connection(("127.0.0.1", second.port), 20) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\n".encode() + fields + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert {odd, b"host: example.org"} <= set(answer.split(b"\r\n"))


def test_a_websocket_reaches_the_leader(stack: contextlib.ExitStack) -> None:
    first, second = Nodes(stack).pair
    first.lead()

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            for node in (first, second):
                async with session.ws_connect(node.url("/s"), protocols=["p", "q"]) as socket:
                    assert socket.protocol == "p"
                    await socket.send_str("words")
                    assert (await socket.receive()).data == "words"
                    await socket.send_bytes(b"x" * 100_000)
                    assert (await socket.receive()).data == b"x" * 100_000
                    await socket.send_str("leave")
                    closing = await socket.receive()
                    assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 4001)
                    assert closing.extra == "asked to"
                async with session.ws_connect(node.url("/s")) as socket:
                    await socket.send_str("words")
                    await socket.receive()
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(node.url("/no"))
                assert refused.value.status == 403

    asyncio.run(scenario())
    wait_until(lambda: first.application.gone == 2, what="the leader hears of the clients' end")
    assert second.application.asked == 0


def test_a_websocket_that_waits_at_a_process_that_comes_to_lead_is_opened_there(
    stack: contextlib.ExitStack, pool: ThreadPoolExecutor
) -> None:
    _, second = Nodes(stack).pair

    async def scenario() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(second.url("/s")) as socket,
        ):
            await socket.send_str("words")
            return (await socket.receive()).data

    waiting = pool.submit(asyncio.run, scenario())
    wait_until(lambda: second._middleware._router._waiting)
    second.lead()
    assert waiting.result(20) == "words"


def test_websockets_without_a_leader_are_refused_with_503(stack: contextlib.ExitStack) -> None:
    _, second = Nodes(stack, Policy(wait=0.2)).pair

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(second.url("/s"))
            assert refused.value.status == 503

    asyncio.run(scenario())


def test_a_websocket_is_told_to_come_back_when_another_leads(stack: contextlib.ExitStack) -> None:
    first, second = Nodes(stack, Policy(finish=0.2)).pair
    first.lead()

    async def scenario() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(second.url("/s")) as socket,
        ):
            await socket.send_str("words")
            await socket.receive()
            second.stand()
            await asyncio.to_thread(first.candidate.resign)
            closing = await socket.receive(timeout=20)
            assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1012)

    asyncio.run(scenario())


def test_drain_waits_no_longer_than_its_term(stack: contextlib.ExitStack) -> None:
    store: Store = stack.enter_context(new_store(f"memory://{uuid.uuid4()}"))
    candidate = Candidate(store, KEY, "a", ttl=0.6)
    term = candidate.campaign(10)
    serving = begin(candidate)
    assert serving is not None
    candidate.resign()
    assert begin(candidate) is None
    assert not drain(term)
    serving.end()
    serving.end()
    assert drain(term)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_term_that_ends_before_the_application_is_called_is_not_its_term(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A request that waited finds us leading, and the loop is held up until we lead no more."""

    @on_a_loop
    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
            candidate = aio.Candidate(store, KEY, "a", ttl=30)
            called: list[tuple[int, bool]] = []

            async def application(scope: Any, receive: Any, send: Any) -> None:
                called.append((scope[TERM].token, scope[TERM].is_valid()))

            middleware = ASGIMiddleware(application, candidate)
            route = middleware._router.route
            left = [0]

            async def held_up(*given: Any) -> Any:
                serving = await route(*given)
                if not left[0]:
                    await candidate.resign()
                left[0] += 1
                return serving

            monkeypatch.setattr(middleware._router, "route", held_up)

            gone = asyncio.Event()
            told = [{"type": {"http": "http.request", "websocket": "websocket.connect"}[kind]}]

            async def receive() -> Any:
                if told:
                    return told.pop()
                await gone.wait()
                return {"type": f"{kind}.disconnect"}

            async def send(message: Any) -> None:
                raise AssertionError(message)

            given = {"path": "/", "headers": [(b"host", b"a")], "method": "GET"}
            asking = asyncio.create_task(middleware({**given, "type": kind}, receive, send))
            await async_wait_until(lambda: middleware._router._waiting)
            first = await candidate.campaign(10)
            await async_wait_until(lambda: left[0] and middleware._router._waiting)
            assert called == []
            second = await candidate.campaign(10)
            await asking
            assert called == [(second.token, True)]
            assert first.token < second.token
            await candidate.stop()
            await middleware.close()

    scenario()


@on_a_loop
async def test_a_request_that_is_cancelled_as_it_comes_to_be_ours_keeps_no_term_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
        candidate = aio.Candidate(store, KEY, "a", ttl=30)
        middleware = ASGIMiddleware(Application(), candidate)
        route, cancelled = middleware._router.route, list[bool]()

        async def overtaken(*given: Any) -> Any:
            serving = await route(*given)
            cancelled.append(asking.cancel())
            return serving

        monkeypatch.setattr(middleware._router, "route", overtaken)
        told = [{"type": "http.request"}]

        async def receive() -> Any:
            return told.pop() if told else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "path": "/", "headers": [(b"host", b"a")], "method": "GET"}
        asking = asyncio.create_task(middleware(scope, receive, send))
        await async_wait_until(lambda: middleware._router._waiting)
        term = await candidate.campaign(10)
        await asyncio.wait([asking])
        await settle()
        assert cancelled == [True]
        assert asking.cancelled()
        assert _in_flight[term].count == 0
        await candidate.stop()
        await middleware.close()


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_server_that_says_by_an_error_that_the_client_has_gone_gets_none_back(kind: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
            middleware = ASGIMiddleware(
                Application(), aio.Follower(store, KEY), Policy(mode="redirect", wait=0.1)
            )
            told = [{"type": {"http": "http.request", "websocket": "websocket.connect"}[kind]}]

            async def receive() -> Any:
                return told.pop() if told else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                raise BrokenPipeError

            scope = {"type": kind, "path": "/", "headers": [(b"host", b"a")], "method": "GET"}
            await middleware(scope, receive, send)
            await middleware.close()

    scenario()


@pytest.mark.parametrize("over", [True, False])
def test_the_end_of_a_term_lets_its_requests_end_whoever_cancels_its_leader(over: bool) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
            candidate = aio.Candidate(store, KEY, "a", ttl=30)
            leading: list[asyncio.Future[None]] = []

            async def work(term: aio.Term) -> None:
                leading.append(asyncio.ensure_future(lead_async(term)))
                await asyncio.wait(leading)

            running = asyncio.create_task(candidate.run(work))
            await async_wait_until(lambda: leading)
            serving = begin(candidate)
            assert serving is not None
            if over:
                resigning = asyncio.create_task(candidate.resign())
                await async_wait_until(lambda: _in_flight[serving.term].ended)
            leading[0].cancel()
            await async_wait_until(lambda: _in_flight[serving.term].ended)
            leading[0].cancel()
            await settle()
            assert not leading[0].done()
            serving.end()
            await asyncio.wait(leading)
            if over:
                assert await resigning
            await candidate.stop()
            await asyncio.wait([running])

    scenario()


@pytest.mark.parametrize(
    "wrong", [{"mode": "both"}, {"wait": 0}, {"keep": 0}, {"retry_after": 1.5}, {"finish": -1}]
)
def test_a_policy_that_can_never_work_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        Policy(**wrong)


def test_a_participant_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Candidate or a Follower"):
        ASGIMiddleware(Application(), "10.0.0.5:8080")  # type: ignore[arg-type]
