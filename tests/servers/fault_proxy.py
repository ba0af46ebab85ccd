"""A TCP relay that can be cut, slowed and reset, without root and without netem."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.servers.ports import LOOPBACK

_CHUNK = 65_536

# How TCP fares on such a line: its first try again comes after 200 ms, each later one twice that.
_LOSS, _SENT_AGAIN = 0.3, 0.2

_ACTS = 0.2
"""Seconds for a server to act on a request that came late."""

# Linger on, for 0 s: close() sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Mode(enum.Enum):
    """What the relay does to the bytes."""

    PASS = "pass"  # hand them on
    STALL = "stall"  # keep every connection, move nothing: a partition, as a client sees it
    UP = "up"  # stall only what goes from the client to the server
    DOWN = "down"  # stall only what comes back: the server acts, and the reply is lost
    RESET = "reset"  # close all with RST, and so every new connection
    DELAY = "delay"  # hand them on later
    LOSS = "loss"  # lose packets: TCP sends them again, ever later


class Fate(enum.Enum):
    """What becomes of one request that the relay was told to catch."""

    ALL_UNANSWERED = "all unanswered"  # it gets there, and then the relay goes into mode DOWN
    REPLY_LOST = "reply lost"  # it gets there, and its connection is reset instead of the reply
    REPLY_LATE = "reply late"  # its connection brings nothing back until the next change of mode
    REQUEST_LATE = "request late"  # it gets there at the next change of mode, whoever still waits


class FaultProxy:
    """Relays ``127.0.0.1:<port>`` to ``target`` on a thread of its own; passes at first.

    Bytes held back by a stall are not lost: they move when the mode lets them again.
    ``chance`` draws which packets are lost.
    """

    def __init__(
        self,
        target_port: int,
        target_host: str = LOOPBACK,
        chance: random.Random | None = None,
    ) -> None:
        self._target = (target_host, target_port)
        self._chance = chance or random.Random(0)
        self._wanted: tuple[re.Pattern[bytes], Fate] | None = None
        self._caught = False
        self._mode = Mode.PASS
        self._delay = 0.0
        self._changed = asyncio.Event()
        self._held: list[asyncio.Event] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._closed = False
        self.connections_accepted = 0

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )
        self._thread.start()
        start = asyncio.start_server(self._accept, LOOPBACK, 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    def set(self, mode: Mode | str, delay: float = 0.0) -> None:
        """Change the mode; it is in force when this returns. ``delay`` is in seconds."""
        self._call(self._set(Mode(mode), delay))

    @property
    def has_caught(self) -> bool:
        """Whether the request came that the last :meth:`catch` was about."""
        return self._caught

    def catch(self, request: bytes | re.Pattern[bytes], fate: Fate) -> None:
        """The next request in which this is found has this fate; in mode PASS only."""
        found = request if isinstance(request, re.Pattern) else re.compile(re.escape(request))
        self._call(self._catch(found, fate))

    async def _catch(self, request: re.Pattern[bytes], fate: Fate) -> None:
        self._wanted = request, fate
        self._caught = False

    def adopt(self, connection: socket.socket) -> None:
        """Relay this connection too, which somebody else accepted."""
        asyncio.run_coroutine_threadsafe(self._adopt(connection), self._loop)

    async def _adopt(self, connection: socket.socket) -> None:
        self._accept(*await asyncio.open_connection(sock=connection))

    def _call(self, doing: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    def close(self) -> None:
        """Drop every connection, stop listening, end the thread. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _set(self, mode: Mode, delay: float) -> None:
        self._mode = mode
        self._delay = delay
        self._wanted = None
        for held in self._held:
            held.set()
        self._held.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        if mode is Mode.RESET:
            for writer in list(self._writers):
                _reset(writer)

    async def _shut(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_accepted += 1
        self._writers.add(writer)
        server_writer: asyncio.StreamWriter | None = None
        try:
            await self._let_through(Mode.STALL)
            if self._mode is Mode.RESET:
                _reset(writer)
                return
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            self._writers.add(server_writer)
            fates = _Fates()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, Mode.UP, fates))
                pumps.create_task(self._pump(server_reader, writer, Mode.DOWN, fates))
        except OSError:
            writer.transport.abort()
        finally:
            for used in (writer, server_writer):
                if used is not None:
                    self._writers.discard(used)
                    used.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Mode, fates: _Fates
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._mode is Mode.DELAY:
                    await asyncio.sleep(self._delay)
                elif self._mode is Mode.LOSS:
                    await asyncio.sleep(self._time_lost())
                elif way is Mode.UP:
                    await self._look(data, fates)
                if way is Mode.DOWN and fates.reset:
                    _reset(writer)
                    return
                late = not fates.of(way).is_set()
                await self._let_through(Mode.STALL, way)
                await fates.of(way).wait()
                writer.write(data)
                await writer.drain()
                if late:
                    # Else the server may see that its sender has gone before it acts.
                    await asyncio.sleep(_ACTS)
            await self._let_through(Mode.STALL, way)
            await fates.of(way).wait()
        writer.close()

    async def _look(self, data: bytes, fates: _Fates) -> None:
        """Seal this connection's fate, if it is the request that is to be caught."""
        if self._wanted is None or not self._wanted[0].search(data):
            return
        _, fate = self._wanted
        self._wanted = None
        self._caught = True
        if fate is Fate.ALL_UNANSWERED:
            await self._set(Mode.DOWN, 0.0)
        elif fate is Fate.REPLY_LOST:
            fates.reset = True
        else:
            held = fates.down if fate is Fate.REPLY_LATE else fates.up
            held.clear()
            self._held.append(held)

    def _time_lost(self) -> float:
        tries = 0
        while self._chance.random() < _LOSS:
            tries += 1
        return _SENT_AGAIN * ((1 << tries) - 1)

    async def _let_through(self, *stalling: Mode) -> None:
        while self._mode in stalling:
            await self._changed.wait()


class _Fates:
    """What was decided about one connection alone; each way is open while its event is set."""

    def __init__(self) -> None:
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.up.set()
        self.down.set()
        self.reset = False

    def of(self, way: Mode) -> asyncio.Event:
        return self.up if way is Mode.UP else self.down


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
