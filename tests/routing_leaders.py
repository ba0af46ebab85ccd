"""A leader that is only a socket: it answers, breaks off or hangs, byte for byte as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from leadership.aio import Candidate, Follower, Store, new_store
from leadership.events import Event
from leadership.proxy import Proxy
from leadership.router import Policy

from .servers.ports import free_port

KEY = "service/web"

Behaviour = Callable[["Asked"], Awaitable[None]]


class Asked:
    """One request that arrived, and the connection that it came by."""

    def __init__(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.line, *fields = head.decode("latin-1").strip().split("\r\n")
        self.fields = [(n.lower(), v.strip()) for n, _, v in (f.partition(":") for f in fields)]
        self.reader = reader
        self.writer = writer

    @property
    def method(self) -> str:
        return self.line.split()[0]

    def field(self, name: str) -> str | None:
        values = [value for each, value in self.fields if each == name]
        assert len(values) <= 1, values
        return values[0] if values else None

    async def body(self) -> bytes:
        length = self.field("content-length")
        if length is not None:
            return await self.reader.readexactly(int(length))
        data = b""
        while self.field("transfer-encoding"):
            size = int(await self.reader.readline(), 16)
            data += (await self.reader.readexactly(size + 2))[:-2]
            if not size:
                break
        return data

    async def answer(self, text: bytes, *fields: str, status: str = "200 OK") -> None:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(text)}", *fields]
        self.writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + text)
        await self.writer.drain()

    def break_off(self) -> None:
        self.writer.transport.abort()


class SocketLeader:
    """Listens at an address of its own, for an election's value."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.address = f"127.0.0.1:{free_port()}"
        self.asked: list[Asked] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked = Asked(head, reader, writer)
                self.asked.append(asked)
                await self.behaviour(asked)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def listen(self) -> None:
        host, _, port = self.address.partition(":")
        self._server = await asyncio.start_server(self._serve, host, int(port))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class Behind:
    """A proxy on the memory backend, and who leads behind it."""

    def __init__(self, store: Store, address: str, events: list[Event]) -> None:
        self.store = store
        self.address = address
        self.events = events
        self._candidate: Candidate | None = None

    def url(self, path: str = "/") -> str:
        return f"http://{self.address}{path}"

    async def lead(self, value: str) -> None:
        """From now on this value leads, and no other."""
        former, self._candidate = (
            self._candidate,
            Candidate(self.store, KEY, "a", value=value, ttl=30),
        )
        if former is not None:
            await former.stop()
        await self._candidate.campaign(10)

    async def nobody_leads(self) -> None:
        if self._candidate is not None:
            await self._candidate.stop()


@contextlib.asynccontextmanager
async def proxied(policy: Policy | None = None, leader: str | None = None) -> AsyncIterator[Behind]:
    """A proxy, before whoever leads."""
    events: list[Event] = []
    address = f"127.0.0.1:{free_port()}"
    async with new_store(f"memory://{uuid.uuid4()}", hooks=[events.append]) as store:
        behind = Behind(store, address, events)
        if leader is not None:
            await behind.lead(leader)
        async with Follower(store, KEY) as follower:
            proxy = Proxy(follower, address, policy)
            await proxy.start()
            try:
                yield behind
            finally:
                await proxy.close(1)


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


async def accept(asked: Asked) -> None:
    """Take the whole request, and say what it was."""
    body = await asked.body()
    await asked.answer(f"{asked.line} {len(body)}".encode())


async def break_off(asked: Asked) -> None:
    """Take the whole request, and end the connection."""
    await asked.body()
    asked.break_off()


async def refuse(asked: Asked) -> None:
    """Say that somebody else leads, before the body is read."""
    await asked.answer(b"", "Connection: close", status="421 Misdirected Request")
    asked.writer.close()
