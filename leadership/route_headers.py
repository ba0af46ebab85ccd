"""The header fields of what is passed on: what goes, what stays, and what is told of the way.

Fields are pairs of bytes throughout, so that nothing changes on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import random
import re
from collections.abc import Iterable

Fields = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The server that took the request has answered it already.
_DONE_HERE = frozenset({b"expect"})
# Without these the message would be another one, whatever Connection says.
_KEPT = frozenset({b"host", b"content-length"})
# Without a comma: two fields may come as one.
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[\w.~!$&'()*+;=%-]*)(:\d*)?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://(?P<host>[^/?#]*)", re.IGNORECASE)
_OURS = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
)


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Without what concerned only the connection that it came by (RFC 9110, 7.6.1)."""
    given = list(fields)
    named = {
        token.strip().lower()
        for name, value in given
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    gone = (named - _KEPT) | _HOP_BY_HOP
    if any(name.lower() == b"transfer-encoding" for name, _ in given):
        # A length beside it is void (RFC 9112, 6.3), and would be believed by the next one.
        gone |= {b"content-length"}
    return [(name, value) for name, value in given if name.lower() not in gone]


def values(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """All values of one field."""
    return [value for each, value in fields if each.lower() == name]


def addressed(
    method: str, target: bytes, fields: Fields, version: str
) -> tuple[str, Fields] | None:
    """A request's path with its query, and its fields, as they can be passed on.

    A target that names a host, as proxies are sent it, says it in the place of
    the field Host (RFC 9112, 3.2.2); the request goes to the leader all the same.

    Args:
        version: of HTTP; only before 1.1 there may be no Host.

    Returns:
        None where the target is no path, or where it is in doubt which host is meant, or
        where the request ends.
    """
    if (absolute := _ABSOLUTE.match(target)) is not None:
        host, target = absolute["host"], target[absolute.end() :]
        if not host or (method == "OPTIONS" and not target):
            # That is another way to write `*`, the whole server.
            return None
        target = target if target.startswith(b"/") else b"/" + target
        fields = [(b"Host", host), *((n, v) for n, v in fields if n.lower() != b"host")]
    hosts = values(fields, b"host")
    if len(hosts) > 1 or not all(_HOST.fullmatch(host) for host in hosts):
        return None
    if not hosts and version == "1.1":
        return None
    lengths = values(fields, b"content-length")
    if len(lengths) > 1 or not all(length.strip(b" \t").isdigit() for length in lengths):
        return None
    plain = target.partition(b"#")[0]
    if not plain.startswith(b"/") or any(byte <= 32 or byte == 127 for byte in plain):
        return None
    return "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in plain), fields


def _is_of_the_way(name: bytes, trusted: bool) -> bool:
    """Whether a field is ours to tell, or one that a client may not tell."""
    # Some servers take _ for -, so what a client spells that way goes too.
    spelt = name.lower().replace(b"_", b"-")
    return spelt in _OURS or (not trusted and spelt.startswith(b"x-forwarded-"))


class Way:
    """How the routers of one election know each other, in the field Via.

    Args:
        key: the election.
    """

    def __init__(self, key: str, chance: random.Random) -> None:
        self._election = f"leadership-{hashlib.sha256(key.encode()).hexdigest()[:16]}-".encode()
        self._name = self._election + f"{chance.getrandbits(64):016x}".encode()

    def passed(self, fields: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a router of this election has passed the request on already."""
        return any(
            entry.split()[1:2] and entry.split()[1].startswith(self._election)
            for value in values(fields, b"via")
            for entry in value.split(b",")
        )

    def onward(
        self, fields: Fields, *, scheme: str, client: str | None, version: str, trusted: bool
    ) -> Fields:
        """What goes to the leader.

        Args:
            scheme: what the client came by.
            client: its address, if it has one.
            trusted: whether to believe, and add to, what the request says of the way before us.
        """
        kept = [(n, v) for n, v in end_to_end(fields) if n.lower() not in _DONE_HERE]
        host = b", ".join(values(kept, b"host"))
        before = {name: values(kept, name) if trusted else [] for name in _OURS}
        told = [(n, v) for n, v in kept if not _is_of_the_way(n, trusted)]
        via = [*values(kept, b"via"), version.encode() + b" " + self._name]
        told.append((b"Via", b", ".join(via)))
        forwarded = [*before[b"forwarded"], _forwarded(scheme, client, host)]
        told.append((b"Forwarded", b", ".join(forwarded)))
        clients = [*before[b"x-forwarded-for"], (client or "unknown").encode()]
        told.append((b"X-Forwarded-For", b", ".join(clients)))
        for name, own in ((b"X-Forwarded-Proto", scheme.encode()), (b"X-Forwarded-Host", host)):
            believed = before[name.lower()]
            told.append((name, believed[0] if believed else own))
        return told


def _forwarded(scheme: str, client: str | None, host: bytes) -> bytes:
    """One element of the field Forwarded (RFC 7239)."""
    node = "unknown"
    # A server that believes what it is told of a client may give anything for its address.
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(client or "")
        node = f'"[{address}]"' if address.version == 6 else str(address)
    quoted = host.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return f"for={node};proto={scheme};host=".encode() + b'"' + quoted + b'"'
