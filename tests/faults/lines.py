"""What lies between a candidate and its store, to be cut, slowed, and listened to."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Protocol

from tests.network_namespaces import Network
from tests.servers.fault_proxy import Fate, FaultProxy, Mode

Request = re.Pattern[bytes]
"""By which a request is known on the line."""


class Line(Protocol):
    """One candidate's network.

    Attributes:
        modes: those that it can be set to.
        catches: whether a request can be told from others on it.
    """

    modes: frozenset[Mode]
    catches: bool

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        """Change what happens to all that passes, in one of the `modes`; `delay` in seconds."""

    def catch(self, request: Request, fate: Fate) -> None:
        """Give the next such request of the candidate this fate."""

    @property
    def has_caught(self) -> bool:
        """Whether it has come since."""

    def close(self) -> None:
        """Drop all."""


class RelayedLine:
    """A relay to each of the servers."""

    modes = frozenset(Mode)
    catches = True

    def __init__(self, targets: Sequence[str], chance: random.Random) -> None:
        self.relays = []
        for target in targets:
            host, _, port = target.rpartition(":")
            self.relays.append(FaultProxy(int(port), host, random.Random(chance.random())))

    @property
    def endpoint(self) -> str:
        """The servers, as this candidate is told of them."""
        return ",".join(relay.endpoint for relay in self.relays)

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        for relay in self.relays:
            relay.set(mode, delay)

    def keep_only(self, server: int) -> None:
        """No other server answers any more."""
        for number, relay in enumerate(self.relays):
            if number != server:
                relay.set(Mode.RESET)

    def catch(self, request: Request, fate: Fate) -> None:
        for relay in self.relays:
            relay.catch(request, fate)

    @property
    def has_caught(self) -> bool:
        return any(relay.has_caught for relay in self.relays)

    def close(self) -> None:
        for relay in self.relays:
            relay.close()


class MachineLine:
    """The cable of a machine of its own, among others that are members too."""

    modes = frozenset({Mode.PASS, Mode.STALL, Mode.UP, Mode.DOWN})
    catches = False

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._number = number

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        for other in range(len(self._network.hosts)):
            if other != self._number and mode in (Mode.STALL, Mode.UP):
                self._network.cut(self._number, other)
            if other != self._number and mode in (Mode.STALL, Mode.DOWN):
                self._network.cut(other, self._number)
        if mode is Mode.PASS:
            self._network.heal()

    def cut_from(self, other: int) -> None:
        """These two hear nothing of each other; both still hear the rest."""
        self._network.cut(self._number, other)
        self._network.cut(other, self._number)

    def catch(self, request: Request, fate: Fate) -> None:
        raise NotImplementedError

    @property
    def has_caught(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        pass
