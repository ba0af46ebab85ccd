"""What a store's address says, read and checked alike by all backends."""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

from .backend import Address
from .errors import ConfigurationError
from .registry import nearest

Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(address: Address, kind: type[Options]) -> Options:
    """The options of an address, each in the type that its field has.

    Raises:
        ConfigurationError: one is not known, and which is meant; or it does not fit.
    """
    scheme, known = address.scheme, kind.__struct_fields__
    for name in address.options:
        if name not in known:
            raise ConfigurationError(f"{scheme}:// has no option {name!r}: {nearest(name, known)}")
    try:
        return msgspec.convert(dict(address.options), kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"an option of {scheme}:// does not fit: {error}") from error


def check_tls_files(ca: str | None, cert: str | None, key: str | None) -> None:
    """See that the files can be read, and that a certificate has its key.

    Raises:
        ConfigurationError: what is missing.
    """
    if (cert is None) != (key is None):
        raise ConfigurationError(
            "a client certificate needs both cert and key (paths of PEM files)"
        )
    for path in (ca, cert, key):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"the file {path!r} cannot be read: give a readable PEM file")


def read_endpoint(endpoint: str, default_port: int) -> str:
    """`host:port`, with the default port unless given; an IPv6 address in brackets.

    Raises:
        ConfigurationError: it is none.
    """
    host, separator, port = endpoint.rpartition(":")
    if not separator or endpoint.endswith("]"):
        host, port = endpoint, str(default_port)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"{endpoint!r} is no host:port such as 127.0.0.1:{default_port}")
    if ":" in host and not host.startswith("["):
        raise ConfigurationError(f"write the IPv6 address {endpoint!r} as [address]:port")
    return f"{host}:{port}"
