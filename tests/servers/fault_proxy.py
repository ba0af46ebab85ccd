"""A TCP relay that can be cut, slowed and reset, without root and without netem."""

import asyncio
import contextlib
import enum
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from tests.servers.ports import LOOPBACK

_CHUNK = 65_536

# How TCP fares on such a line: its first try again comes after 200 ms, each later one twice that.
_LOSS, _SENT_AGAIN = 0.3, 0.2

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
        self._unanswered: bytes | None = None
        self._mode = Mode.PASS
        self._delay = 0.0
        self._changed = asyncio.Event()
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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    def set(self, mode: Mode | str, delay: float = 0.0) -> None:
        """Change the mode; it is in force when this returns. ``delay`` is in seconds."""
        change = self._set(Mode(mode), delay)
        asyncio.run_coroutine_threadsafe(change, self._loop).result()

    def lose_reply_to(self, request: bytes) -> None:
        """Once a client sends these bytes, hand them on, and go into mode DOWN."""
        self._loop.call_soon_threadsafe(self._lose_reply_to, request)

    def _lose_reply_to(self, request: bytes | None) -> None:
        self._unanswered = request

    def close(self) -> None:
        """Drop every connection, stop listening, end the thread. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _set(self, mode: Mode, delay: float) -> None:
        self._mode = mode
        self._delay = delay
        self._unanswered = None
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
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, Mode.UP))
                pumps.create_task(self._pump(server_reader, writer, Mode.DOWN))
        except OSError:
            writer.transport.abort()
        finally:
            for used in (writer, server_writer):
                if used is not None:
                    self._writers.discard(used)
                    used.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Mode
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._mode is Mode.DELAY:
                    await asyncio.sleep(self._delay)
                elif self._mode is Mode.LOSS:
                    await asyncio.sleep(self._time_lost())
                elif way is Mode.UP and self._unanswered and self._unanswered in data:
                    await self._set(Mode.DOWN, 0.0)
                await self._let_through(Mode.STALL, way)
                writer.write(data)
                await writer.drain()
            await self._let_through(Mode.STALL, way)
        writer.close()

    def _time_lost(self) -> float:
        tries = 0
        while self._chance.random() < _LOSS:
            tries += 1
        return _SENT_AGAIN * ((1 << tries) - 1)

    async def _let_through(self, *stalling: Mode) -> None:
        while self._mode in stalling:
            await self._changed.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
