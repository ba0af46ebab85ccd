"""The proxy before leaders that answer, refuse, break off, hang and change."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from leadership.events import LeaderUnroutable
from leadership.route_headers import Way, values
from leadership.router import Policy

from .command import Command, leadership_here
from .loops import on_a_loop
from .routing_leaders import Asked, SocketLeader, accept, break_off, proxied, refuse
from .servers.etcd_client import EtcdClient
from .servers.ports import free_port
from .waiting import async_wait_until

pytestmark = pytest.mark.backend("memory")

IMPATIENT = Policy(wait=0.3, retry_after=7)


async def asking(method: str, url: str, **options: Any) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, **options) as response,
    ):
        return response.status, await response.read()


@on_a_loop
async def test_a_request_reaches_the_leader_and_its_answer_the_client() -> None:
    async with SocketLeader(accept) as leader, proxied(leader=leader.address) as behind:
        url = behind.url("/a%2Fb?c=%20d")
        assert await asking("POST", url, data=b"x" * 3) == (200, b"POST /a%2Fb?c=%20d HTTP/1.1 3")


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


async def exchanged(address: str, request: bytes) -> bytes:
    """All that is answered to these bytes, on a connection which is closed after that."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


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


@on_a_loop
async def test_without_a_leader_a_request_waits_and_gets_503_when_none_comes() -> None:
    async with proxied(IMPATIENT) as behind:
        async with aiohttp.ClientSession() as session, session.post(behind.url()) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "7"


@on_a_loop
async def test_a_request_that_waits_goes_to_the_leader_that_comes() -> None:
    async with SocketLeader(accept) as leader, proxied() as behind:
        waiting = asyncio.create_task(asking("POST", behind.url(), data=b"xyz"))
        await asyncio.sleep(0)
        await behind.lead(leader.address)
        assert await waiting == (200, b"POST / HTTP/1.1 3")


@on_a_loop
async def test_no_more_than_a_bounded_number_waits() -> None:
    async with proxied(Policy(most_waiting=1, wait=5)) as behind:
        waiting = [asyncio.create_task(asking("GET", behind.url())) for _ in range(3)]
        refused = asyncio.as_completed(waiting)
        assert [(await next(refused))[0] for _ in range(2)] == [503, 503]
        rest = [each for each in waiting if not each.done()]
        assert len(rest) == 1
        rest[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await next(refused)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_was_sent_and_is_not_idempotent_gets_one_502_and_is_never_sent_twice(
    method: str,
) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with (
            SocketLeader(break_off) as first,
            SocketLeader(accept) as second,
            proxied(leader=first.address) as behind,
        ):
            asking_it = asyncio.create_task(asking(method, behind.url(), data=b"x"))
            await async_wait_until(lambda: first.asked)
            await behind.lead(second.address)
            assert (await asking_it)[0] == 502
            assert (len(first.asked), len(second.asked)) == (1, 0)

    scenario()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_what_is_idempotent_is_tried_again_at_the_next_leader_with_its_whole_body(
    method: str,
) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with SocketLeader(accept) as second, proxied() as behind:

            async def hand_over(asked: Asked) -> None:
                await asked.body()
                if len(first.asked) == 1:
                    await behind.lead(second.address)
                asked.break_off()

            async with SocketLeader(hand_over) as first:
                await behind.lead(first.address)
                body = None if method == "GET" else b"x" * 50_000
                status, text = await asking(method, behind.url(), data=body)
            size = 0 if body is None else len(body)
            assert (status, text.decode()) == (200, f"{method} / HTTP/1.1 {size}")

    scenario()


@on_a_loop
async def test_a_request_that_breaks_every_leader_is_not_sent_on_for_ever() -> None:
    async with SocketLeader(break_off) as leader, proxied(leader=leader.address) as behind:
        assert (await asking("PUT", behind.url(), data=b"x"))[0] == 502
        # Once more than is counted, for the client library retries a kept connection itself.
        assert len(leader.asked) <= 4


@on_a_loop
async def test_a_body_that_is_not_kept_is_not_sent_twice() -> None:
    async with SocketLeader(break_off) as leader, proxied(leader=leader.address) as behind:
        assert (await asking("PUT", behind.url(), data=b"x" * 1_000_000))[0] == 502
        assert leader.connections == 1


@on_a_loop
async def test_where_nobody_listens_any_method_goes_to_the_next_leader() -> None:
    gone = SocketLeader(accept)
    async with SocketLeader(accept) as leader, proxied(leader=gone.address) as behind:
        waiting = asyncio.create_task(asking("POST", behind.url(), data=b"xyz"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        await behind.lead(leader.address)
        assert await waiting == (200, b"POST / HTTP/1.1 3")


@on_a_loop
async def test_a_leader_that_starts_to_listen_late_gets_what_waited_for_it() -> None:
    leader = SocketLeader(accept)
    async with proxied(leader=leader.address) as behind:
        waiting = asyncio.create_task(asking("POST", behind.url(), data=b"xyz"))
        await asyncio.wait([waiting], timeout=0.1)
        async with leader:
            assert (await waiting)[0] == 200


@on_a_loop
async def test_what_was_refused_as_misdirected_goes_to_the_next_leader_whatever_its_method() -> (
    None
):
    async with (
        SocketLeader(refuse) as former,
        SocketLeader(accept) as leader,
        proxied(leader=former.address) as behind,
    ):
        waiting = asyncio.create_task(asking("POST", behind.url(), data=b"x" * 9_000))
        await async_wait_until(lambda: former.asked)
        await behind.lead(leader.address)
        assert await waiting == (200, b"POST / HTTP/1.1 9000")
        assert len(leader.asked) == 1


@on_a_loop
async def test_a_former_leader_that_hangs_is_left_some_time_after_the_change() -> None:
    async def hang(asked: Asked) -> None:
        await asyncio.Event().wait()

    async with (
        SocketLeader(hang) as former,
        SocketLeader(accept) as leader,
        proxied(Policy(finish=0.2), former.address) as behind,
    ):
        methods = ("GET", "POST")
        waiting = [asyncio.create_task(asking(m, behind.url(), data=b"x")) for m in methods]
        await async_wait_until(lambda: len(former.asked) == 2)
        await behind.lead(leader.address)
        assert [(await each)[0] for each in waiting] == [200, 502]
        assert len(leader.asked) == 1


@on_a_loop
async def test_a_former_leader_may_finish_what_it_was_asked() -> None:
    release = asyncio.Event()

    async def finish(asked: Asked) -> None:
        await release.wait()
        await accept(asked)

    async with SocketLeader(finish) as former, SocketLeader(accept) as leader:
        async with proxied(leader=former.address) as behind:
            waiting = asyncio.create_task(asking("POST", behind.url(), data=b"x"))
            await async_wait_until(lambda: former.asked)
            await behind.lead(leader.address)
            release.set()
            assert (await waiting)[0] == 200
            assert (len(former.asked), len(leader.asked)) == (1, 0)


@on_a_loop
async def test_an_answer_that_is_cut_in_its_first_bytes_is_a_502_and_not_half_an_answer() -> None:
    async def cut(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await asked.writer.drain()
        asked.writer.close()

    async with SocketLeader(cut) as leader, proxied(leader=leader.address) as behind:
        assert (await asking("POST", behind.url()))[0] == 502


@pytest.mark.parametrize("framing", ["Content-Length: 200000", "Transfer-Encoding: chunked"])
def test_an_answer_that_is_cut_later_never_looks_whole(framing: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        async def cut(asked: Asked) -> None:
            asked.writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
            size = b"" if framing.startswith("Content") else b"186a0\r\n"
            asked.writer.write(size + b"x" * 100_000)
            await asked.writer.drain()
            asked.writer.close()

        async with SocketLeader(cut) as leader, proxied(leader=leader.address) as behind:
            with pytest.raises(aiohttp.ClientError):
                await asking("GET", behind.url())
            assert len(leader.asked) == 1

    scenario()


@on_a_loop
async def test_events_arrive_one_by_one_although_the_answer_has_no_end() -> None:
    more = asyncio.Event()

    async def tell(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in (b"one", b"two"):
            asked.writer.write(b"3\r\n" + event + b"\r\n")
            await asked.writer.drain()
            await more.wait()

    async with SocketLeader(tell) as leader, proxied(leader=leader.address) as behind:
        async with aiohttp.ClientSession() as session, session.get(behind.url()) as response:
            assert await response.content.readany() == b"one"
            more.set()
            assert await response.content.readany() == b"two"


@on_a_loop
async def test_a_leader_that_reads_slowly_slows_the_client_down() -> None:
    async def read_nothing(asked: Asked) -> None:
        await asyncio.Event().wait()

    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            yield b"x" * 65_536
            taken += 65_536

    async with SocketLeader(read_nothing) as leader, proxied(leader=leader.address) as behind:
        asking_it = asyncio.create_task(asking("POST", behind.url(), data=endless()))
        await async_wait_until(lambda: leader.asked)
        await _stands_still(lambda: taken)
        # What the kernel's buffers on the way and two small ones of ours hold.
        assert taken < 32 * 1024 * 1024
        asking_it.cancel()
        await asyncio.wait([asking_it])


@on_a_loop
async def test_a_client_that_reads_slowly_slows_the_leader_down() -> None:
    sent = 0

    async def endless(asked: Asked) -> None:
        nonlocal sent
        asked.writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            asked.writer.write(b"x" * 65_536)
            await asked.writer.drain()
            sent += 65_536

    async with SocketLeader(endless) as leader, proxied(leader=leader.address) as behind:
        async with aiohttp.ClientSession() as session, session.get(behind.url()):
            await _stands_still(lambda: sent)
            assert sent < 32 * 1024 * 1024


async def _stands_still(number: Any) -> None:
    last = -1
    while (now := number()) != last or not now:
        last = now
        await asyncio.sleep(0.2)


@on_a_loop
async def test_a_client_that_goes_ends_what_the_leader_does_for_it() -> None:
    ended = asyncio.Event()

    async def wait(asked: Asked) -> None:
        await asked.reader.read()
        ended.set()

    async with SocketLeader(wait) as leader, proxied(leader=leader.address) as behind:
        asking_it = asyncio.create_task(asking("GET", behind.url()))
        await async_wait_until(lambda: leader.asked)
        asking_it.cancel()
        async with asyncio.timeout(10):
            await ended.wait()


@on_a_loop
async def test_a_leader_whose_address_is_the_proxy_is_found_out() -> None:
    async with proxied() as behind:
        await behind.lead(behind.address)
        assert (await asking("GET", behind.url()))[0] == 508


@on_a_loop
async def test_a_value_that_is_no_address_is_told_once_and_is_no_leader() -> None:
    async with proxied(IMPATIENT, "redis://10.0.0.1:6379/0") as behind:
        for _ in range(2):
            assert (await asking("GET", behind.url()))[0] == 503
        await async_wait_until(
            lambda: len([e for e in behind.events if isinstance(e, LeaderUnroutable)]) == 1
        )


@on_a_loop
async def test_by_redirect_the_client_is_sent_to_the_leader_with_method_and_body() -> None:
    async with SocketLeader(accept) as leader:
        async with proxied(Policy(mode="redirect"), leader.address) as behind:
            url = behind.url("//evil.example/?a=%0D")
            async with aiohttp.ClientSession() as session:
                async with session.post(url, data=b"x", allow_redirects=False) as response:
                    assert response.status == 307
                    where = f"http://{leader.address}//evil.example/?a=%0D"
                    assert response.headers["Location"] == where
            for size in (3, 1_000_000):
                answer = await asking("PUT", behind.url(), data=b"x" * size)
                assert answer == (200, f"PUT / HTTP/1.1 {size}".encode())


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


@on_a_loop
async def test_a_websocket_is_relayed_and_told_to_come_back_when_its_leader_dies() -> None:
    async def opened(asked: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("p",))
        await socket.prepare(asked)
        async for message in socket:
            if message.data == "die":
                assert asked.transport is not None
                asked.transport.abort()
            elif message.data == "leave":
                await socket.close(code=4001)
            else:
                await socket.send_str(f"{message.data} at {asked.path_qs}")
        return socket

    async def refused(asked: web.Request) -> web.Response:
        return web.Response(status=404)

    app = web.Application()
    app.add_routes([web.get("/s", opened), web.get("/no", refused)])
    runner = web.AppRunner(app)
    await runner.setup()
    address = f"127.0.0.1:{free_port()}"
    await web.TCPSite(runner, *address.split(":")).start()  # type: ignore[arg-type]
    try:
        async with proxied(leader=address) as behind, aiohttp.ClientSession() as session:
            for word, code in (("leave", 4001), ("die", 1012)):
                async with session.ws_connect(behind.url("/s?a=1"), protocols=["p"]) as client:
                    assert client.protocol == "p"
                    await client.send_str("words")
                    assert (await client.receive()).data == "words at /s?a=1"
                    await client.send_str(word)
                    closing = await client.receive()
                    assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, code)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await session.ws_connect(behind.url("/no"))
            assert refusal.value.status == 404
    finally:
        await runner.cleanup()


def test_the_command_says_what_is_wrong_in_one_line(
    etcd: EtcdClient, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        given = ("--store", etcd.url, "--key", "k")
        for listen, message in ((f"127.0.0.1:{taken}", "cannot listen"), ("x", "host:port")):
            ended = leadership_here(capfd, "proxy", *given, "--listen", listen)
            assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
            assert message in ended.stderr


def test_the_command_ends_in_good_order_by_a_signal(etcd: EtcdClient) -> None:
    given = ("--store", etcd.url, "--key", f"k/{uuid.uuid4().hex}", "--json")
    with Command("proxy", *given, "--listen", f"127.0.0.1:{free_port()}") as proxy:
        proxy.wait_for("listening")
        proxy.send(signal.SIGTERM)
        assert proxy.status() == 143
