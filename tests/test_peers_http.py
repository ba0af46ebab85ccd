"""The peers' HTTP server costs bounded memory and time, whoever asks; its client ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from leadership.backends._peers_http import (
    DROPPED,
    Answer,
    Asked,
    Client,
    Handler,
    Limits,
    Server,
    is_loopback,
    split_address,
)
from leadership.clock import SystemClock
from leadership.errors import ConfigurationError, StoreUnavailable

from .loops import on_a_loop
from .servers.ports import free_port
from .waiting import async_wait_until

LIMITS = Limits(body=1000, connections=4, slowest=0.5)


async def echo(asked: Asked) -> Answer:
    return Answer(200, await asked.read(), {"X-Path": asked.path, "X-Query": asked.query})


@contextlib.asynccontextmanager
async def serving(
    handler: Handler = echo, limits: Limits = LIMITS, told: list[str] | None = None
) -> AsyncIterator[tuple[Server, str]]:
    heard = [] if told is None else told
    server = Server(handler, SystemClock(), limits, None, lambda of, why: heard.append(why))
    address = f"127.0.0.1:{free_port()}"
    await server.start(address)
    try:
        yield server, address
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def calling(limits: Limits = LIMITS) -> AsyncIterator[Client]:
    client = Client(limits)
    try:
        yield client
    finally:
        await client.close()


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*split_address(address))


async def is_closed_by_the_server(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            await reader.read()
    return True


@on_a_loop
async def test_a_request_arrives_whole_and_its_answer_comes_back() -> None:
    async with serving() as (_, address), calling() as client:
        answer = await client.call("POST", address, "/a/b?c=d", b"hello", timeout=5)
        assert (answer.status, answer.body) == (200, b"hello")
        assert (answer.headers["X-Path"], answer.headers["X-Query"]) == ("/a/b", "c=d")


@on_a_loop
async def test_connections_are_kept() -> None:
    async with serving() as (server, address), calling() as client:
        for _ in range(10):
            await client.call("POST", address, "/", b"x", timeout=5)
        assert server.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
@on_a_loop
async def test_a_body_that_is_too_long_is_refused(chunked: bool) -> None:
    async with serving() as (_, address):
        reader, writer = await raw(address)
        head = b"POST / HTTP/1.1\r\nHost: x\r\n"
        if chunked:
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            writer.write((b"400\r\n" + bytes(1024) + b"\r\n") * 2)
        else:
            writer.write(head + b"Content-Length: 1001\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"413" in await reader.readline()
        assert await is_closed_by_the_server(reader)
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n"],
    ids=["no http", "a long header"],
)
@on_a_loop
async def test_garbage_is_refused(garbage: bytes) -> None:
    async with serving() as (server, address):
        reader, writer = await raw(address)
        writer.write(garbage)
        assert await is_closed_by_the_server(reader)
        writer.close()
        await async_wait_until(lambda: server.connections == 0)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST / HTTP/1.1\r\nX-A:",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab",
    ],
    ids=["nothing", "half a head", "half a body"],
)
@on_a_loop
async def test_who_is_too_slow_is_dropped(beginning: bytes) -> None:
    async with serving() as (_, address):
        reader, writer = await raw(address)
        writer.write(beginning)
        assert await is_closed_by_the_server(reader)
        writer.close()


@on_a_loop
async def test_a_long_poll_is_not_too_slow() -> None:
    async def late(asked: Asked) -> Answer:
        await SystemClock().sleep(LIMITS.slowest * 2)
        return Answer(200, b"late")

    async with serving(late) as (_, address), calling() as client:
        assert (await client.call("GET", address, "/", timeout=10)).body == b"late"


@on_a_loop
async def test_strangers_do_not_push_members_out() -> None:
    async def prove(asked: Asked) -> Answer:
        asked.is_member()
        return Answer(200)

    limits = Limits(connections=4, slowest=60)
    async with serving(prove, limits) as (server, address), calling() as client:
        await client.call("POST", address, "/", b"x", timeout=5)
        strangers = [await raw(address) for _ in range(20)]
        await async_wait_until(lambda: server.connections <= 4)
        await client.call("POST", address, "/", b"x", timeout=5)
        open_still = [reader for reader, _ in strangers if not reader.at_eof()]
        assert len(open_still) <= 20
        # The member's first connection has lived through all that.
        assert any(connection.member for connection in server._connections)
        for _, writer in strangers:
            writer.close()


@on_a_loop
async def test_a_request_may_be_dropped_without_an_answer() -> None:
    async def drop(asked: Asked) -> Answer:
        return DROPPED

    async with serving(drop) as (_, address), calling() as client:
        with pytest.raises(StoreUnavailable):
            await client.call("POST", address, "/", b"x", timeout=5)


@on_a_loop
async def test_the_handler_sees_that_the_client_has_gone() -> None:
    arrived: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()

    async def wait(asked: Asked) -> Answer:
        arrived.set_result(asked)
        await go_on.wait()
        return Answer(200)

    async with serving(wait) as (_, address):
        _, writer = await raw(address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        asked = await asyncio.wait_for(arrived, 10)
        assert not asked.has_gone()
        writer.transport.abort()
        await async_wait_until(asked.has_gone)
        go_on.set()


@on_a_loop
async def test_a_call_ends_in_time() -> None:
    async def never(asked: Asked) -> Answer:
        await asyncio.Event().wait()
        return Answer(200)

    async with serving(never) as (_, address), calling() as client:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await client.call("POST", address, "/", timeout=0.1)
    async with calling() as client:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await client.call("POST", address, "/", timeout=5)


@on_a_loop
async def test_an_answer_that_is_too_long_is_refused() -> None:
    async def long(asked: Asked) -> Answer:
        return Answer(200, bytes(2000))

    async with serving(long) as (_, address), calling() as client:
        with pytest.raises(StoreUnavailable, match="more than it may"):
            await client.call("POST", address, "/", timeout=5)


@on_a_loop
async def test_an_address_in_use_is_told() -> None:
    async with serving() as (_, address):
        with pytest.raises(StoreUnavailable, match="cannot listen"):
            await Server(echo, SystemClock(), LIMITS).start(address)


@pytest.mark.parametrize("wrong", ["", "a", ":1", "a:", "a:0", "a:65536", "::1:80", "a:b", "a:-1"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="write host:port"):
        split_address(wrong)


def test_addresses_are_taken_apart() -> None:
    assert split_address("h:1") == ("h", 1)
    assert split_address("[::1]:80") == ("::1", 80)
    assert [is_loopback(h) for h in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "h")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("turns", range(6))
@on_a_loop
async def test_a_connection_that_arrives_while_the_server_closes_is_closed(turns: int) -> None:
    async with serving() as (server, address):
        loop = asyncio.get_running_loop()
        with socket.create_connection(split_address(address)) as client:
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.close()
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(client, 1) == b""
        assert server.connections == 0


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", "it is no HTTP request"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 3000 + b"\r\n\r\n", "its head is too long"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", "its body is too long"),
        (b"POST / HTTP/1.1\r\nX-A:", "it sent no whole request in time"),
    ],
    ids=["garbage", "head", "body", "slow"],
)
@on_a_loop
async def test_whatever_is_refused_is_told(sent: bytes, reason: str) -> None:
    told: list[str] = []
    async with serving(told=told) as (_, address):
        reader, writer = await raw(address)
        writer.write(sent)
        assert await is_closed_by_the_server(reader)
        writer.close()
    assert told == [reason]


@on_a_loop
async def test_all_bodies_together_are_bounded() -> None:
    limits = Limits(body=1000, bodies=1500, slowest=5)
    told: list[str] = []
    async with serving(limits=limits, told=told) as (_, address):
        several = [await raw(address) for _ in range(3)]
        for _, writer in several:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(900))
        await async_wait_until(lambda: told, what="one too many")
        for _, writer in several:
            writer.transport.abort()
    assert told[0] == "its body is too long"
