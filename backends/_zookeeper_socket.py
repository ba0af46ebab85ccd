"""kazoo's sockets, where it lets us make them: what it does not tell is seen here.

kazoo keeps the negotiated session timeout to itself, waits for two thirds of
it before it leaves a silent server, and may leave a TLS record unread. Its
handler is the place that it offers for all three.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import Any

from kazoo.handlers.threading import SequentialThreadingHandler

from ..clock import Clock

# The server's first answer: its length, the protocol's version, the timeout in milliseconds.
_GREETING = struct.Struct("!iii")


class Wire:
    """One socket; kazoo's thread reads it, and may be told by any thread to give it up."""

    def __init__(self, plain: socket.socket, clock: Clock) -> None:
        self._socket = plain
        self._clock = clock
        self._greeting = b""
        self.opened_at = clock.now()
        self.heard_at = self.opened_at

    @property
    def granted(self) -> float:
        """The session timeout that the server granted, in seconds; 0 before it has."""
        if len(self._greeting) < _GREETING.size:
            return 0.0
        return float(_GREETING.unpack(self._greeting)[2]) / 1000

    def recv(self, size: int) -> bytes:
        data = self._socket.recv(size)
        self.heard_at = self._clock.now()
        missing = _GREETING.size - len(self._greeting)
        if missing > 0:
            self._greeting += data[:missing]
        return data

    def give_up(self) -> None:
        """Have kazoo find the connection broken."""
        with contextlib.suppress(OSError):
            # Of a TLS socket too it is the connection that is shut, without a farewell.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's own threads, with sockets of ours.

    Args:
        connect_timeout: seconds that one server gets to accept a connection.
    """

    def __init__(self, clock: Clock, tls: ssl.SSLContext | None, connect_timeout: float) -> None:
        super().__init__()
        self._clock = clock
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._refusing = False
        self.wire: Wire | None = None

    def create_connection(
        self,
        address: tuple[str, int],
        hostname: str | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Wire:
        if self._refusing:
            raise OSError("this connection is being closed")
        limit = self._connect_timeout if timeout is None else min(timeout, self._connect_timeout)
        plain = socket.create_connection(address, limit)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                plain = self._tls.wrap_socket(plain, server_hostname=hostname)
        except BaseException:
            plain.close()
            raise
        self.wire = Wire(plain, self._clock)
        return self.wire

    def select(
        self, readers: list[Any], writers: list[Any], failing: list[Any], timeout: float | None
    ) -> Any:
        # What a TLS socket has read already, the system's select does not see.
        ready = [each for each in readers if getattr(each, "pending", int)() > 0]
        if ready:
            return ready, [], []
        return super().select(readers, writers, failing, timeout)

    def give_up(self) -> None:
        """Break the present connection, if there is one: kazoo goes on to the next server."""
        wire = self.wire
        if wire is not None:
            wire.give_up()

    def refuse(self) -> None:
        """Break the present connection, and make no other."""
        self._refusing = True
        self.give_up()
