"""Where a round is fought: a store's servers, each candidate's own line to them, an operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from leadership.retry import DEFAULT_RETRY
from tests.network_namespaces import Network
from tests.servers.server import Server, Started

from .lines import Line, Request
from .process import Process
from .wall_clock import WallClock

SLOTS = 3
"""Candidates at a time; each time one starts again it takes the same slot."""

KEY = "service/leader"

_MARGIN = DEFAULT_RETRY.maximum + 3.0
"""Seconds: whoever was cut off tries again after so long at most, on a busy machine."""


class Ground(Started, ABC):
    """A store, for the time of a `with` block.

    Attributes:
        backend: its name.
        ttl: seconds, of the candidates.
        expiry: seconds after a leader's death until another leads, as a rule.
        servers: to be killed and paused; none where the candidates are the store.
        lines: by slot.
        token_ttl: seconds after which the store forgets a client that asked for nothing.
        requests: how those are known on the line that can be caught, by what they are for:
            "session", "entry", "renewal", "release"; of peers also "vote" and "grant".
        network: between the servers, where it can be cut.
        server_clock: the servers' time of day, where it can be stepped.
        has_tokens: each candidate has a token of its own, which an operator may delete.
        has_changes: of the members, where the candidates are.
        forgets: those members keep nothing. Where all restart at once the wall clock gives their
            tokens the floor, so that none may be stepped.
    """

    backend: str
    ttl: float
    expiry: float
    servers: Sequence[Server] = ()
    lines: Sequence[Line] = ()
    token_ttl: int | None = None
    requests: ClassVar[Mapping[str, Request]] = {}
    network: Network | None = None
    server_clock: WallClock | None = None
    has_tokens = False
    has_changes = False
    forgets = False

    @property
    def bound(self) -> float:
        """Seconds without a fault within which there is a leader, on a busy machine."""
        return self.expiry + _MARGIN

    def command(self, slot: int) -> tuple[str, ...]:
        """What a process of this slot is run under."""
        return ()

    @property
    def majority(self) -> int:
        """How many servers are needed."""
        return len(self.servers) // 2 + 1

    @abstractmethod
    def url(self, slot: int) -> str:
        """The store's address for the candidate in this slot."""

    def entries(self) -> list[str]:
        """Whose entries the store has for the election: one name for each."""
        return []

    def remove_entry(self) -> None:
        """As an operator: delete the leader's entry."""
        raise NotImplementedError

    def end_session(self, leader: Process) -> None:
        """As an operator: end the leader's lease or session."""
        raise NotImplementedError

    def delete_token(self, slot: int) -> None:
        """As an operator: from now on nobody knows the token of this slot's candidate."""
        raise NotImplementedError

    def make_token(self, slot: int) -> None:
        """As an operator: the next candidate of this slot gets a new one."""
        raise NotImplementedError

    def remove_member(self, slot: int) -> None:
        """As an operator: the member in this slot is none any more."""
        raise NotImplementedError

    def renew_member(self, slot: int) -> None:
        """The next candidate of this slot is another member, which joins."""
        raise NotImplementedError

    def add_member(self, slot: int) -> None:
        """As an operator: the one in this slot, which runs, is a member from now on."""
        raise NotImplementedError

    def leading_server(self) -> int | None:
        """The number of the server that leads the others, if they know of one."""
        return None

    def rejoin(self) -> None:
        """The servers reach each other again: have those look that would wait for long."""

    def remains(self) -> list[str]:
        """All entries and sessions that there are."""
        return []
