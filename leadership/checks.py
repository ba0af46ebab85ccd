"""What a user hands in, checked at construction: bad input fails at once, saying what to do."""

from __future__ import annotations

import math
from typing import Any

from .backend import Backend
from .errors import ConfigurationError, ValueTooLarge

LONGEST_KEY = 1000
"""Characters: what every store takes, as a path, with what an election puts behind it."""


def checked_key(key: Any, *, root: bool = False) -> str:
    """The key as backends take it: `a/b/c`, one leading and a trailing slash dropped.

    Args:
        root: whether the empty key, the root of all, is meant by the call.
    """
    if not isinstance(key, str):
        raise ConfigurationError(f"a key is a str such as 'service/leader', not {key!r}")
    plain = key.removeprefix("/").removesuffix("/")
    if not plain:
        if root and key in ("", "/"):
            return ""
        raise ConfigurationError("the key is empty: give a path such as 'service/leader'")
    if len(plain) > LONGEST_KEY:
        raise ConfigurationError(
            f"the key {plain[:40]!r}... has {len(plain)} characters: keep it within {LONGEST_KEY}"
        )
    segments = plain.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise ConfigurationError(
            f"the key {key!r} has an empty, '.' or '..' segment: write it as 'service/leader'"
        )
    if any(ord(character) < 32 or ord(character) == 127 for character in plain):
        raise ConfigurationError(f"the key {key!r} has control characters: leave them out")
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"the key {key!r} is not valid Unicode: {error}") from error
    return plain


def checked_id(id: Any) -> str:
    if not isinstance(id, str) or not id.strip():
        raise ConfigurationError(
            f"id={id!r}: give the candidate a name, usually the address that requests go to"
        )
    return id


def checked_value(value: Any, backend: Backend, what: str = "value") -> bytes:
    """The value as bytes, within the store's limit."""
    if isinstance(value, str):
        data = value.encode()
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    else:
        raise ConfigurationError(f"{what}={value!r}: give bytes or str")
    if len(data) > backend.maximum_value_size:
        raise ValueTooLarge(
            f"the {what} has {len(data)} bytes, and {backend.address.scheme} takes at most "
            f"{int(backend.maximum_value_size)}: keep large data elsewhere and store its address"
        )
    return data


def checked_seconds(name: str, seconds: Any) -> float:
    """A duration above zero."""
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not math.isfinite(seconds)
        or seconds <= 0
    ):
        raise ConfigurationError(f"{name}={seconds!r}: give seconds above 0")
    return float(seconds)


def checked_ttl(ttl: Any, backend: Backend) -> float:
    seconds = checked_seconds("ttl", ttl)
    if seconds < backend.minimum_ttl:
        raise ConfigurationError(
            f"ttl={ttl}: {backend.address.scheme} takes at least {backend.minimum_ttl:g} s"
        )
    return seconds


def checked_timeout(timeout: Any) -> float | None:
    """A bound on a wait in seconds; None for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigurationError(f"timeout={timeout!r}: give seconds, or None to wait for ever")
    return None if math.isinf(timeout) else float(timeout)
