"""Asks nodes for the member list, and for changes of it: an operator's side, through any node."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable

import msgspec

from ..backend import Context
from ..errors import AccessDenied, StoreUnavailable
from ._peers_http import Client
from ._peers_members import (
    LONGEST_WAIT,
    MEMBERS,
    OPERATOR,
    MembersQuestion,
    MembersTold,
    Outcome,
    check,
    not_in_time,
)
from ._peers_post import UNREADABLE
from ._peers_seal import Node, Refused, Seals
from ._peers_settings import Settings
from ._quorum_members import progress

_PATIENCE = 2.0
"""Seconds that one node may take to tell the list."""

_encode = msgspec.json.Encoder().encode
_told = msgspec.json.Decoder(MembersTold)


class Operator:
    """Asks one node, or as many as it takes."""

    def __init__(self, client: Client, settings: Settings, context: Context) -> None:
        self._client = client
        self._settings = settings
        self._clock = context.clock
        self._seals = Seals(Node(OPERATOR, context.random.getrandbits(63) | 1), settings.secrets)
        self._runs: dict[str, Node] = {}

    async def ask(self, address: str, question: MembersQuestion, seconds: float) -> MembersTold:
        """Ask one node.

        Raises:
            StoreUnavailable: it does not answer.
            AccessDenied: it does not believe us, or we do not believe it.
        """
        body = _encode(question)
        for _ in range(2):
            asked = self._runs.get(address, Node(address, 0))
            headers, number = self._seals.request(asked, MEMBERS, body)
            answer = await self._client.call(
                "POST", address, MEMBERS, body, headers=headers, timeout=seconds
            )
            if answer.status == 403:
                raise AccessDenied(f"{address} refuses: give the secret of its cluster as secret")
            if answer.status not in (200, 409):
                raise StoreUnavailable(f"{address} is no node that could tell its members")
            try:
                self._runs[address] = self._seals.open_answer(
                    answer.headers, MEMBERS, answer.body, asked, number
                )
                if answer.status == 200:
                    return _told.decode(answer.body)
            except (Refused, *UNREADABLE) as error:
                raise AccessDenied(f"the answer of {address} is not believed: {error}") from error
            # It was asked as an earlier process, or as none: now we know which one it is.
        raise StoreUnavailable(f"{address} is being restarted")

    async def members(self, addresses: Iterable[str]) -> MembersTold:
        """The latest list that any node tells.

        Raises:
            StoreUnavailable: none answers.
            AccessDenied: none that answers believes us.
        """
        question = MembersQuestion(self._settings.cluster)
        answers = await asyncio.gather(
            *(self.ask(each, question, _PATIENCE) for each in addresses), return_exceptions=True
        )
        told = [answer for answer in answers if isinstance(answer, MembersTold)]
        if told:
            latest = max(told, key=lambda each: progress(each.stage))
            check(latest)
            return latest
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        raise next((e for e in errors if isinstance(e, AccessDenied)), errors[0])

    async def change(
        self,
        addresses: Iterable[str],
        add: Collection[str],
        remove: Collection[str],
        timeout: float | None,
    ) -> MembersTold:
        """Change the list through any of these nodes, and those of which they tell.

        Raises:
            TimeoutError: it did not end within `timeout` seconds.
            StoreUnavailable: no node answered in that time, so nothing was changed.
            ConfigurationError, NotSupported: it is refused.
            AccessDenied: we are not believed.
        """
        question = MembersQuestion(self._settings.cluster)
        until = math.inf if timeout is None else self._clock.now() + timeout
        known = "no node was asked yet"
        heard = False
        asked = list(dict.fromkeys(addresses))
        while True:
            for address in list(asked):
                left = until - self._clock.now()
                if timeout is not None and left <= 0:
                    if not heard:
                        raise StoreUnavailable(f"no node answers, so nothing is changed: {known}")
                    raise not_in_time(timeout, known)
                try:
                    told = await self.ask(address, question, min(left, _PATIENCE))
                    check(told)
                    heard = True
                    told = await self._change_through(address, told.nonce, add, remove, left)
                except StoreUnavailable as error:
                    known = str(error)
                    continue
                check(told)
                if told.outcome is Outcome.DONE:
                    return told
                known = told.reason
                asked += [each for each in told.stage.members if each not in asked]
            await self._clock.sleep(self._settings.timing.heartbeat)

    async def _change_through(
        self,
        address: str,
        nonce: str,
        add: Collection[str],
        remove: Collection[str],
        left: float,
    ) -> MembersTold:
        wait = min(left, LONGEST_WAIT)
        cluster = self._settings.cluster
        question = MembersQuestion(cluster, nonce, tuple(add), tuple(remove), wait)
        return await self.ask(address, question, wait + _PATIENCE)
