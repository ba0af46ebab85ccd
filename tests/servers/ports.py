"""Ports on loopback."""

import random
import socket

LOOPBACK = "127.0.0.1"

# Below every system's range of ephemeral ports: otherwise, while a server is down, some
# client's outgoing connection could be given the port that the server comes back to.
_FIRST, _LAST = 20_000, 32_000

_given: set[int] = set()


class PortTakenError(RuntimeError):
    """Another process listens where our server should."""


def require_free(port: int) -> None:
    """Raise :exc:`PortTakenError` if anybody listens on ``port``.

    A stranger's server there would answer our health check in our server's place.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortTakenError(f"{LOOPBACK}:{port} is taken by another process") from error


def free_port() -> int:
    """A port that nobody listens on, and that this process has not handed out before."""
    for _ in range(1000):
        port = random.randrange(_FIRST, _LAST)
        if port in _given:
            continue
        try:
            require_free(port)
        except PortTakenError:
            continue
        _given.add(port)
        return port
    raise PortTakenError(f"no free port on {LOOPBACK} between {_FIRST} and {_LAST}")
