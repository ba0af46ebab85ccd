"""The WSGI middleware in real servers of threads: who leads answers, whoever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socketserver
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import aiohttp
import pytest

from leadership import Candidate, new_store
from leadership.route_upstream import Connections
from leadership.route_wsgi import _LoopThread
from leadership.routing import TERM, Policy, WSGIMiddleware, lead

from .leaks import thread_names
from .loops import settle
from .servers.ports import free_port
from .waiting import wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/web"


class _Silent(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass

    def get_stderr(self) -> Any:
        return io.StringIO()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, *arguments: Any) -> None:
        """Of clients that have gone."""


class Node:
    """A web server and its candidate, which contends from `lead` or `stand` on."""

    def __init__(self, url: str, policy: Policy | None = None) -> None:
        self.port = free_port()
        self.store = new_store(url)
        self.candidate = Candidate(self.store, KEY, f"127.0.0.1:{self.port}", ttl=30)
        self.asked = 0
        self.release = threading.Event()
        self.middleware = WSGIMiddleware(validator(self.answer), self.candidate, policy)
        self._server = _Server(("127.0.0.1", self.port), _Silent)
        self._server.set_app(validator(self.middleware))
        self._threads = [threading.Thread(target=self._server.serve_forever, args=[0.02])]
        self._threads[0].start()

    def answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.asked += 1
        size = 0
        left = int(environ.get("CONTENT_LENGTH") or 0)
        while left and (data := environ["wsgi.input"].read(min(left, 10_000))):
            size += len(data)
            left -= len(data)
        path = environ["PATH_INFO"]
        if path == "/wait":
            self.release.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Port", str(self.port))])
        told = f"{environ['REQUEST_METHOD']} {path} {size} {environ[TERM].token}"
        return self._long(told) if path == "/long" else [told.encode()]

    def _long(self, told: str) -> Iterator[bytes]:
        yield told.encode()
        for _ in range(100):
            yield b"x" * 10_000

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stand(self) -> None:
        self._threads.append(threading.Thread(target=self.candidate.run, args=[lead]))
        self._threads[-1].start()

    def lead(self) -> None:
        self.stand()
        wait_until(self.candidate.is_leader, what="leadership")

    def close(self) -> None:
        self.release.set()
        self.candidate.stop()
        self._server.shutdown()
        self._server.server_close()
        self.middleware.close()
        for thread in self._threads:
            thread.join(30)
        self.store.close()


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    url = f"memory://{uuid.uuid4()}"
    with contextlib.ExitStack() as stack:
        nodes = Node(url), Node(url)
        for node in nodes:
            stack.callback(node.close)
        yield nodes


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as opened:
        yield opened


def ask(
    url: str, method: str = "GET", data: bytes | None = None, **options: Any
) -> tuple[int, str, dict[str, str]]:
    async def asking() -> tuple[int, str, dict[str, str]]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=data, **options) as response,
        ):
            return response.status, await response.text(), dict(response.headers)

    return asyncio.run(asking())


def test_whoever_is_asked_the_leader_answers_under_its_term(pair: tuple[Node, Node]) -> None:
    first, second = pair
    first.lead()
    second.stand()
    token = first.candidate.term.token  # type: ignore[union-attr]
    for node in pair:
        for size in (0, 3, 1_000_000):
            status, text, headers = ask(node.url("/a"), "POST", b"x" * size)
            assert (status, text) == (200, f"POST /a {size} {token}")
            assert headers["X-Port"] == str(first.port)
        status, text, _ = ask(node.url("/long"))
        assert (status, len(text)) == (200, len(f"GET /long 0 {token}") + 1_000_000)
    assert second.asked == 0


def test_what_waits_at_a_process_that_comes_to_lead_is_answered_there(
    pair: tuple[Node, Node], pool: ThreadPoolExecutor
) -> None:
    first, second = pair
    for size in (60_000, 1_000_000):
        waiting = pool.submit(ask, second.url("/b"), "POST", b"x" * size)
        wait_until(lambda: second.middleware._router._waiting)
        second.lead()
        status, text, _ = waiting.result(20)
        assert (status, text.split()[:3]) == (200, ["POST", "/b", str(size)])
        second.candidate.stop()
    assert first.asked == 0


def test_a_term_ends_after_its_last_request(
    pair: tuple[Node, Node], pool: ThreadPoolExecutor
) -> None:
    first, second = pair
    first.lead()
    second.stand()
    slow = [pool.submit(ask, node.url("/wait"), "POST") for node in pair]
    wait_until(lambda: first.asked == 2)
    resigning = pool.submit(first.candidate.resign)
    wait_until(lambda: not first.candidate.is_leader())
    later = pool.submit(ask, first.url(), "POST")
    assert not resigning.done()
    first.release.set()
    assert [each.result(20)[2]["X-Port"] for each in slow] == [str(first.port)] * 2
    assert resigning.result(20)
    assert later.result(20)[2]["X-Port"] == str(second.port)


def test_a_term_that_ends_before_the_application_is_called_is_not_its_term(
    pair: tuple[Node, Node], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    router = second.middleware._router
    route, left = router.route, list[object]()

    async def held_up(*given: Any) -> Any:
        serving = await route(*given)
        if not left:
            await asyncio.to_thread(second.candidate.resign)
        left.append(serving)
        return serving

    monkeypatch.setattr(router, "route", held_up)
    waiting = pool.submit(ask, second.url("/b"), "POST", b"xyz")
    wait_until(lambda: router._waiting)
    former = second.candidate.campaign(10)
    wait_until(lambda: left)
    first.lead()
    assert waiting.result(20)[1] == f"POST /b 3 {first.candidate.term.token}"  # type: ignore[union-attr]
    assert second.asked == 0
    assert not former.is_valid()


def test_by_redirect_the_client_goes_to_the_leader_itself(pool: ThreadPoolExecutor) -> None:
    url = f"memory://{uuid.uuid4()}"
    with contextlib.closing(Node(url)) as first:
        with contextlib.closing(Node(url, Policy(mode="redirect"))) as second:
            first.lead()
            status, _, headers = ask(second.url("/a%20b?c=1"), "PUT", b"x", allow_redirects=False)
            assert (status, headers["Location"]) == (307, first.url("/a%20b?c=1"))
            status, text, _ = ask(second.url("/a"), "PUT", b"xyz")
            assert (status, text.split()[:3]) == (200, ["PUT", "/a", "3"])


def test_without_a_leader_it_answers_503() -> None:
    with contextlib.closing(Node(f"memory://{uuid.uuid4()}", Policy(wait=0.2))) as node:
        status, _, headers = ask(node.url(), "POST", b"x")
        assert (status, headers["Retry-After"]) == (503, "1")


def test_closed_it_fails_what_still_waits_by_an_error_that_servers_know(
    pool: ThreadPoolExecutor,
) -> None:
    with contextlib.closing(Node(f"memory://{uuid.uuid4()}")) as node:
        environ: dict[str, Any] = {"HTTP_HOST": "a"}
        setup_testing_defaults(environ)
        asking = pool.submit(node.middleware, environ, lambda *given: None)
        wait_until(lambda: node.middleware._router._waiting)
        node.middleware.close()
        assert isinstance(asking.exception(20), Exception)


def test_a_length_that_the_server_did_not_take_for_one_is_not_told_to_the_leader(
    pair: tuple[Node, Node], pool: ThreadPoolExecutor
) -> None:
    first, second = pair
    first.lead()
    # What some servers make of Content_Length.
    environ: dict[str, Any] = {"HTTP_HOST": "a", "HTTP_CONTENT_LENGTH": "3"}
    setup_testing_defaults(environ)
    with contextlib.closing(second.middleware):
        asking = pool.submit(lambda: list(second.middleware(environ, lambda *given: None)))
        assert b"".join(asking.result(10)).startswith(b"GET / 0 ")


def test_closed_it_follows_no_more_whatever_still_waits(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = _LoopThread.end

    def held_up(running: _LoopThread, connections: Connections) -> None:
        asyncio.run_coroutine_threadsafe(settle(), running.loop).result(20)
        end(running, connections)

    monkeypatch.setattr(_LoopThread, "end", held_up)
    with contextlib.closing(Node(f"memory://{uuid.uuid4()}")) as node:
        environ: dict[str, Any] = {"HTTP_HOST": "a"}
        setup_testing_defaults(environ)
        asking = pool.submit(node.middleware, environ, lambda *given: None)
        router = node.middleware._router
        wait_until(lambda: router._waiting)
        node.middleware.close()
        assert isinstance(asking.exception(20), Exception)
        assert router.view._follows is None


def test_closed_it_leaves_no_thread_and_begins_anew() -> None:
    before = thread_names()["leadership-routing"]
    with contextlib.closing(Node(f"memory://{uuid.uuid4()}", Policy(wait=0.2))) as node:
        for _ in range(2):
            assert ask(node.url())[0] == 503
            node.middleware.close()
    assert thread_names()["leadership-routing"] == before
