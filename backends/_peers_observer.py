"""A client that is no member: it asks any node who leads, and another where that one fails."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from ..backend import Context, Entry
from ..errors import ConfigurationError, StoreUnavailable
from ..standing import Standing
from ._peers_http import Client, split_address
from ._peers_knowledge import LEADER, LeaderAnswer
from ._peers_members import MembersTold
from ._peers_operator import Operator
from ._peers_post import UNREADABLE
from ._peers_settings import Settings
from ._peers_survey import ELECTIONS, OF_A_PROGRAM, ElectionsAnswer

Told = TypeVar("Told")

_POLL = 1.0
"""Seconds that a node may hold an answer back while nothing changes."""
_PATIENCE = 1.0
"""Seconds beyond that until a node that says nothing is given up for another."""
_MOST = 100
"""Addresses that are asked, those that answers added among them."""


class Observer:
    """Asks one node after the other, beginning with the one that answered last."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._members = list(settings.members)
        self._client = Client(settings.limits, settings.client_tls)
        self._operator = Operator(self._client, settings, context)
        self._patience = min(_PATIENCE, context.request_timeout)

    async def ask(
        self, key: str, tag: str = "", wait: float = 0.0, since: tuple[int, int] = (0, 0)
    ) -> LeaderAnswer:
        """Who leads, as soon as it is another than `tag` says, or after `wait` seconds.

        Args:
            since: a leader of a lower `moment` is old news, from a node that lags behind.

        Raises:
            StoreUnavailable: no node knows.
        """
        query = urlencode({"key": key, "tag": tag, "wait": wait})

        def take(body: bytes) -> LeaderAnswer | None:
            told = msgspec.json.decode(body, type=LeaderAnswer)
            self._learn(told.members)
            return told if told.known and (told.value is None or told.moment >= since) else None

        return await self._ask(f"{LEADER}?{query}", wait, take)

    async def _ask(self, path: str, wait: float, take: Callable[[bytes], Told | None]) -> Told:
        failures = []
        for address in list(self._members):
            try:
                answer = await self._client.call(
                    "GET",
                    address,
                    path,
                    timeout=wait + self._patience,
                    headers={OF_A_PROGRAM: "1"},
                )
                told = take(answer.body)
                if told is not None:
                    return told
                failures.append(f"{address} does not know")
            except (StoreUnavailable, *UNREADABLE) as error:
                failures.append(str(error))
            # Another one is asked first from now on.
            self._members.remove(address)
            self._members.append(address)
        raise StoreUnavailable("; ".join(failures))

    def _learn(self, members: Collection[str]) -> None:
        """Those that were given may all be replaced while we follow."""
        for each in members:
            if each not in self._members and len(self._members) < _MOST:
                with contextlib.suppress(ConfigurationError):
                    split_address(each)
                    self._members.append(each)

    async def follow(self, key: str) -> AsyncGenerator[Entry | None, None]:
        """The present leader, then each change; and the same again while it is confirmed."""
        told = await self.ask(key)
        latest = (0, 0)
        while True:
            yield None if told.value is None else Entry(told.value, told.term)
            latest = max(latest, told.moment)
            told = await self.ask(key, told.tag, _POLL, latest)

    async def members(self) -> MembersTold:
        """The latest list that a node tells."""
        return await self._operator.members(self._members)

    async def change_members(
        self, add: Collection[str], remove: Collection[str], timeout: float | None
    ) -> MembersTold:
        """Change the list through any node; see `Operator.change`."""
        return await self._operator.change(self._members, add, remove, timeout)

    async def follow_elections(self, prefix: str) -> AsyncGenerator[tuple[Standing, ...], None]:
        """The elections below the prefix as they stand now, then at each change."""
        tag, wait = "", 0.0
        while True:
            query = urlencode({"prefix": prefix, "tag": tag, "wait": wait})
            told = await self._ask(f"{ELECTIONS}?{query}", wait, _known_elections)
            if told.tag != tag:
                yield tuple(each.standing() for each in told.elections)
            tag, wait = told.tag, _POLL

    async def close(self) -> None:
        await self._client.close()


def _known_elections(body: bytes) -> ElectionsAnswer | None:
    told = msgspec.json.decode(body, type=ElectionsAnswer)
    return told if told.known else None
