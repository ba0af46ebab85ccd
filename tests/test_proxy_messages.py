"""What the proxy passes on of a message, byte for byte, and what it does with odd ones."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import aiohttp
import pytest

from leadership import proxy
from leadership.aio import Follower, new_store
from leadership.route_headers import Way, values
from leadership.router import Policy
from leadership.routing import ASGIMiddleware

from .loops import on_a_loop
from .routing_leaders import KEY, Asked, SocketLeader, accept, exchanged, proxied
from .servers.ports import free_port
from .waiting import async_wait_until

pytestmark = pytest.mark.backend("memory")

IMPATIENT = Policy(wait=0.3)


async def asking(method: str, url: str, **options: Any) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, **options) as response,
    ):
        return response.status, await response.read()


@on_a_loop
async def test_the_answer_to_head_has_a_length_and_no_body() -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 123456\r\n\r\n")

    async with SocketLeader(answer) as leader, proxied(IMPATIENT, leader.address) as behind:
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with session.head(behind.url()) as response:
                    assert response.headers["Content-Length"] == "123456"
            await behind.nobody_leads()
            statuses: list[int] = []
            # It hears of that a moment later.
            while statuses[-2:] != [503, 503]:
                async with session.head(behind.url()) as response:
                    statuses.append(response.status)
                    assert response.status in (200, 503)


@on_a_loop
async def test_what_concerns_one_connection_is_not_passed_on() -> None:
    async def answer(asked: Asked) -> None:
        fields = ("Connection: X-Hop", "X-Hop: 1", "Keep-Alive: timeout=9", "X-End: 1")
        await asked.answer(
            b"", *fields, "Proxy-Authenticate: Basic", "Set-Cookie: a", "Set-Cookie: b"
        )

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        given = {
            "Connection": "keep-alive, X-Secret, Host",
            "X-Secret": "1",
            "TE": "trailers",
            "Trailer": "X-T",
            "Proxy-Authorization": "x",
            "Proxy-Connection": "close",
            "Keep-Alive": "5",
            "Upgrade": "h2c",
            "Host": "example.org",
            "Authorization": "Bearer x",
        }
        async with aiohttp.ClientSession() as session:
            async with session.get(behind.url(), headers=given) as response:
                answered = response.headers
    arrived = dict(leader.asked[0].fields)
    gone = {"x-secret", "te", "trailer", "proxy-authorization", "proxy-connection", "upgrade"}
    assert gone & set(arrived) == set()
    assert (arrived["host"], arrived["authorization"]) == ("example.org", "Bearer x")
    assert {"X-Hop", "Keep-Alive", "Proxy-Authenticate"} & set(answered) == set()
    assert answered["X-End"] == "1"
    assert answered.getall("Set-Cookie") == ["a", "b"]
    assert {"Content-Type", "Server"} & set(answered) == set()


@on_a_loop
async def test_bytes_of_no_encoding_stay_as_they_are_in_fields() -> None:
    fields = (b"X-Latin: caf\xe9", b"X-Utf: \xc3\xa9\xe2\x82\xac", b"X-Odd: \xff\x80\xed\xa0\x80")

    async def answer(asked: Asked) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
        asked.writer.write(head + b"\r\n".join(fields) + b"\r\n\r\n")
        # Apart from the head: what is made of that does not touch the body.
        asked.writer.write(b"\xe9")

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        for method in (b"GET", b"POST"):
            body = b"" if method == b"GET" else b"\xc3\xa9\xe9"
            length = b"Content-Length: %d" % len(body)
            head = b"\r\n".join((method + b" /caf%C3%A9? HTTP/1.1", b"Host: h", length, *fields))
            answered = await exchanged(behind.address, head + b"\r\n\r\n" + body)
            assert answered.startswith(b"HTTP/1.1 200"), answered
            arrived = leader.asked[-1]
            assert arrived.line == f"{method.decode()} /caf%C3%A9? HTTP/1.1"
            for field in fields:
                name, _, value = field.decode("latin-1").partition(": ")
                assert arrived.field(name.lower()) == value
                assert field in answered.split(b"\r\n")
            assert answered.endswith(b"\r\n\r\n\xe9")


@pytest.mark.parametrize("target", ["/", "/?", "/a?", "/a?b=c?"])
def test_the_target_arrives_as_it_was_sent(target: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
            await exchanged(behind.address, f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert leader.asked[0].line == f"GET {target} HTTP/1.1"

    scenario()


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://example.org/a?b", "/a?b", "example.org"),
        ("HTTP://Example.org:8080?", "/?", "Example.org:8080"),
        ("https://[fd00::1]:80/", "/", "[fd00::1]:80"),
        ("http://10.0.0.1", "/", "10.0.0.1"),
    ],
)
def test_a_target_that_names_a_host_goes_to_the_leader_for_that_host(
    target: str, path: str, host: str
) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
            head = f"POST {target} HTTP/1.1\r\nHost: evil\r\nContent-Length: 3\r\n\r\nxyz"
            answered = await exchanged(behind.address, head.encode())
            assert answered.startswith(b"HTTP/1.1 200")
            (asked,) = leader.asked
            assert asked.line == f"POST {path} HTTP/1.1"
            assert asked.field("host") == host
            assert asked.field("x-forwarded-host") == host

    scenario()


@pytest.mark.parametrize("trusted", [False, True])
def test_the_way_is_told_and_what_the_client_says_of_it_believed_only_on_request(
    trusted: bool,
) -> None:
    @on_a_loop
    async def scenario() -> None:
        policy = Policy(trust_forwarded=trusted)
        async with SocketLeader(accept) as leader, proxied(policy, leader.address) as behind:
            given = {
                "X-Forwarded-For": "6.6.6.6",
                "X-Forwarded-Proto": "https",
                "Forwarded": "for=6.6.6.6",
                "Host": "example.org",
            }
            await asking("GET", behind.url(), headers=given)
        told = dict(leader.asked[0].fields)
        own = 'for=127.0.0.1;proto=http;host="example.org"'
        assert told["x-forwarded-for"] == ("6.6.6.6, 127.0.0.1" if trusted else "127.0.0.1")
        assert told["x-forwarded-proto"] == ("https" if trusted else "http")
        assert told["x-forwarded-host"] == "example.org"
        assert told["forwarded"] == (f"for=6.6.6.6, {own}" if trusted else own)
        assert told["via"].startswith("1.1 leadership-")

    scenario()


@on_a_loop
async def test_what_some_servers_take_for_a_field_of_the_way_is_not_passed_on() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        given = {"X_Forwarded_For": "6.6.6.6", "x-forwarded_Host": "evil", "X_Own": "1"}
        await asking("GET", behind.url(), headers=given)
    arrived = dict(leader.asked[0].fields)
    assert arrived["x_own"] == "1"
    assert {"x_forwarded_for", "x-forwarded_host"} & set(arrived) == set()


def test_an_odd_client_address_adds_nothing_to_what_is_told_of_the_way() -> None:
    for odd in ("6.6.6.6;host=evil", '6.6.6.6";host="evil', "/run/a.sock"):
        fields = Way("k", random.Random(1)).onward(
            [(b"Host", b"a")], scheme="http", client=odd, version="1.1", trusted=False
        )
        (told,) = values(fields, b"forwarded")
        assert told == b'for=unknown;proto=http;host="a"'


@on_a_loop
async def test_who_waits_to_be_asked_for_the_body_is_asked_for_it() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        host, _, port = behind.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(20):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"xyz")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://u:p@10.0.0.1/ HTTP/1.1",
        b"GET http:///a HTTP/1.1",
        b"GET http://a\\b/ HTTP/1.1",
        b"GET http://a:b/ HTTP/1.1",
        b"GET ftp://10.0.0.1/ HTTP/1.1",
        b"OPTIONS http://10.0.0.1 HTTP/1.1",
        b"GET @10.0.0.1/ HTTP/1.1",
        b"CONNECT 10.0.0.1:80 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ],
)
def test_only_paths_are_forwarded(line: bytes) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
            host, _, port = behind.address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(line + b"\r\nHost: h\r\nConnection: close\r\n\r\n")
            status = (await reader.readline()).split()[1]
            writer.close()
            assert status in (b"400", b"501")
            assert leader.asked == []

    scenario()


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"X-A : 1\r\n",
    ],
)
def test_a_request_whose_end_is_in_doubt_goes_nowhere(fields: bytes) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
            host, _, port = behind.address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n0\r\n\r\n")
            status = await reader.readline()
            writer.close()
            assert b" 400 " in status
            assert leader.asked == []

    scenario()


@pytest.mark.parametrize(
    "hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: u@a\r\n", b"Host: a/b\r\n"]
)
def test_a_request_whose_host_is_in_doubt_goes_nowhere(hosts: bytes) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
            answered = await exchanged(behind.address, b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")
            assert b" 400 " in answered.splitlines()[0]
            assert leader.asked == []

    scenario()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_leaves_the_connection_usable(status: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        async def answer(asked: Asked) -> None:
            await asked.body()
            length = "" if status.startswith("204") else "Content-Length: 9\r\n"
            asked.writer.write(f'HTTP/1.1 {status}\r\nETag: "a"\r\n{length}\r\n'.encode())

        async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
            async with aiohttp.ClientSession() as session:
                for method in ("GET", "POST", "GET"):
                    async with session.request(method, behind.url()) as response:
                        told = (response.status, response.headers["ETag"], await response.read())
                        assert told == (int(status[:3]), '"a"', b"")

    scenario()


@on_a_loop
async def test_an_answer_that_has_no_body_tells_no_length() -> None:
    """Some servers of ASGI would wait for the body that it speaks of."""
    sent: list[Any] = []

    async def answer(asked: Asked) -> None:
        asked.writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 9\r\n\r\n')

    async def application(*given: Any) -> None:
        raise AssertionError(given)

    requests = [{"type": "http.request"}]

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        async with Follower(behind.store, KEY) as follower:
            middleware = ASGIMiddleware(application, follower)
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"a")]}
            await middleware(scope, receive, send)
            await middleware.close()
    assert sent[0]["status"] == 304
    assert sent[0]["headers"] == [(b"etag", b'"a"')]


@on_a_loop
async def test_answers_before_the_answer_are_not_taken_for_it() -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        asked.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await accept(asked)

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        assert await asking("POST", behind.url(), data=b"xyz") == (200, b"POST / HTTP/1.1 3")


@on_a_loop
async def test_trailers_are_dropped_both_ways_and_end_the_message() -> None:
    async def answer(asked: Asked) -> None:
        body = await asked.body()
        asked.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n")
        asked.writer.write(b"%x\r\n%s\r\n0\r\nX-T: 1\r\n\r\n" % (len(body), body))

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        for _ in range(2):
            head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            answered = await exchanged(behind.address, head + b"3\r\nxyz\r\n0\r\nX-T: 2\r\n\r\n")
            assert b"xyz" in answered
            assert b"X-T" not in answered
        assert all("x-t" not in dict(asked.fields) for asked in leader.asked)


@on_a_loop
async def test_an_upgrade_that_is_not_to_a_websocket_is_an_ordinary_request() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        for upgrade in (b"h2c", b"websocket"):
            fields = b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\nContent-Length: 3\r\n"
            one = b"POST /a HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\nxyz"
            two = b"GET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            host, _, port = behind.address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            # One after the other: aiohttp loses what is sent behind an upgrade unknown to it.
            writer.write(one)
            answered = await reader.readuntil(b"POST /a HTTP/1.1 3")
            writer.write(two)
            answered += await reader.read()
            writer.close()
            assert answered.count(b"HTTP/1.1 200") == 2
            assert [asked.line for asked in leader.asked[-2:]] == [
                "POST /a HTTP/1.1",
                "GET /b HTTP/1.1",
            ]


@on_a_loop
async def test_a_client_of_http_1_0_is_not_told_to_go_on() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        head = b"POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nxyz"
        answered = await exchanged(behind.address, head)
        assert answered.split(b" ")[1] == b"200"


@on_a_loop
async def test_an_answer_with_large_fields_is_passed_on() -> None:
    large = "x" * 60_000

    async def answer(asked: Asked) -> None:
        await asked.answer(b"", f"X-Large: {large}")

    async with SocketLeader(answer) as leader, proxied(leader=leader.address) as behind:
        answered = await exchanged(behind.address, b"POST / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert large.encode() in answered


@on_a_loop
async def test_what_a_client_says_of_the_way_before_us_is_not_believed_by_any_name() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        given = {"X-Forwarded-Port": "443", "X_Forwarded_Prefix": "/evil", "X-Own": "1"}
        await asking("GET", behind.url(), headers=given)
    arrived = dict(leader.asked[0].fields)
    assert arrived["x-own"] == "1"
    assert {"x-forwarded-port", "x_forwarded_prefix"} & set(arrived) == set()


def test_who_never_ends_the_head_of_a_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FIRST_REQUEST_WITHIN", 0.5)

    @on_a_loop
    async def scenario() -> None:
        released = asyncio.Event()

        async def answer_late(asked: Asked) -> None:
            await released.wait()
            await accept(asked)

        async with SocketLeader(answer_late) as leader, proxied(leader=leader.address) as behind:
            waiting = asyncio.create_task(asking("POST", behind.url()))
            await async_wait_until(lambda: leader.asked)
            assert await exchanged(behind.address, b"GET / HTTP/1.1\r\nHost: h\r\nX-A: ") == b""
            # A request that has arrived takes as long as it takes.
            released.set()
            assert (await waiting)[0] == 200

    scenario()


@on_a_loop
async def test_a_connection_that_ends_without_a_request_leaves_nothing_behind() -> None:
    port = free_port()
    async with new_store(f"memory://{uuid.uuid4()}") as store, Follower(store, KEY) as follower:
        own = proxy.Proxy(follower, f"127.0.0.1:{port}")
        await own.start()
        try:
            for sent in (b"", b"GET"):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                await async_wait_until(lambda: own._silent)
                writer.close()
                await async_wait_until(lambda: not own._silent)
        finally:
            await own.close(1)


@on_a_loop
async def test_an_answer_that_stands_still_ends_when_another_has_been_leading_for_long() -> None:
    async def stop_in_the_middle(asked: Asked) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
        asked.writer.write(head)
        await asyncio.Event().wait()

    async with (
        SocketLeader(stop_in_the_middle) as former,
        SocketLeader(accept) as leader,
        proxied(Policy(finish=0.2), former.address) as behind,
        aiohttp.ClientSession() as session,
        session.get(behind.url()) as response,
    ):
        assert await response.content.readany() == b"one"
        await behind.lead(leader.address)
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(20):
                await response.read()
        assert leader.asked == []
