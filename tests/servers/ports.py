"""Ports on loopback that stay ours while a server is down."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator

LOOPBACK = "127.0.0.1"

# Below every system's range of ephemeral ports: otherwise, while a server is down, some
# client's outgoing connection could be given the port that the server comes back to.
_FIRST, _LAST = 20_000, 32_000
_BLOCK = 200

# Runs of the tests beside each other must not take each other's ports either, so each takes
# whole blocks; listening on a block's first port tells the others, until the process ends.
_unused: list[int] = []


class PortTakenError(RuntimeError):
    """Another process listens where our server should."""


def require_free(port: int) -> None:
    """Raise :exc:`PortTakenError` if anybody listens on ``port``.

    A stranger's server there would answer our health check in our server's place.
    """
    with _bound(port):
        pass


def free_port() -> int:
    """A port that nobody listens on, and that no run of these tests has handed out."""
    while True:
        if not _unused:
            _claim_block()
        port = _unused.pop()
        with contextlib.suppress(PortTakenError):
            require_free(port)
            return port


def _claim_block() -> None:
    starts = range(_FIRST, _LAST, _BLOCK)
    for start in random.sample(starts, len(starts)):
        with contextlib.suppress(PortTakenError), _bound(start) as claim:
            # Two may have bound the port at once; only one can listen.
            try:
                claim.listen()
            except OSError:
                continue
            # A second descriptor of the same socket, left open on purpose.
            os.dup(claim.fileno())
            _unused.extend(range(start + 1, start + _BLOCK))
            return
    raise PortTakenError(f"no free ports on {LOOPBACK} between {_FIRST} and {_LAST}")


@contextlib.contextmanager
def _bound(port: int) -> Iterator[socket.socket]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise PortTakenError(f"{LOOPBACK}:{port} is taken by another process") from error
        yield probe
