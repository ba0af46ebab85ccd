"""Ends an etcd lease over the server's HTTP gateway: what the guardian does for a dead leader.

Runs in the guardian, and imports nothing but what that has. Nobody else uses
the lease of a process that is dead, so it may be ended however late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leadership._guardian_wire import Answer, request

_TIMEOUT = 1.0


def release(arguments: Mapping[str, Any]) -> None:
    """Revoke the lease at the first endpoint that does it.

    Args:
        arguments: `endpoints`, `lease`, `tls` (see `_guardian_wire.connect`), `token` (or "")
            and `login` (a JSON object, or "" where nobody has to).

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
    token, login = arguments["token"], arguments["login"]
    answer = None
    if token or not login:
        answer = _ask(endpoint, arguments, token)
    if login and (answer is None or answer.status in (400, 401)):
        # The token that the leader had may be too old.
        answer = _ask(endpoint, arguments, _token(endpoint, arguments))
    # 404: it is gone already.
    if answer is None or answer.status not in (200, 404):
        raise OSError(f"etcd at {endpoint} did not revoke the lease")
    if answer.status == 404 and b"lease" not in answer.body:
        raise OSError(f"etcd at {endpoint} has no gateway for HTTP")


def _ask(endpoint: str, arguments: Mapping[str, Any], token: str) -> Answer:
    headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
    body = b'{"ID": "%d"}' % arguments["lease"]
    path = "/v3/lease/revoke"
    return request(endpoint, "POST", path, body, headers, arguments["tls"], _TIMEOUT)


def _token(endpoint: str, arguments: Mapping[str, Any]) -> str:
    import json

    answer = request(
        endpoint,
        "POST",
        "/v3/auth/authenticate",
        arguments["login"].encode(),
        {"Content-Type": "application/json"},
        arguments["tls"],
        _TIMEOUT,
    )
    if answer.status != 200:
        # Told to log in where nobody has to.
        return ""
    return str(json.loads(answer.body)["token"])
