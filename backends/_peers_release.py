"""Tells the other nodes that a dead leader's term is over: what the guardian does for it.

Runs in the guardian, and imports nothing but what that has. It goes on where
the dead node stopped, in its name: with numbers above all that it can have used.
"""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import Any

from leadership._guardian_wire import request
from leadership.backends._peers_code import PREFIX, code, digest

_FIRST_NUMBER = 1 << 62
_HEAD_START = 0.03
_ALL_TOLD = 0.1
"""Seconds for the node that was told first to lead, as it asks the others, who then vote for it;
and for all of them together."""


def release(arguments: Mapping[str, Any]) -> None:
    """Tell each member that the term has ended and that it may follow, one after the other.

    Args:
        arguments: `tls` (see `_guardian_wire.connect`), `path`, `fields` of the
            sender, `secret` (or b""), `timeout` in seconds, and `members`: of each
            `address`, `incarnation` and `body`.

    Raises:
        OSError: not all were told; those that were are not told again.
    """
    failure: Exception | None = None
    head_start = min(_HEAD_START, _ALL_TOLD / len(arguments["members"]))
    for member in arguments["members"]:
        if member["body"] in _told:
            continue
        try:
            _tell(arguments, member)
        except OSError as error:
            failure = error
            continue
        # One that was not told keeps its promise to the dead, which may be the one that counts.
        _told.add(member["body"])
        select.poll().poll(1000 * head_start)
    if failure is not None:
        raise failure


_told: set[bytes] = set()
_numbers = iter(range(_FIRST_NUMBER, 2 * _FIRST_NUMBER))


def _tell(arguments: Mapping[str, Any], member: Mapping[str, Any]) -> None:
    incarnation = member["incarnation"]
    # A node that has been restarted since says so, and what it is called now. If
    # somebody else says so, what follows reaches nobody.
    for _ in range(2):
        fields = {
            **arguments["fields"],
            "To": member["address"],
            "To-Incarnation": incarnation,
            "Number": str(next(_numbers)),
            "Digest": digest(member["body"]),
        }
        path = arguments["path"]
        headers = {PREFIX + name: value for name, value in fields.items()}
        if arguments["secret"]:
            headers[PREFIX + "Seal"] = code(arguments["secret"], fields, path)
        answer = request(
            member["address"],
            "POST",
            path,
            member["body"],
            headers,
            arguments["tls"],
            arguments["timeout"],
        )
        if answer.status == 200:
            return
        incarnation = answer.headers.get((PREFIX + "From-Incarnation").lower(), "")
        if answer.status != 409 or not incarnation:
            break
    raise OSError(f"{member['address']} was not told")
