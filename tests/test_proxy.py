"""The proxy before leaders that answer, refuse, break off, hang and change."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from leadership.events import LeaderUnroutable
from leadership.router import Policy

from .command import Command, leadership_here
from .loops import on_a_loop
from .routing_leaders import Asked, SocketLeader, accept, break_off, proxied, refuse
from .servers.etcd_client import EtcdClient
from .servers.ports import free_port
from .waiting import async_wait_until

pytestmark = pytest.mark.backend("memory")

GONE = "the leader has gone"
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


@on_a_loop
async def test_a_websocket_is_relayed_and_told_to_come_back_when_its_leader_dies() -> None:
    heard: list[tuple[int, str | None]] = []

    async def opened(asked: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("p",))
        await socket.prepare(asked)
        while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
            assert asked.transport is not None
            if message.data == "die":
                asked.transport.abort()
            elif message.data == "end":
                # As the kernel does for a process that was killed.
                asked.transport.close()
            elif message.data == "leave":
                await socket.close(code=4001, message=b"asked to")
            else:
                await socket.send_str(f"{message.data} at {asked.path_qs}")
        if message.type is aiohttp.WSMsgType.CLOSE:
            heard.append((message.data, message.extra))
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
            ends = (("leave", 4001, "asked to"), ("die", 1012, GONE), ("end", 1012, GONE))
            for word, code, reason in ends:
                async with session.ws_connect(behind.url("/s?a=1"), protocols=["p"]) as client:
                    assert client.protocol == "p"
                    await client.send_str("words")
                    assert (await client.receive()).data == "words at /s?a=1"
                    await client.send_str(word)
                    closing = await client.receive()
                    assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, code)
                    assert closing.extra == reason
            client = await session.ws_connect(behind.url("/s"))
            await client.close(code=4002, message=b"enough")
            await async_wait_until(lambda: len(heard) == 1)
            client = await session.ws_connect(behind.url("/s"))
            client._response.close()
            await async_wait_until(lambda: len(heard) == 2)
            assert heard == [(4002, "enough"), (1001, "")]
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
