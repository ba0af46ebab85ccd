"""A client that is no member: it asks any node who leads, and another where that one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import urlencode

import msgspec

from ..backend import Context, Entry
from ..errors import StoreUnavailable
from ._peers_driver import LEADER, LeaderAnswer
from ._peers_http import Client
from ._peers_settings import Settings

_POLL = 10.0
"""Seconds that a node may hold an answer back while nothing changes."""


class Observer:
    """Asks one node after the other, beginning with the one that answered last."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._members = list(settings.members)
        self._context = context
        self._client = Client(settings.limits, settings.client_tls)

    async def ask(self, key: str, tag: str = "", wait: float = 0.0) -> LeaderAnswer:
        """Who leads, as soon as it is another than `tag` says, or after `wait` seconds.

        Raises:
            StoreUnavailable: no node knows.
        """
        query = urlencode({"key": key, "tag": tag, "wait": wait})
        failures = []
        timeout = self._context.request_timeout / len(self._members) + wait
        for address in list(self._members):
            try:
                answer = await self._client.call(
                    "GET", address, f"{LEADER}?{query}", timeout=timeout
                )
                told = msgspec.json.decode(answer.body, type=LeaderAnswer)
                if told.known:
                    return told
                failures.append(f"{address} does not know")
            except (StoreUnavailable, msgspec.DecodeError) as error:
                failures.append(str(error))
            # Another one is asked first from now on.
            self._members.remove(address)
            self._members.append(address)
        raise StoreUnavailable("; ".join(failures))

    async def follow(self, key: str) -> AsyncGenerator[Entry | None, None]:
        """The present leader, then each change."""
        told = await self.ask(key)
        while True:
            yield None if told.value is None else Entry(told.value, told.term)
            tag = told.tag
            while told.tag == tag:
                told = await self.ask(key, tag, _POLL)
                await asyncio.sleep(0)

    async def close(self) -> None:
        await self._client.close()
