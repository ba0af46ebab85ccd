"""Header fields as they came: they may be any bytes, and aiohttp writes text in UTF-8.

So a field's bytes are given to it as the characters of the same numbers, and
what it has made of them is turned back on its way to the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol, cast

import aiohttp

from .route_headers import Fields


class _Connected(Protocol):
    transport: asyncio.Transport | None


def texts(fields: Fields) -> list[tuple[str, str]]:
    """Fields as aiohttp takes them; their head has to be written with `write_verbatim`."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def write_verbatim(protocol: _Connected | None, given: Iterable[str]) -> None:
    """Have the head that is written next hold the bytes that the `given` values stand for."""
    if protocol is None or protocol.transport is None or all(value.isascii() for value in given):
        return
    protocol.transport = cast(asyncio.Transport, _HeadFirst(protocol, protocol.transport))


class VerbatimRequest(aiohttp.ClientRequest):
    """A request with the fields of `texts`."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        write_verbatim(conn.protocol, self.headers.values())
        return await super().send(conn)


class _HeadFirst:
    """Stands for a transport until the head of one message has been written."""

    def __init__(self, protocol: _Connected, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._written = False

    def write(self, data: bytes) -> None:
        self._transport.write(self._turned_back(data))

    def writelines(self, chunks: Iterable[bytes]) -> None:
        self.write(b"".join(chunks))

    def _turned_back(self, data: bytes) -> bytes:
        if self._written:
            return data
        self._written = True
        if self._protocol.transport is cast(asyncio.Transport, self):
            self._protocol.transport = self._transport
        head, end, rest = bytes(data).partition(b"\r\n\r\n")
        return head.decode().encode("latin-1") + end + rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
