"""What a node knows of leaders: for its own followers, and for clients that are no members."""

from __future__ import annotations

import asyncio
import zlib
from urllib.parse import parse_qsl

import msgspec

from ..clock import Clock
from ._peers_http import Answer, Asked
from ._peers_members import is_member
from ._quorum_effects import Leader
from ._quorum_lease import QuorumLease

LEADER = "/leadership/leader"

_LONGEST_POLL = 30.0

_encode = msgspec.json.Encoder().encode


class LeaderQuestion(msgspec.Struct, frozen=True):
    """What a client that is no member asks; in the query of a GET.

    Attributes:
        tag: of the answer that it had last; the next one waits until it is another.
        wait: seconds, at most.
    """

    key: str
    tag: str = ""
    wait: float = 0.0

    @classmethod
    def read(cls, query: str) -> LeaderQuestion:
        try:
            return msgspec.convert(dict(parse_qsl(query)), cls, strict=False)
        except msgspec.ValidationError:
            return cls("")


class LeaderAnswer(msgspec.Struct, frozen=True):
    """
    Attributes:
        tag: differs with each change.
        known: whether the node would have heard of a leader, if there is one.
        members: who else can be asked.
        proclaimed: rises with each value of the term.
    """

    tag: str
    known: bool
    value: bytes | None = None
    term: int = 0
    node: str = ""
    members: tuple[str, ...] = ()
    proclaimed: int = 0

    @property
    def moment(self) -> tuple[int, int]:
        """Of two answers that name a leader, the one with the lower moment is the older one."""
        return self.term, self.proclaimed


class Knowledge:
    """One node's, with a bell that rings at each change.

    Attributes:
        version: how often it rang.
    """

    def __init__(self, node: QuorumLease, clock: Clock) -> None:
        self.version = 0
        self._node = node
        self._clock = clock
        self._heartbeat = node.timing.heartbeat
        self._reached_since: float | None = None
        self._changed: asyncio.Future[None] | None = None
        self._closed = False

    def reaches_quorum(self) -> bool:
        """Whether the node is a member, and a majority answered it lately."""
        node = self._node
        return is_member(node.id, node.stage) and node.reaches_quorum(self._clock.now())

    def look(self) -> None:
        """Notice that the majority was lost or found, which no message tells."""
        if self.reaches_quorum() != (self._reached_since is not None):
            self._reached_since = None if self._reached_since else self._clock.now()
            self.ring()

    def knows(self, key: str) -> bool:
        """Whether this node would have heard of a leader of `key`, if there is one."""
        if self._reached_since is None or not self.reaches_quorum():
            return False
        return self.leader(key) is not None or self.knows_all()

    def knows_all(self) -> bool:
        """Whether this node would have heard of every leader."""
        if self._reached_since is None or not self.reaches_quorum():
            return False
        # A leader is heard of with each heartbeat.
        return self._clock.now() - self._reached_since > 2 * self._heartbeat

    def leader(self, key: str) -> Leader | None:
        """Who leads, as far as this node was told."""
        return self._node.leaders.leader(key)

    async def wait(self, seconds: float) -> None:
        """Until something about leaders or the quorum is different, or a while has passed."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await self._clock.wait_for(asyncio.shield(self._changed), self._clock.now() + seconds)

    def ring(self) -> None:
        """Something is different."""
        self.version += 1
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed = True
        self.ring()

    async def answer(self, asked: Asked) -> Answer:
        """For who is no member: the leader now, or as soon as it is another than was told."""
        wanted = LeaderQuestion.read(asked.query)
        # In this order: what is no number at all becomes 0, or the timer would never end.
        deadline = self._clock.now() + min(max(0.0, wanted.wait), _LONGEST_POLL)
        while not self._closed:
            told = self._told(wanted.key)
            left = deadline - self._clock.now()
            if told.tag != wanted.tag or left <= 0:
                break
            await self.wait(min(left, self._heartbeat))
        return Answer(200, _encode(self._told(wanted.key)), {"Content-Type": "application/json"})

    def _told(self, key: str) -> LeaderAnswer:
        members = self._node.stage.joining or self._node.stage.members
        if not self.knows(key):
            return LeaderAnswer("unknown", False, members=members)
        leader = self.leader(key)
        if leader is None:
            return LeaderAnswer("none", True, members=members)
        return LeaderAnswer(
            f"{leader.term}-{leader.proclaimed}-{zlib.crc32(leader.value):08x}",
            True,
            leader.value,
            leader.term,
            leader.node,
            members,
            leader.proclaimed,
        )
