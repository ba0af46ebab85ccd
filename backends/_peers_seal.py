"""Seals: who sent this, to whom, and has it been seen before?

With a shared secret each request carries a code (HMAC-SHA256) over a digest of
its content, its sender and receiver with their incarnations, and a number that
no request of that sender had before. So nobody else can make one, and one
that is sent again, or to another node, or to a node that has restarted since,
has no effect. An answer's code covers the request that it answers. The code is
in the head: who has no secret is refused before any content is read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from ._peers_code import PREFIX, code, digest
from ._quorum_messages import Ticket

WIRE_VERSION = 1
KNOWN_VERSIONS = frozenset({WIRE_VERSION})

_WINDOW = 4096
_INCARNATIONS = 4
"""How many incarnations of one sender are told apart, so that an old one's are not new again."""


class Refused(Exception):
    """A request or an answer that must have no effect; the text says why, for the log."""


class OtherIncarnation(Refused):
    """It was meant for this node before its restart: the sender has to learn the new one."""


@dataclass(frozen=True, slots=True)
class Node:
    """One process of one member: its address, and a number that no other process has."""

    address: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a request's seal says, once it is believed."""

    sender: Node
    number: int
    digest: str

    def check(self, body: bytes) -> None:
        """Whether this is the content that was sealed.

        Raises:
            Refused: it is another.
        """
        if not hmac.compare_digest(self.digest.encode(), digest(body).encode()):
            raise Refused("its content is not the one that was sealed")


class _Window:
    """Which numbers of one sender were seen: those too old to remember count as seen."""

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def take(self, number: int) -> bool:
        """Whether `number` is new; it is not any more after this."""
        if number > self._highest:
            ahead = min(number - self._highest, _WINDOW)
            self._seen = (self._seen << ahead | 1) & ((1 << _WINDOW) - 1)
            self._highest = number
            return True
        bit = 1 << (self._highest - number)
        if self._highest - number >= _WINDOW or self._seen & bit:
            return False
        self._seen |= bit
        return True


class Seals:
    """Makes the seals of one node, and checks those of others.

    Args:
        own: this node.
        secrets: the first one seals, all are believed: so a secret can be
            changed without a moment in which nodes refuse each other. Empty:
            everything is believed.
    """

    def __init__(self, own: Node, secrets: tuple[bytes, ...] = ()) -> None:
        self.own = own
        self._secrets = secrets
        self._number = 0
        self._windows: dict[str, dict[int, _Window]] = {}
        self._retired: set[Node] = set()

    def sender(self) -> Mapping[str, Any]:
        """What another process needs to seal in our name when we are dead; with the secret."""
        fields = {
            "Wire": str(WIRE_VERSION),
            "From": self.own.address,
            "From-Incarnation": str(self.own.incarnation),
        }
        secret = self._secrets[0] if self._secrets else b""
        return {"fields": fields, "secret": secret}

    # --- requests ---

    def request(self, to: Node, path: str, body: bytes) -> tuple[dict[str, str], int]:
        """The headers for a request to `to` (incarnation 0: not known yet), and its number."""
        self._number += 1
        fields = {
            "Wire": str(WIRE_VERSION),
            "From": self.own.address,
            "From-Incarnation": str(self.own.incarnation),
            "To": to.address,
            "To-Incarnation": str(to.incarnation),
            "Number": str(self._number),
            "Digest": digest(body),
        }
        return self._sealed(fields, path), self._number

    def open_request(
        self,
        headers: Mapping[str, str],
        path: str,
        members: frozenset[str] | None,
        *,
        once: bool = True,
    ) -> Sealed:
        """Check a request's head, before its content is worth reading: see `Sealed.check`.

        Args:
            members: the addresses that may send one; None: any.
            once: refuse one that was seen before; False where its content shows that. Of
                senders without end the numbers cannot be kept.

        Raises:
            OtherIncarnation: its head is genuine, but meant for this node before a restart.
            Refused: it must have no effect.
        """
        fields = _fields(headers, _REQUEST)
        self._check(fields, headers, path)
        sender = Node(fields["From"], _number(fields["From-Incarnation"]))
        if members is not None and sender.address not in members:
            raise Refused("the sender is no member")
        if fields["To"] != self.own.address:
            raise Refused("it is addressed to another node")
        number = _number(fields["Number"])
        if _number(fields["To-Incarnation"]) != self.own.incarnation:
            raise OtherIncarnation("it is addressed to an earlier process of this node")
        if once and self._secrets and not self._window(sender).take(number):
            raise Refused("it was seen before")
        return Sealed(sender, number, fields["Digest"])

    def _window(self, sender: Node) -> _Window:
        known = self._windows.setdefault(sender.address, {})
        window = known.get(sender.incarnation)
        if window is None:
            if sender in self._retired:
                raise Refused("it is from an earlier process of its sender")
            while len(known) >= _INCARNATIONS:
                oldest = next(iter(known))
                del known[oldest]
                # What it numbered is forgotten, so nothing of it may count as new again.
                self._retired.add(Node(sender.address, oldest))
            window = known[sender.incarnation] = _Window()
        return window

    # --- answers ---

    def answer(self, to: Mapping[str, str], path: str, body: bytes) -> dict[str, str]:
        """The headers for the answer to the request whose headers were `to`."""
        fields = {
            "Wire": str(WIRE_VERSION),
            "From": self.own.address,
            "From-Incarnation": str(self.own.incarnation),
            "To": _header(to, "From"),
            "To-Incarnation": _header(to, "From-Incarnation"),
            "Answers": _header(to, "Number"),
            "Digest": digest(body),
        }
        return self._sealed(fields, path)

    def open_answer(
        self, headers: Mapping[str, str], path: str, body: bytes, asked: Node, number: int
    ) -> Node:
        """Who answered our request `number` to `asked`.

        Raises:
            Refused: nobody whom we asked.
        """
        fields = _fields(headers, _ANSWER)
        self._check(fields, headers, path)
        Sealed(asked, number, fields["Digest"]).check(body)
        ours = (self.own.address, str(self.own.incarnation), str(number))
        if (fields["To"], fields["To-Incarnation"], fields["Answers"]) != ours:
            raise Refused("it answers another request")
        if fields["From"] != asked.address:
            raise Refused("another node answered")
        return Node(asked.address, _number(fields["From-Incarnation"]))

    # --- tickets, which are shown on to others than they were sent to ---

    def ticket(self, ticket: Ticket) -> Ticket:
        """The ticket, sealed where it is our own."""
        if not self._secrets or ticket.seal or ticket.node != self.own.address:
            return ticket
        return replace(ticket, seal=_ticket_code(self._secrets[0], ticket))

    def is_genuine(self, ticket: Ticket) -> bool:
        """Whether it was sealed with the secret of this cluster."""
        given = ticket.seal.encode()
        fits = [
            hmac.compare_digest(_ticket_code(secret, ticket).encode(), given)
            for secret in self._secrets
        ]
        return not self._secrets or any(fits)

    # --- the code ---

    def _sealed(self, fields: dict[str, str], path: str) -> dict[str, str]:
        headers = {PREFIX + name: value for name, value in fields.items()}
        if self._secrets:
            headers[PREFIX + "Seal"] = code(self._secrets[0], fields, path)
        return headers

    def _check(self, fields: Mapping[str, str], headers: Mapping[str, str], path: str) -> None:
        if self._secrets:
            given = _header(headers, "Seal").encode()
            # All are compared, in constant time: how long it takes tells nothing.
            fits = [
                hmac.compare_digest(code(secret, fields, path).encode(), given)
                for secret in self._secrets
            ]
            if not any(fits):
                raise Refused("it is not sealed with the secret of this cluster")
        if _number(fields["Wire"]) not in KNOWN_VERSIONS:
            raise Refused("its wire version is not known here")


_REQUEST = ("Wire", "From", "From-Incarnation", "To", "To-Incarnation", "Number", "Digest")
_ANSWER = ("Wire", "From", "From-Incarnation", "To", "To-Incarnation", "Answers", "Digest")


def _ticket_code(secret: bytes, ticket: Ticket) -> str:
    content = msgspec.json.encode(replace(ticket, seal=""))
    return hmac.new(secret, b"ticket\n" + content, hashlib.sha256).hexdigest()


def _header(headers: Mapping[str, str], name: str) -> str:
    return headers.get(PREFIX + name, "")


def _fields(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    fields = {name: _header(headers, name) for name in names}
    missing = [name for name, value in fields.items() if not value]
    if missing:
        raise Refused(f"the header {PREFIX}{missing[0]} is missing")
    return fields


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise Refused("a header that should be a number is none")
    return int(text)
