"""Finding backends: by entry point, ours exactly like a stranger's, loaded on use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .backend import Address, Backend
from .errors import ConfigurationError, MissingExtra, UnknownBackend

GROUP = "leadership.backends"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names what is nearest to `word`, or all that is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names) or 'none'}"


def load_backend(scheme: str) -> type[Backend]:
    """The backend class for a scheme.

    Raises:
        UnknownBackend: no installed package offers it.
        MissingExtra: it is known, but what it needs is not installed.
    """
    found: dict[str, EntryPoint] = {e.name: e for e in entry_points(group=GROUP)}
    entry = found.get(scheme)
    if entry is None:
        raise UnknownBackend(f"no backend for {scheme!r}: {nearest(scheme, found)}")
    try:
        loaded = entry.load()
    except ImportError as error:
        package = entry.dist.name if entry.dist is not None else "leadership"
        raise MissingExtra(
            f"the backend {scheme!r} needs packages that are not installed ({error}): "
            f"pip install '{package}[{scheme}]'"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise ConfigurationError(f"the entry point {entry.value!r} is not a Backend class")
    return loaded


def parse_address(
    address: str, endpoints: str | Iterable[str] | None, options: dict[str, Any]
) -> Address:
    """An address from a URL, or from a scheme and its endpoints as `NewStore` takes them.

    Raises:
        ConfigurationError: it is neither; the message never repeats a password.
    """
    if not isinstance(address, str) or not address:
        raise ConfigurationError("give the store's address, such as 'etcd://127.0.0.1:2379'")
    if endpoints is not None:
        if "://" in address:
            raise ConfigurationError("give either a URL or a backend's name with endpoints")
        listed = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        return Address(address.lower(), tuple(listed), "", options)
    scheme, separator, rest = address.partition("://")
    if not separator:
        # A password may stand in it, and where it begins and ends cannot be known.
        shown = "what was given" if set(address) & set("@?=") else repr(address)
        raise ConfigurationError(
            f"{shown} is no store address: write 'scheme://host:port,host:port' "
            "such as 'etcd://127.0.0.1:2379', or give the endpoints as a list"
        )
    parts = urlsplit("//" + rest)
    credentials, _, hosts = parts.netloc.rpartition("@")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if credentials:
        user, _, password = credentials.partition(":")
        given["user"] = unquote(user)
        if password:
            given["password"] = unquote(password)
    twice = sorted(set(given) & set(options))
    if twice:
        raise ConfigurationError(f"given both in the address and as an option: {', '.join(twice)}")
    return Address(
        scheme.lower(),
        tuple(host for host in hosts.split(",") if host),
        parts.path.strip("/"),
        {**given, **options},
    )
