"""Frees the key of a dead leader on Consul: what the guardian does for it.

Runs in the guardian, and imports nothing but what that has. Nobody else uses
the session of a process that is dead, so it may be ended however late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leadership._guardian_wire import request

_TIMEOUT = 1.0


def release(arguments: Mapping[str, Any]) -> None:
    """Do all the requests at the first agent that does them.

    Args:
        arguments: `endpoints`, `tls` (see `_guardian_wire.connect`), `headers`, and `paths`
            of the requests, in their order: first the key is released, so that no
            lock-delay holds up whoever follows, then the sessions are destroyed.

    Raises:
        OSError: none of them did.
    """
    failure: Exception = OSError("no endpoints")
    for endpoint in arguments["endpoints"]:
        try:
            for path in arguments["paths"]:
                _put(endpoint, path, arguments)
            return
        except OSError as error:
            failure = error
    raise failure


def _put(endpoint: str, path: str, arguments: Mapping[str, Any]) -> None:
    answer = request(endpoint, "PUT", path, b"", arguments["headers"], arguments["tls"], _TIMEOUT)
    if answer.status not in (200, 404):
        raise OSError(f"Consul at {endpoint} refuses: {answer.status}")
