"""Grounds without servers: the candidates are the members of a cluster of peers."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from leadership import new_store
from leadership.errors import ConfigurationError, StoreUnavailable
from tests.network_namespaces import Network
from tests.peers_cluster import SECRET
from tests.servers.ports import LOOPBACK, free_port
from tests.waiting import wait_until

from .ground import SLOTS, Ground
from .lanes import Lanes, MemberLine
from .lines import MachineLine, Request

_CHANGE = 30.0
"""Seconds for a change of the members."""


def _of_kind(kind: bytes) -> Request:
    return re.compile(b'"kind":"' + kind + b'"')


class PeersGround(Ground):
    """No servers: each candidate is a member.

    Args:
        states: where each member keeps its own; None: they are without.
    """

    backend = "peers"
    requests: ClassVar[Mapping[str, Request]] = {
        "vote": _of_kind(b"Vote"),
        "grant": _of_kind(b"Lease"),
        "renewal": _of_kind(b"Heartbeat"),
        "release": _of_kind(b"Release"),
    }
    ttl = 1.0
    expiry = 1.5 * ttl

    def __init__(self, states: Path | None) -> None:
        self._states = states
        self._joining: set[int] = set()
        self._serial = itertools.count()
        self._folders = [next(self._serial) for _ in range(SLOTS)]
        # Of members that may forget, none is ever changed.
        self.has_changes = states is not None
        self.forgets = states is None
        self.members: list[str] = []

    def url(self, slot: int) -> str:
        options = [
            f"address={self.members[slot]}",
            f"listen={self.listen(slot)}",
            f"ttl_ceiling={self.ttl:g}",
            "wall_clock_skew=0",
            "join=1" if slot in self._joining else "bootstrap=1",
        ]
        if self._states is not None:
            options.append(f"state_dir={self._states / str(self._folders[slot])}")
        return self._url(*options)

    def _url(self, *options: str) -> str:
        secret = f"secret={SECRET.replace(' ', '%20')}"
        return f"peers://{','.join(self.members)}?{'&'.join([secret, *options])}"

    def remove_member(self, slot: int) -> None:
        self._change(remove=self.members[slot])

    def renew_member(self, slot: int) -> None:
        self._joining.add(slot)
        self._folders[slot] = next(self._serial)
        self.members[slot] = self.new_address(slot)

    def add_member(self, slot: int) -> None:
        self._change(add=self.members[slot])

    def _change(self, **change: str) -> None:
        with new_store(self._url("observe=1")) as operator:

            def done() -> bool:
                # Those that started again lately do not answer for others yet.
                with contextlib.suppress(ConfigurationError, StoreUnavailable):
                    operator.change_members(**change, timeout=_CHANGE)
                    return True
                return False

            wait_until(done, _CHANGE, "the change of the members")

    @abstractmethod
    def new_address(self, slot: int) -> str:
        """One by which this member never was known."""

    @abstractmethod
    def listen(self, slot: int) -> str:
        """Where this member listens."""


class RelayedPeersGround(PeersGround):
    """A relay lies between each two of the members."""

    def __init__(self, states: Path | None, chance: random.Random) -> None:
        super().__init__(states)
        self._listen = [f"{LOOPBACK}:{free_port()}" for _ in range(SLOTS)]
        self._lanes = Lanes(self._listen, chance)

    def start(self) -> None:
        self._lanes.start()
        self.lines = [MemberLine(self._lanes, slot, SLOTS) for slot in range(SLOTS)]
        self.members = list(self._lanes.addresses)

    def stop(self) -> None:
        self._lanes.close()

    def listen(self, slot: int) -> str:
        return self._listen[slot]

    def new_address(self, slot: int) -> str:
        return self._lanes.renew(slot)


class ScatteredPeersGround(PeersGround):
    """Each member is on a machine of its own: root on Linux only."""

    def __init__(self, states: Path | None) -> None:
        super().__init__(states)
        # An operator comes from outside.
        self._network = Network(SLOTS, reached=True)
        self._port = itertools.count(7000)

    def start(self) -> None:
        self._network.start()
        self.lines = [MachineLine(self._network, slot) for slot in range(SLOTS)]
        self.members = [self.new_address(slot) for slot in range(SLOTS)]

    def stop(self) -> None:
        self._network.close()

    def listen(self, slot: int) -> str:
        return self.members[slot]

    def new_address(self, slot: int) -> str:
        return f"{self._network.hosts[slot]}:{next(self._port)}"

    def command(self, slot: int) -> tuple[str, ...]:
        return tuple(self._network.command(slot))
