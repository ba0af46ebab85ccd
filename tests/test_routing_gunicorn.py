"""The WSGI middleware under gunicorn, whose threads serve what real clients send, on etcd."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from .loops import on_a_loop
from .servers.etcd_client import EtcdClient
from .waiting import async_wait_until, wait_until
from .wsgi_service import GunicornNode

pytestmark = pytest.mark.backend("etcd")


@pytest.fixture
def key() -> str:
    return f"service/web/{uuid.uuid4().hex}"


@pytest.fixture
def pair(etcd: EtcdClient, key: str) -> Iterator[tuple[GunicornNode, GunicornNode]]:
    """Two of them, of which the first leads."""
    with GunicornNode(etcd.url, key) as first, GunicornNode(etcd.url, key) as second:
        first.lead()
        yield first, second


async def exchanged(node: GunicornNode, request: bytes) -> bytes:
    """All that is answered to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def test_whoever_is_asked_the_leader_gets_all_of_it_as_it_came(
    pair: tuple[GunicornNode, GunicornNode],
) -> None:
    @on_a_loop
    async def scenario() -> None:
        odd = b"caf\xe9 \xc3\xa9 \xff"
        for target, path in (("/a%2Fb?", "/a%2Fb?"), ("http://example.org/a?b", "/a?b")):
            host = "evil" if target.startswith("http") else "example.org"
            lines = (f"PUT {target} HTTP/1.1", f"Host: {host}", "Content-Length: 3")
            asked = "\r\n".join(lines).encode() + b"\r\nConnection: close\r\nX-Odd: " + odd
            answer = await exchanged(pair[1], asked + b"\r\n\r\nxyz")
            assert answer.startswith(b"HTTP/1.1 200")
            assert f"PUT {path} 3 ".encode() in answer
            head, _, _ = answer.partition(b"\r\n\r\n")
            assert {b"X-Odd: " + odd, b"X-Host: example.org"} <= set(head.split(b"\r\n"))

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b"x" * 50_000

        async with aiohttp.ClientSession() as session:
            for node in pair:
                async with session.post(node.url("/a"), data=chunks()) as response:
                    assert (await response.text()).startswith("POST /a 2500000 ")

    scenario()
    assert len(pair[0].own()["asked"]) == 4
    assert pair[1].own()["asked"] == []


def test_a_stream_arrives_piece_by_piece_and_ends_at_the_leader_when_its_client_goes(
    pair: tuple[GunicornNode, GunicornNode],
) -> None:
    first, second = pair

    @on_a_loop
    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(second.url("/stream")) as response:
                assert await response.content.readexactly(3) == b"one"
                await asyncio.to_thread(first.own, "release")
                assert await response.content.readexactly(4) == b"twox"

    scenario()
    wait_until(lambda: first.own()["closed"] == 1, what="the end of the stream at the leader")


def test_a_change_fails_no_request_and_repeats_none(
    pair: tuple[GunicornNode, GunicornNode],
) -> None:
    first, second = pair
    second.own("stand")
    methods = ("GET", "PUT", "POST", "DELETE", "PATCH")
    sent: list[str] = []

    @on_a_loop
    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:

            async def ask(path: str, method: str, node: GunicornNode) -> tuple[int, int]:
                sent.append(uuid.uuid4().hex)
                async with session.request(method, node.url(f"{path}?{sent[-1]}")) as response:
                    return response.status, int((await response.text()).split()[3])

            slow = [asyncio.create_task(ask("/wait", "POST", node)) for node in pair]
            await async_wait_until(lambda: len(sent) == 2)
            await asyncio.to_thread(wait_until, lambda: len(first.own()["asked"]) == 2)
            await asyncio.to_thread(first.own, "resign")
            await asyncio.to_thread(wait_until, lambda: not first.own()["leads"])
            later = [
                asyncio.create_task(ask("/", method, node)) for method in methods for node in pair
            ]
            await asyncio.to_thread(
                wait_until, lambda: sum(node.own()["waiting"] for node in pair) == len(later)
            )
            await asyncio.to_thread(first.own, "release")
            old = [await each for each in slow]
            new = [await each for each in later]
        assert {status for status, _ in old + new} == {200}
        assert len({token for _, token in old}) == 1
        assert max(token for _, token in old) < min(token for _, token in new)

    scenario()
    assert Counter(first.own()["asked"] + second.own()["asked"]) == Counter(sent)


def test_without_a_leader_it_answers_503_and_by_redirect_307(etcd: EtcdClient, key: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.post(node.url("/a?b"), data=b"x") as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "7")
            await asyncio.to_thread(first.lead)
            options: dict[str, Any] = {"data": b"x" * 200_000, "allow_redirects": False}
            async with session.put(node.url("/a?b"), **options) as response:
                assert response.status == 307
                assert response.headers["Location"] == first.url("/a?b")
            async with session.put(node.url("/a?b"), data=b"xyz") as response:
                assert (await response.text()).startswith("PUT /a?b 3 ")

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(GunicornNode(etcd.url, key))
        node = stack.enter_context(GunicornNode(etcd.url, key, "redirect", 0.3))
        scenario()
