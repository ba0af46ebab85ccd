"""The way to one of several servers: one link at a time, given up for the next one's."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from ..clock import Clock
from ..errors import HandleClosed


class Link(ABC):
    """The connections to one server.

    Attributes:
        endpoint: `host:port`.
        heard_at: when a server that answers anything was last heard: slow is not dead.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.abandoned = False
        self.heard_at = float("-inf")

    @abstractmethod
    async def close(self) -> None:
        """End what still hangs on it. Does not raise."""


L = TypeVar("L", bound=Link)


class Links(ABC, Generic[L]):
    """The link in use, and those that are being closed.

    Args:
        store: how its user calls it.
        endpoints: `host:port`, in the order in which they are tried.
        at_once: how many requests may be under way: thousands of them would keep the event
            loop, and with it the renewals, waiting.
        timeout: seconds that one request may take, fail-over included.
    """

    def __init__(
        self, store: str, endpoints: tuple[str, ...], at_once: int, timeout: float, clock: Clock
    ) -> None:
        self.timeout = timeout
        self._store = store
        self._endpoints = endpoints
        self._clock = clock
        self._at = 0
        self._link: L | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False
        # Whoever renews does not queue here.
        self._room = asyncio.Semaphore(at_once)

    @abstractmethod
    def _open(self, endpoint: str) -> L:
        """A link to this server."""

    def _given_up(self) -> None:
        """The link in use was: streams on it are void."""

    def in_order(self) -> list[str]:
        """All endpoints; first the one that is known to answer."""
        at = self._at % len(self._endpoints)
        return [*self._endpoints[at:], *self._endpoints[:at]]

    def is_cut(self, failures: int) -> bool:
        """Whether the store is out of reach, after so many failures in a row.

        What fails is tried again, at the next endpoint: that alone is no outage.
        """
        return failures >= max(2, len(self._endpoints))

    def link(self) -> L:
        """The link in use, opened if there is none."""
        if self._closed:
            raise HandleClosed(f"this {self._store} store is closed: make a new one")
        if self._link is None:
            self._link = self._open(self._endpoints[self._at % len(self._endpoints)])
        return self._link

    def abandon_if_silent(self, link: L, since: float) -> None:
        """Give up a link on which nothing at all was heard since a request was sent."""
        if link.heard_at < since:
            self.abandon(link)

    def abandon(self, link: L) -> None:
        """Give up a link that failed, and all that waits on it; the next call uses another."""
        if link.abandoned:
            return
        link.abandoned = True
        if self._link is link:
            self._link = None
            self._at += 1
            self._given_up()
        closing = asyncio.ensure_future(link.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Give up the link in use, and wait until all are closed."""
        self._closed = True
        if self._link is not None:
            self.abandon(self._link)
        if self._closing:
            await asyncio.wait(list(self._closing))
