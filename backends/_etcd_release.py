"""Ends an etcd lease: what the guardian does for a dead leader.

Runs in the guardian, and imports nothing but what that has, so the few words of
gRPC that it takes are spoken here. (The server's gateway for HTTP would not do: it may
be switched off, and where clients need certificates it often cannot reach its own server.)
Nobody else uses the lease of a process that is dead, so it may be ended however late.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from leadership._guardian_wire import connect, exactly

_TIMEOUT = 1.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The frames' types and flags, of which these are all that matter here.
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _AWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACKNOWLEDGED, _END_HEADERS, _PADDED = 1, 1, 4, 8
_LONGEST = 1 << 16
_MESSAGE = struct.Struct("!BI")


def release(arguments: Mapping[str, Any]) -> None:
    """Revoke the lease at the first endpoint that does it.

    Args:
        arguments: `endpoints`, `lease`, `tls` (see `_guardian_wire.connect`), `token` (or "")
            and `login` (name and password, or None where nobody has to).

    Raises:
        OSError: none of them did.
    """
    failure: Exception = OSError("no endpoints")
    for endpoint in arguments["endpoints"]:
        try:
            _revoke(endpoint, arguments)
            return
        except OSError as error:
            failure = error
    raise failure


def _revoke(endpoint: str, arguments: Mapping[str, Any]) -> None:
    secured, login = arguments["tls"], arguments["login"]
    lease = _number(1, arguments["lease"])
    token = arguments["token"]
    # The token that the leader had may be too old.
    for attempt in range(2):
        if login is not None and (attempt or not token):
            token = _token(endpoint, secured, login)
        if _ask(endpoint, secured, "Lease/LeaseRevoke", lease, token) is not None:
            return
        left = _ask(endpoint, secured, "Lease/LeaseTimeToLive", lease, token)
        if left is not None and dict(_fields(left)).get(3, 0) >> 63:
            # Minus one: it is gone already.
            return
        if login is None:
            break
    raise OSError(f"etcd at {endpoint} does not revoke the lease")


def _token(endpoint: str, secured: Any, login: tuple[str, str]) -> str:
    name, password = login
    request = _text(1, name) + _text(2, password)
    answer = _ask(endpoint, secured, "Auth/Authenticate", request, "")
    # Told to log in where nobody has to.
    return "" if answer is None else bytes(dict(_fields(answer)).get(2, b"")).decode()


# --- gRPC: one request, one answer ---


def _ask(endpoint: str, secured: Any, method: str, request: bytes, token: str) -> bytes | None:
    """The answer, or None where the server refuses.

    A refusal comes without a message, so its words, which are packed, need not be read.
    """
    head = {
        ":method": "POST",
        ":scheme": "http" if secured is None else "https",
        ":path": f"/etcdserverpb.{method}",
        ":authority": endpoint,
        "content-type": "application/grpc",
        "te": "trailers",
        **({"token": token} if token else {}),
    }
    fields = b"".join(b"\0" + _packed(name) + _packed(value) for name, value in head.items())
    body = _MESSAGE.pack(0, len(request)) + request
    with connect(endpoint, secured, _TIMEOUT, "h2") as connection:
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, fields)
            + _frame(_DATA, _END_STREAM, 1, body)
        )
        received = b""
        while True:
            kind, flags, content = _read_frame(connection)
            if kind == _SETTINGS and not flags & _ACKNOWLEDGED:
                connection.sendall(_frame(_SETTINGS, _ACKNOWLEDGED, 0, b""))
            elif kind == _PING and not flags & _ACKNOWLEDGED:
                connection.sendall(_frame(_PING, _ACKNOWLEDGED, 0, content))
            elif kind in (_RESET, _AWAY):
                raise OSError(f"etcd at {endpoint} ended the connection")
            elif kind == _DATA:
                received += content[1 : len(content) - content[0]] if flags & _PADDED else content
            if len(received) >= _MESSAGE.size:
                _, length = _MESSAGE.unpack_from(received)
                if len(received) >= _MESSAGE.size + length:
                    return received[_MESSAGE.size :][:length]
            if kind == _HEADERS and flags & _END_STREAM:
                return None


def _packed(text: str) -> bytes:
    """As HPACK has a string that is not compressed."""
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    return b"\x7f" + _varint(len(data) - 127) + data


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack("!I", len(content))[1:] + struct.pack("!BBI", kind, flags, stream) + content


def _read_frame(connection: socket.socket) -> tuple[int, int, bytes]:
    head = exactly(connection, 9)
    length = int.from_bytes(head[:3], "big")
    if length > _LONGEST:
        raise OSError("this does not look like etcd's answer")
    return head[3], head[4], exactly(connection, length)


# --- protobuf: numbers and strings ---


def _varint(number: int) -> bytes:
    packed = bytearray()
    while number > 127:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _text(field: int, value: str) -> bytes:
    data = value.encode()
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The message's fields by number; strings and messages as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            if at >= len(message):
                raise OSError("this does not look like etcd's answer")
            byte = message[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            length = varint()
            yield key >> 3, message[at : at + length]
            at += length
        else:
            raise OSError("this does not look like etcd's answer")
