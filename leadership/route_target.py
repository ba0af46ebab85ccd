"""The address that a leader campaigns with, read so that no odd value sends a request elsewhere."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from yarl import URL

from .errors import ConfigurationError

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.IGNORECASE)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE)
_EVERYBODY = ipaddress.IPv4Address("255.255.255.255")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the leader answers.

    Attributes:
        scheme: http or https; None where the leader's value is only `host:port`.
        host: a name, or an address without brackets.
    """

    scheme: str | None
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host:port`, as a URL has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def url(self, path: str) -> URL:
        """The URL of a request whose target is `path` (with its query), byte for byte."""
        # The query stays in the path: apart from it an empty one would be lost.
        scheme = self.scheme or "http"
        return URL.build(scheme=scheme, host=self.host, port=self.port, path=path, encoded=True)

    def location(self, path: str, scheme: str) -> str:
        """The same for a client, which came by `scheme`."""
        return f"{self.scheme or scheme}://{self.authority}{path}"


def split_listen(address: str) -> tuple[str, int]:
    """The host and the port of `host:port` or `[v6]:port`, to listen at.

    Raises:
        ConfigurationError: it is neither.
    """
    host, separator, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = bare != host
    if not separator or not bare or (":" in bare) != bracketed or not _is_port(port):
        raise ConfigurationError(f"{address!r} is no address: write host:port or [v6]:port")
    return bare, int(port)


def parse_target(value: str) -> Target:
    """The target in a leader's value: `host:port`, or a URL of http or https without a path.

    Raises:
        ConfigurationError: it is neither, or names no single host on the network.
    """
    if not value.isascii() or not value.isprintable() or " " in value:
        raise _unroutable(value, "it has characters that no address has")
    scheme: str | None = None
    authority = value
    if "://" in value:
        parts = urlsplit(value)
        if parts.scheme not in _PORTS:
            raise _unroutable(value, "only http and https can be forwarded")
        if parts.path not in ("", "/") or "?" in value or "#" in value:
            raise _unroutable(value, "it must end with the port")
        scheme, authority = parts.scheme, parts.netloc
        if not re.search(r":\d+$", authority):
            authority = f"{authority}:{_PORTS[scheme]}"
    try:
        host, port = split_listen(authority)
    except ConfigurationError:
        raise _unroutable(value, "it has no host and port") from None
    return Target(scheme, _checked_host(value, host), port)


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536


def _checked_host(value: str, host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        last = host.removesuffix(".").rpartition(".")[2]
        if len(host) > 253 or not _NAME.fullmatch(host):
            raise _unroutable(value, "its host is no name") from None
        # Such as 127.1 or 0x7f.1, which some resolvers take for an address.
        if _NUMBER.fullmatch(last):
            raise _unroutable(value, "its host is an odd number") from None
        return host.lower()
    # An IPv4 address in IPv6's clothes is the same place.
    plain = getattr(address, "ipv4_mapped", None) or address
    if "%" in host or plain.is_unspecified or plain.is_multicast or plain.is_link_local:
        raise _unroutable(value, "no other machine can reach it there") from None
    if plain == _EVERYBODY:
        raise _unroutable(value, "it is everybody's address") from None
    return str(address)


def _unroutable(value: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"requests cannot be sent to the leader {value[:200]!r}: {why}; have it campaign with "
        "host:port or http://host:port"
    )
