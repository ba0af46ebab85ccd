"""kazoo's sockets and queues, where it lets us make them.

kazoo keeps the negotiated session timeout to itself, waits for two thirds of
it before it leaves a silent server, may leave a TLS record unread, and hands
each answer through two more threads. Its handler is the place that it offers
for all of these.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any

from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.handlers.utils import AsyncResult

from ..clock import Clock

# The server's first answer: its length, the protocol's version, the timeout in milliseconds.
_GREETING = struct.Struct("!iii")

# Bytes that are read from a socket at once.
_AT_ONCE = 65_536

_logger = logging.getLogger("leadership.zookeeper")


class _AtOnce(queue.Queue[Any]):
    """Runs what is put into it, in the thread that puts it: all ours does is to post.

    What cannot be run tells a worker thread of kazoo's to end.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if not callable(item):
            super().put(item, block, timeout)
            return
        try:
            item()
        except Exception:
            _logger.exception("an answer of ZooKeeper could not be handed over")


class _Condition:
    """A condition that is made in full for who waits on it: kazoo has one for each request."""

    __slots__ = ("_full", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._full: threading.Condition | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *outcome: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """With the lock held, as `notify_all`."""
        if self._full is None:
            self._full = threading.Condition(self._lock)
        return self._full.wait(timeout)

    def notify_all(self) -> None:
        if self._full is not None:
            self._full.notify_all()


class Wire:
    """One socket; kazoo's thread reads it, and may be told by any thread to give it up."""

    def __init__(self, plain: socket.socket, handler: Handler, opened_at: float) -> None:
        self._socket = plain
        self._handler = handler
        self._greeting = b""
        # What was read ahead, and how far it was asked for.
        self._ahead = b""
        self._taken = 0
        self.opened_at = opened_at

    @property
    def granted(self) -> float:
        """The session timeout that the server granted, in seconds; 0 before it has."""
        if len(self._greeting) < _GREETING.size:
            return 0.0
        return float(_GREETING.unpack(self._greeting)[2]) / 1000

    def recv(self, size: int) -> bytes:
        # kazoo asks for each answer's length and then for the answer, and each time the
        # thread has to win the interpreter back: so all that is there is read at once.
        if self._taken == len(self._ahead):
            self._ahead, self._taken = self._socket.recv(_AT_ONCE), 0
            if self._ahead:
                self._handler.heard()
        data = self._ahead[self._taken : self._taken + size]
        self._taken += len(data)
        missing = _GREETING.size - len(self._greeting)
        if missing > 0:
            self._greeting += data[:missing]
        return data

    def pending(self) -> int:
        """How many bytes have been read already, which `select` does not see."""
        of_tls = self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0
        return len(self._ahead) - self._taken + of_tls

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

    queue_impl = _AtOnce

    def __init__(self, clock: Clock, tls: ssl.SSLContext | None, connect_timeout: float) -> None:
        super().__init__()
        self._clock = clock
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._refusing = False
        self.wire: Wire | None = None
        self.heard_at = clock.now()
        """When any server last sent anything."""

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run kazoo's loop in a thread, whose failure is the end of the session and no more."""

        def run() -> None:
            # kazoo has logged it, and says before its end that the session is lost.
            with contextlib.suppress(Exception):
                func(*args, **kwargs)

        return super().spawn(run)

    def async_result(self) -> AsyncResult:
        return AsyncResult(self, _Condition, self.timeout_exception)

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
        self.wire = Wire(plain, self, self._clock.now())
        return self.wire

    def heard(self) -> None:
        self.heard_at = self._clock.now()

    def select(
        self, readers: list[Any], writers: list[Any], failing: list[Any], timeout: float | None
    ) -> Any:
        ready = [each for each in readers if getattr(each, "pending", int)() > 0]
        if ready:
            return ready, [], []
        if not hasattr(select, "poll"):
            return super().select(readers, writers, failing, timeout)
        # kazoo makes and unmakes a selector a call, which costs more than the request.
        poll = select.poll()
        for each in readers:
            poll.register(each, select.POLLIN)
        for each in writers:
            poll.register(each, select.POLLOUT)
        happened = {number for number, _ in poll.poll(None if timeout is None else 1000 * timeout)}

        def among(sockets: list[Any]) -> list[Any]:
            return [each for each in sockets if each.fileno() in happened]

        return among(readers), among(writers), []

    def give_up(self) -> None:
        """Break the present connection, if there is one: kazoo goes on to the next server."""
        wire = self.wire
        if wire is not None:
            wire.give_up()

    def refuse(self) -> None:
        """Break the present connection, and make no other."""
        self._refusing = True
        self.give_up()
