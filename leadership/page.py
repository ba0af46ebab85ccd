"""The live page: one document that needs nothing else, and the stream that keeps it current.

Whatever the store says goes to the browser as JSON, and into the document as
text, never as markup. The document may load nothing, run nothing but its own
script, and speak to nobody but the server that it came from.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import ipaddress
from collections.abc import AsyncGenerator, Iterable, Mapping
from importlib import resources

import msgspec

from .errors import ConfigurationError
from .reporting import printable
from .survey import Look, SeenElection, SeenTerm, Survey

VIEWERS = 64
"""Browsers that may look at once."""

_LONGEST_TEXT = 200
_WAITING = 20
# A browser that has gone is noticed when something is sent.
_SILENCE = 10.0

OTHER_NAME = 421
"""The status of an answer to who asks by a name that is none of the page's."""

_encode = msgspec.json.Encoder().encode


class _Term(msgspec.Struct, frozen=True):
    name: str
    # Some are longer than the numbers of a browser.
    token: str
    began: float
    began_exactly: bool
    ended: float | None
    ended_exactly: bool


class _Election(msgspec.Struct, frozen=True):
    key: str
    term: _Term | None
    waiting: tuple[str, ...] | None
    waiting_count: int
    past: tuple[_Term, ...]
    lease: str


class _Message(msgspec.Struct, frozen=True):
    """What is sent: whole at first, and then what has changed.

    Attributes:
        now: seconds on the store's clock, as all times here.
        changed: elections that are new or different.
        gone: keys that are shown no more.
        ends: by lease, when it ends.
    """

    now: float
    since: float
    changed: list[_Election]
    gone: list[str]
    left_out: int
    ends: dict[str, float]
    cut_since: float | None
    trouble: str


class Page:
    """A survey, shown to browsers.

    Attributes:
        document: the page, in UTF-8.
        document_headers: to be sent with it.
        events_headers: to be sent with the stream.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._viewers = 0
        style, script = _file("page.css"), _file("page.js")
        where = f"{survey.address.scheme}://{','.join(survey.address.endpoints)}"
        # The only text that goes into the markup itself.
        filled = {
            "STYLE": style,
            "SCRIPT": script,
            "WHERE": html.escape(_short(where)),
            "PREFIX": html.escape(_short(survey.prefix and f"{survey.prefix}/")),
        }
        document = _file("page.html")
        for name, text in filled.items():
            document = document.replace(f"{{{{{name}}}}}", text)
        self.document = document.encode()
        self.document_headers: Mapping[str, str] = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": (
                f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
                "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'; require-trusted-types-for 'script'"
            ),
            **_GUARDS,
        }
        self.events_headers: Mapping[str, str] = {
            "Content-Type": "text/event-stream; charset=utf-8",
            # Proxies such as nginx would wait for more.
            "X-Accel-Buffering": "no",
            **_GUARDS,
        }

    @property
    def is_full(self) -> bool:
        """Whether so many look that no more are let in."""
        return self._viewers >= VIEWERS

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: everything at first, then what changes, until it is closed.

        The first call begins the survey, where that has not begun yet.
        """
        self._survey.start()
        shown: dict[str, _Election] = {}
        rest: object = None
        self._viewers += 1
        try:
            async for look in self._survey.looks(_SILENCE):
                elections = {printable(each.key): _election(each) for each in look.elections}
                message = _message(look, elections, shown)
                shown = elections
                news = rest is None or message.changed or message.gone
                if news or _rest(message) != rest:
                    yield b"data: " + _encode(message) + b"\n\n"
                    rest = _rest(message)
                else:
                    yield b": \n\n"
        finally:
            self._viewers -= 1


class Hosts:
    """The names by which browsers may ask for a page.

    Whoever owns a name may have it lead to any address, so that a page of his,
    in the browser of somebody who reaches ours, has ours in its own origin. A
    browser says by which name it asks. An address cannot be had in that way.

    Args:
        names: hosts, with a port or without; all are served by addresses, and by localhost.
        option: by which the user gives more of them.

    Raises:
        ConfigurationError: one is no name.
    """

    def __init__(self, names: Iterable[str], option: str) -> None:
        self._option = option
        self._names = {"localhost"}
        for given in names:
            name = b""
            with contextlib.suppress(UnicodeError):
                # As browsers write it.
                name = _host_name(given).encode("idna")
            if not name or not set(name).isdisjoint(b" /?#@,*"):
                raise ConfigurationError(
                    f"{option}{given!r}: give a name, such as leaders.example.org"
                )
            self._names.add(name.decode())

    def refusal(self, host: str | None) -> str | None:
        """What to tell who asked with this Host, with `OTHER_NAME`; None: he may have the page."""
        # No browser leaves it out.
        if host is None:
            return None
        name = _host_name(host)
        if name in self._names:
            return None
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
            return None
        shown = _short(name)
        return (
            f"The page is not served by the name {shown!r}: ask by an address or localhost, "
            f"or have it served by this name too ({self._option}{shown}).\n"
        )


def _host_name(host: str) -> str:
    """Without its port, in the one way of writing it."""
    name, separator, port = host.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()):
        name = host
    # An address of version 6 is in brackets, where a port may follow.
    return name.lower().removesuffix(".")


_GUARDS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def _message(
    look: Look, elections: Mapping[str, _Election], shown: Mapping[str, _Election]
) -> _Message:
    return _Message(
        look.at,
        look.since,
        [each for key, each in elections.items() if shown.get(key) != each],
        [key for key in shown if key not in elections],
        look.left_out,
        dict(look.lease_ends),
        look.cut_since,
        _short(look.trouble),
    )


def _rest(message: _Message) -> object:
    return message.left_out, message.ends, message.cut_since, message.trouble


def _election(seen: SeenElection) -> _Election:
    waiting = seen.waiting
    return _Election(
        printable(seen.key),
        None if seen.term is None else _term(seen.term),
        None if waiting is None else tuple(map(_short, waiting[:_WAITING])),
        len(waiting or ()),
        tuple(map(_term, seen.past)),
        seen.lease,
    )


def _term(seen: SeenTerm) -> _Term:
    return _Term(
        _short(seen.value),
        str(seen.token),
        seen.began,
        seen.began_exactly,
        seen.ended,
        seen.ended_exactly,
    )


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
