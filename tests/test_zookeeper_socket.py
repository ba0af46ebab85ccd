"""What kazoo reads from: all that has come is read at once, and nothing of it waits unseen."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kazoo.handlers.threading import KazooTimeoutError

from leadership.backends._zookeeper_socket import Handler, Wire
from leadership.clock import ManualClock


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


def test_it_gives_what_came_in_the_pieces_that_are_asked_for(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    wire = Wire(ours, Handler(ManualClock(), None, 1.0), 0.0)
    theirs.sendall(b"0123456789")
    assert [wire.recv(4), wire.recv(4), wire.recv(4)] == [b"0123", b"4567", b"89"]
    theirs.sendall(b"ab")
    theirs.shutdown(socket.SHUT_WR)
    assert wire.recv(4) == b"ab"
    assert wire.recv(4) == b"", "the end is not told"


def test_what_was_read_ahead_is_waited_for_no_more(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    handler = Handler(ManualClock(), None, 1.0)
    wire = Wire(ours, handler, 0.0)
    theirs.sendall(b"0123456789")
    wire.recv(4)
    assert wire.pending() == 6
    assert handler.select([wire], [], [], 0)[0] == [wire]
    wire.recv(6)
    assert wire.pending() == 0
    assert handler.select([wire], [], [], 0)[0] == []


def test_a_server_is_heard_when_its_bytes_come_and_not_when_kazoo_takes_them(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    clock = ManualClock()
    handler = Handler(clock, None, 1.0)
    wire = Wire(ours, handler, 0.0)
    theirs.sendall(b"0123456789")
    came = clock.now()
    wire.recv(4)
    clock.advance(5)
    wire.recv(6)
    assert handler.heard_at == came


def test_who_waits_for_an_answer_of_kazoos_is_woken_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Handler(ManualClock(), None, 1.0).async_result()
    waits = threading.Event()
    wait = threading.Condition.wait

    def tell_and_wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        waits.set()
        return wait(condition, timeout)

    with ThreadPoolExecutor() as pool:
        monkeypatch.setattr(threading.Condition, "wait", tell_and_wait)
        told = pool.submit(answer.get, timeout=20)
        # It has the lock until it sleeps, so that this comes after that.
        assert waits.wait(20)
        answer.set("said")
        assert told.result(20) == "said"
    with pytest.raises(KazooTimeoutError):
        Handler(ManualClock(), None, 1.0).async_result().get(timeout=0.01)
