"""A body that several attempts read: nothing is lost, and what is kept is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from leadership.route_body import ClientGoneError, KeptBody

from .loops import on_a_loop, settle


class Source:
    """Gives what a test puts into it; None ends it."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self.given.get()) is not None:
            if chunk == b"gone":
                raise ClientGoneError
            yield chunk

    def give(self, *chunks: bytes | None) -> None:
        for chunk in chunks:
            self.given.put_nowait(chunk)


async def whole(body: KeptBody) -> bytes:
    return b"".join([chunk async for chunk in body.chunks()])


@on_a_loop
async def test_a_kept_body_is_read_again_from_its_beginning() -> None:
    source = Source()
    body = KeptBody(source.chunks(), 10)
    source.give(b"abc", b"", b"def", None)
    assert await whole(body) == b"abcdef"
    assert body.repeatable
    assert await whole(body) == b"abcdef"


@on_a_loop
async def test_an_attempt_that_is_given_up_takes_nothing_with_it() -> None:
    source = Source()
    body = KeptBody(source.chunks(), 3)
    for position, chunk in enumerate([b"abc", b"defg", b"hijkl"]):
        reading = asyncio.ensure_future(body.chunk(position))
        await settle()
        reading.cancel()
        source.give(chunk)
        await settle()
        assert await body.chunk(position) == chunk
    source.give(None)
    assert await body.chunk(3) is None


@on_a_loop
async def test_what_is_longer_than_what_is_kept_is_read_once() -> None:
    source = Source()
    body = KeptBody(source.chunks(), 5)
    source.give(b"abc", b"def", b"g", None)
    assert await body.chunk(0) == b"abc"
    assert body.repeatable
    assert await body.chunk(1) == b"def"
    assert not body.repeatable
    assert body._kept == []
    assert await body.chunk(2) == b"g"


@on_a_loop
async def test_a_first_chunk_of_any_length_may_be_sent_when_there_is_a_leader() -> None:
    source = Source()
    body = KeptBody(source.chunks(), 5)
    source.give(b"x" * 100, None)
    await body.begin()
    assert body.repeatable
    assert await whole(body) == b"x" * 100


@on_a_loop
async def test_a_client_that_goes_is_told_to_every_reader() -> None:
    source = Source()
    body = KeptBody(source.chunks(), 5)
    source.give(b"ab", b"gone")
    await body.begin()
    for _ in range(2):
        with pytest.raises(ClientGoneError):
            await whole(body)
    assert body.client_gone
