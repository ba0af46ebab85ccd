"""Closes the session of a dead leader on ZooKeeper: what the guardian does for it.

Runs in the guardian, and imports nothing but what that has. Whoever knows a
session's number and password may go on with it: here, to its end.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

from leadership._guardian_wire import connect, exactly

_TIMEOUT = 1.0
_LONGEST = 1 << 16
_CLOSE = -11

_LENGTH = struct.Struct("!i")
# The protocol's version, the last transaction seen (none), the timeout in
# milliseconds, the session's number, and the length of its password, which follows.
_ATTACH = struct.Struct("!iqiqi")
_ATTACHED = struct.Struct("!ii")
_HEADER = struct.Struct("!ii")


def release(arguments: Mapping[str, Any]) -> None:
    """Re-attach the session at the first server that lets us in, and close it.

    Args:
        arguments: `endpoints`, `tls` (see `_guardian_wire.connect`), `session`, `password`,
            `timeout` of the session in seconds.

    Raises:
        OSError: none of them did.
    """
    failure: Exception = OSError("no endpoints")
    for endpoint in arguments["endpoints"]:
        try:
            with connect(endpoint, arguments["tls"], _TIMEOUT) as connection:
                _close(connection, arguments)
            return
        except OSError as error:
            failure = error
    raise failure


def _close(connection: socket.socket, arguments: Mapping[str, Any]) -> None:
    password = arguments["password"]
    milliseconds = round(arguments["timeout"] * 1000)
    attach = _ATTACH.pack(0, 0, milliseconds, arguments["session"], len(password))
    # The last byte: no server that only answers reads.
    _send(connection, attach + password + b"\0")
    _, granted = _ATTACHED.unpack(_receive(connection)[: _ATTACHED.size])
    if granted <= 0:
        # It has expired already.
        return
    _send(connection, _HEADER.pack(1, _CLOSE))
    _receive(connection)


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(exactly(connection, _LENGTH.size))
    if not _ATTACHED.size <= length <= _LONGEST:
        raise OSError("this does not look like ZooKeeper's answer")
    return exactly(connection, length)
