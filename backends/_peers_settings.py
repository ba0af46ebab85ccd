"""The options of a peers address, checked: what can never work is refused before anything runs."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from .._guardian_wire import tls
from ..backend import Address, Context
from ..errors import ConfigurationError
from ..options import read_options
from ..page import Hosts
from ..registry import nearest
from ._peers_http import Limits, is_loopback, split_address
from ._quorum_timing import Timing

_BODY = 16 << 20
"""Bytes; read of members only, and enough for ten thousand keys with the longest values."""


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `peers://h:p,h:p,h:p?...`; seconds."""

    listen: str | None = None
    address: str | None = None
    cluster: str = "c1"
    ttl_ceiling: float = 5.0
    earlier_ttl_ceiling: float | None = None
    heartbeat: float | None = None
    vote_window: float | None = None
    wall_clock_skew: float = 2.0
    secret: str | None = None
    former_secret: str | None = None
    state_dir: str | None = None
    bootstrap: bool = False
    join: bool = False
    observe: bool = False
    shown: str | None = None
    electio_changes: bool = False
    ui: bool = True
    ui_hosts: str = ""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a node, or a client that is none, works by.

    Attributes:
        members: addresses of all members, this node's among them unless it joins.
        address: this node's, as the others list it; "" for a client.
        listen: where it listens; the same, unless it is reached in another way.
        secrets: the first one seals, all are believed.
        bootstrap: where an address of a member answers, its earlier process is gone.
        joins: this node is added to the members when it runs, and waits for that.
        shown: the election whose leader electio's nodes are told of; the first, if None.
        observer: this is a client, which only asks.
        ui: the node shows the live page, at `/ui`.
        hosts: the names by which it does.
    """

    members: tuple[str, ...]
    address: str
    listen: str
    cluster: str
    timing: Timing
    secrets: tuple[bytes, ...] = field(repr=False)
    state_dir: str | None
    bootstrap: bool
    joins: bool
    observer: bool
    shown: str | None
    electio_changes: bool
    ui: bool
    hosts: Hosts
    limits: Limits
    server_tls: ssl.SSLContext | None
    client_tls: ssl.SSLContext | None
    tls_files: Mapping[str, str | None] | None

    @property
    def shortest_ttl(self) -> float:
        """Seconds: three heartbeats must be able to fail within a term."""
        timing = self.timing
        drift = timing.max_clock_drift
        return (4 * timing.heartbeat + timing.guard) * (1 + drift) / (1 - drift)

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine reach it, and may say what they like."""
        return (
            not self.observer
            and not self.secrets
            and not is_loopback(split_address(self.listen)[0])
        )


def settings_of(address: Address, context: Context) -> Settings:
    """Check all of it.

    Raises:
        ConfigurationError: it can never work; the message says what to do.
    """
    options = read_options(address, _Options)
    members = tuple(address.endpoints)
    if not members:
        raise ConfigurationError(
            "list all members: peers://10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000?listen=10.0.0.1:7000"
        )
    for each in members:
        split_address(each)
    if len(set(members)) != len(members):
        raise ConfigurationError("a member is listed twice: each node needs an address of its own")
    if address.path:
        raise ConfigurationError(f"peers:// takes no path, and has {address.path!r}: drop it")
    own = options.address or options.listen or ""
    if not options.observe:
        if not own:
            raise ConfigurationError(
                "which member is this? add ?listen=HOST:PORT, its own address in the list, "
                "or ?observe=1 to follow without taking part"
            )
        split_address(own)
        split_address(options.listen or own)
        if options.join:
            members = _others(members, own, options)
        elif own not in members:
            raise ConfigurationError(
                f"{own} is not in the list of members: {nearest(own, members)} "
                "A node that is to be added to the members while they run needs join=1. "
                "Where a node listens at another address than it is reached at, add "
                "address=HOST:PORT as the list has it"
            )
    server_tls, client_tls = _tls(options)
    return Settings(
        members=members,
        address=own,
        listen=options.listen or own,
        cluster=options.cluster,
        timing=_timing(options, context, len(members)),
        secrets=_secrets(options),
        state_dir=options.state_dir,
        bootstrap=options.bootstrap,
        joins=options.join,
        observer=options.observe,
        shown=options.shown,
        electio_changes=options.electio_changes,
        ui=options.ui,
        hosts=_hosts(options),
        limits=Limits(body=_BODY),
        server_tls=server_tls,
        client_tls=client_tls,
        tls_files=tls(options.ca, options.cert, options.key) if client_tls is not None else None,
    )


def _hosts(options: _Options) -> Hosts:
    own = (options.address, options.listen, *options.ui_hosts.split(","))
    return Hosts([each for each in own if each], "ui_hosts=")


def _others(members: tuple[str, ...], own: str, options: _Options) -> tuple[str, ...]:
    """Whom a node joins. Before it is added it must not count itself, however it is listed."""
    if options.state_dir is None:
        raise ConfigurationError(
            "join=1 needs state_dir=DIR: a node that forgot that it was added could vote under an "
            "old list"
        )
    if options.bootstrap:
        raise ConfigurationError("join=1 and bootstrap=1: it joins a cluster, or begins a new one")
    others = tuple(member for member in members if member != own)
    if not others:
        raise ConfigurationError("join=1 needs the members that it joins, and lists none of them")
    return others


def _timing(options: _Options, context: Context, members: int) -> Timing:
    ceiling = options.ttl_ceiling
    if not ceiling > 0:
        raise ConfigurationError(f"ttl_ceiling={ceiling}: give seconds above 0")
    guard = min(0.05, ceiling / 20)
    return Timing(
        lease_ceiling=ceiling,
        vote_window=options.vote_window or min(1.0, ceiling / 2),
        max_clock_drift=context.max_clock_drift,
        heartbeat=options.heartbeat or min(0.2, ceiling / 8),
        guard=guard,
        # The more there are, the further apart they have to begin, or their votes are split.
        backoff=min(0.15, ceiling / 8) * max(1, (members - 1) / 2),
        wall_clock_skew=options.wall_clock_skew,
        earlier_lease_ceiling=options.earlier_ttl_ceiling,
    )


def _secrets(options: _Options) -> tuple[bytes, ...]:
    given = [options.secret, options.former_secret]
    if options.former_secret is not None and options.secret is None:
        raise ConfigurationError("former_secret without secret: give the new one as secret")
    for each in given:
        if each is not None and len(each) < 16:
            raise ConfigurationError("a secret needs at least 16 characters: make a random one")
    return tuple(each.encode() for each in given if each is not None)


def _tls(options: _Options) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    if not any((options.ca, options.cert, options.key)):
        return None, None
    if options.observe and options.ca and not (options.cert or options.key):
        return None, ssl.create_default_context(cafile=_file("ca", options.ca))
    if not (options.cert and options.key):
        raise ConfigurationError("TLS needs cert and key, and ca where these are not public")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca = None if options.ca is None else _file("ca", options.ca)
    client = ssl.create_default_context(cafile=ca)
    try:
        for each in (server, client):
            each.load_cert_chain(_file("cert", options.cert), _file("key", options.key))
    except ssl.SSLError as error:
        raise ConfigurationError(f"cert and key cannot be used: {error}") from error
    return server, client


def _file(name: str, path: str) -> str:
    if not Path(path).is_file() or not os.access(path, os.R_OK):
        raise ConfigurationError(f"{name}={path!r} is no file that can be read")
    return path
