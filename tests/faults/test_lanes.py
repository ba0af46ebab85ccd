"""The lanes between members: who is cut from whom, and nobody else."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from tests.servers.fault_proxy import Mode
from tests.servers.ports import LOOPBACK

from .lanes import Lanes, MemberLine

SIZE = 3


class Members:
    """Three that listen, and lanes between them."""

    def __init__(self) -> None:
        self.listeners = [socket.create_server((LOOPBACK, 0)) for _ in range(SIZE)]
        listening = [f"{LOOPBACK}:{each.getsockname()[1]}" for each in self.listeners]
        self.lanes = Lanes(listening, random.Random(1))
        self.lanes.start()
        self.lines = [MemberLine(self.lanes, number, SIZE) for number in range(SIZE)]
        self.connections: list[socket.socket] = []

    def close(self) -> None:
        self.lanes.close()
        for each in (*self.connections, *self.listeners):
            each.close()

    def ask(self, sender: int | None, receiver: int) -> socket.socket:
        """A request, its head in two parts."""
        host, _, port = self.lanes.addresses[receiver].rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout=10)
        self.connections.append(connection)
        connection.sendall(b"POST /peers HTTP/1.1\r\nHost: x\r\n")
        if sender is not None:
            connection.sendall(f"leadership-from: {self.lanes.addresses[sender]}\r\n".encode())
        connection.sendall(b"\r\n")
        return connection

    def arrives(self, receiver: int) -> socket.socket:
        self.listeners[receiver].settimeout(10)
        connection, _ = self.listeners[receiver].accept()
        self.connections.append(connection)
        connection.settimeout(10)
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += connection.recv(1000)
        assert asked.startswith(b"POST /peers")
        return connection

    def hears_nothing(self, receiver: int) -> bool:
        """For a while: long enough for a request that nobody holds back."""
        self.listeners[receiver].settimeout(0.1)
        try:
            connection, _ = self.listeners[receiver].accept()
        except TimeoutError:
            return True
        self.connections.append(connection)
        return silent(connection)

    def answers(self, sender: int | None, receiver: int) -> bool:
        """Whether a request gets there, and its answer back."""
        asking = self.ask(sender, receiver)
        self.arrives(receiver).sendall(b"yes")
        return asking.recv(10) == b"yes"


@pytest.fixture
def members() -> Iterator[Members]:
    made = Members()
    yield made
    made.close()


def silent(connection: socket.socket) -> bool:
    """Nothing comes for a while: long enough for bytes that nobody holds back."""
    connection.settimeout(0.1)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True


def test_everybody_hears_everybody_and_strangers_are_let_in(members: Members) -> None:
    pairs = [(sender, receiver) for sender in (None, 0, 1, 2) for receiver in range(SIZE)]
    assert all(members.answers(*pair) for pair in pairs)


def test_two_members_are_cut_from_each_other_and_hear_the_third(members: Members) -> None:
    members.lines[0].cut_from(1)
    for sender, receiver in ((0, 2), (2, 0), (1, 2), (2, 1), (None, 1)):
        assert members.answers(sender, receiver)
    asking = members.ask(0, 1)
    members.ask(1, 0)
    assert members.hears_nothing(1)
    assert members.hears_nothing(0)
    members.lines[0].set(Mode.PASS)
    members.arrives(1).sendall(b"yes")
    assert asking.recv(10) == b"yes"


def test_what_a_member_sends_is_lost_be_it_a_request_or_an_answer(members: Members) -> None:
    members.lines[0].set(Mode.UP)
    members.ask(0, 1)
    assert members.hears_nothing(1)
    asked = members.ask(1, 0)
    # It hears, and its answer does not come back.
    members.arrives(0).sendall(b"yes")
    assert silent(asked)
    assert members.answers(1, 2)


def test_what_is_sent_to_a_member_is_lost_be_it_a_request_or_an_answer(members: Members) -> None:
    members.lines[0].set(Mode.DOWN)
    sent = members.ask(0, 1)
    members.arrives(1).sendall(b"yes")
    assert silent(sent)
    members.ask(1, 0)
    assert members.hears_nothing(0)
    assert members.answers(1, 2)


def test_a_member_of_another_address_is_the_same_for_its_lines(members: Members) -> None:
    former = members.lanes.addresses[0]
    members.lanes.addresses[0] = members.lanes.renew(0)
    assert members.lanes.addresses[0] != former
    assert members.answers(1, 0)
    members.lines[0].cut_from(1)
    members.ask(0, 1)
    assert members.hears_nothing(1)
    assert members.answers(0, 2)
    host, _, port = former.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)
