"""The members that speak electio's protocol alone: found out, and told of our leader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ..clock import Clock
from ..errors import LeadershipError
from ._electio import Surface, node_id, read_reply
from ._peers_http import Client
from ._quorum_lease import QuorumLease

WHO = "/leadership/who"
"""Where our nodes tell who they are, and electio's nothing."""


class Legacy:
    """Looks after them.

    Args:
        heard_of: whether a member proved lately that it is one of ours.
        leader: the address of the leader that electio's nodes are told of.
    """

    def __init__(
        self,
        node: QuorumLease,
        cluster: str,
        surface: Surface,
        client: Client,
        clock: Clock,
        heard_of: Callable[[str], bool],
        leader: Callable[[], str | None],
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._surface = surface
        self._client = client
        self._clock = clock
        self._heard_of = heard_of
        self._leader = leader

    async def look_after(self) -> None:
        """Each second: see who speaks electio's protocol alone, and tell them of our leader."""
        node = self._node
        while True:
            others = [m for m in node.stage.members if m != node.id]
            silent = [m for m in others if not self._heard_of(m)]
            await asyncio.gather(*(self._ping(each) for each in silent))
            await self._clock.sleep(1.0)

    async def _ping(self, address: str) -> None:
        with contextlib.suppress(LeadershipError):
            ping = self._surface.ping_path()
            answer = await self._client.call("GET", address, ping, timeout=1.0)
            reply = read_reply(answer.body) if answer.status == 200 else None
            if reply is None:
                return
            self._surface.saw(node_id(self._cluster, address), reply.master)
            who = await self._client.call("GET", address, WHO, timeout=1.0)
            if who.status == 200:
                self._node.legacy.discard(address)
                return
            self._node.legacy.add(address)
            if self._leader() == self._node.id and reply.master != self._surface.id:
                follow = self._surface.follow_path()
                await self._client.call("GET", address, follow, timeout=1.0)
