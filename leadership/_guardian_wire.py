"""Sockets and plain HTTP for what runs in the guardian.

The standard library's own client would be half of that process.

Beside `_guardian`; what releases a store's key may import it, and nothing else of ours.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the headers' names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def tls(
    ca: str | None = None, certificate: str | None = None, key: str | None = None
) -> Mapping[str, str | None]:
    """What `connect` takes for TLS, as plain data: paths of PEM files."""
    return {"ca": ca, "certificate": certificate, "key": key}


def connect(
    address: str,
    secured: Mapping[str, str | None] | None,
    timeout: float,
    protocol: str | None = None,
) -> socket.socket:
    """A connection to `host:port` or `[v6]:port`; `timeout` is for each step on it, in seconds.

    Args:
        secured: what `tls` gave, or None for none.
        protocol: to agree on, with TLS; None: whatever the server's default is.

    Raises:
        OSError: there is none.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    plain = socket.create_connection((host, int(port)), timeout)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if secured is None:
        return plain
    import ssl

    try:
        context = ssl.create_default_context(cafile=secured["ca"])
        if secured["certificate"] is not None:
            context.load_cert_chain(secured["certificate"], secured["key"])
        if protocol is not None:
            context.set_alpn_protocols([protocol])
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def exactly(connection: socket.socket, size: int) -> bytes:
    """The next so many bytes.

    Raises:
        OSError: they did not come.
    """
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise OSError("the connection was closed before the answer")
        received += part
    return received


def request(
    address: str,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    secured: Mapping[str, Any] | None,
    timeout: float,
) -> Answer:
    """Send one request and read its answer to the end; seconds as in `connect`.

    Raises:
        OSError: no answer came, or none that can be read.
    """
    lines = [
        # Of 1.0, so that the answer comes in one piece, and ends with the connection.
        f"{method} {path} HTTP/1.0",
        f"Host: {address}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "\r\n",
    ]
    with connect(address, secured, timeout) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1") + body)
        received = bytearray()
        while part := connection.recv(65536):
            received += part
            if len(received) > _LONGEST:
                raise OSError(f"{address} answered with more than it may")
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise OSError(f"{address} does not answer in HTTP")
    named = (field.partition(":") for field in fields)
    return Answer(
        int(words[1]), {name.strip().lower(): value.strip() for name, _, value in named}, rest
    )
