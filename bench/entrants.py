"""Who takes part in a benchmark: candidates for one key, each used as its documentation shows.

An entrant is connected when it is made. All are driven by `bench.process`, so that what is
timed, and from which moment to which, is the same for each of them. This module imports
no library: each entrant's process has the memory of its own library only.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Role(StrEnum):
    """What a row of the table is compared with."""

    FLOOR = "floor"
    """The store's own operation with the same client."""
    OURS = "ours"
    RIVAL = "rival"
    """What a Python user would take instead."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entrant contends.

    Attributes:
        url: the store, as `leadership` addresses it.
        key: the election.
        name: of this entrant.
        ttl: seconds.
    """

    url: str
    key: str
    name: str
    ttl: float

    @property
    def endpoint(self) -> str:
        """`host:port`."""
        return self.url.partition("://")[2].partition("?")[0]

    @property
    def host(self) -> str:
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


class Entrant(ABC):
    """One candidate for one key.

    Attributes:
        title: of its rows.
        role: what its rows are compared with.
    """

    title: ClassVar[str]
    role: ClassVar[Role] = Role.RIVAL

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        """Wait for the lead, lead once, and release.

        Args:
            elected: to be called at once when we lead.
            resigning: then blocks until we are to resign; we release when it returns.
        """

    @abstractmethod
    def is_leader(self) -> bool:
        """Whether we lead, as users of this library ask."""

    def question(self) -> Callable[[], bool]:
        """What they call for that, to be timed by itself."""
        return self.is_leader

    def proclaim(self, value: str) -> None:
        """Change what followers are told; called while we lead."""
        raise NotImplementedError

    def follow(self, told: Callable[[str], None]) -> None:
        """Without contending, call `told` with the present value and with each later one."""
        raise NotImplementedError

    @classmethod
    def can_follow(cls) -> bool:
        """Whether this library tells others who leads."""
        return cls.follow is not Entrant.follow

    def close(self) -> None:  # noqa: B027
        """Leave nothing open, where the library needs that to be said."""


class Renewal:
    """Calls a function at a third of the ttl for the time of a `with` block.

    For who leaves the renewal to its user: at the rate of `leadership`.
    """

    def __init__(self, renew: Callable[[], object], ttl: float) -> None:
        self._renew = renew
        self._interval = ttl / 3
        self._over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._go_on, daemon=True).start()

    def __exit__(self, *outcome: object) -> None:
        self._over.set()

    def _go_on(self) -> None:
        while not self._over.wait(self._interval):
            self._renew()
