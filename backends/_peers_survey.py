"""What a node shows of its elections: to its own page, and to clients that are no members.

All of it is what the node was told anyway: looking sends nothing to the others.
"""

from __future__ import annotations

import zlib
from urllib.parse import parse_qsl

import msgspec

from ..backend import Entry
from ..clock import Clock
from ..page import OTHER_NAME, Hosts, Page
from ..standing import Standing
from ._peers_http import Answer, Asked
from ._peers_knowledge import Knowledge
from ._quorum_lease import QuorumLease

_LONGEST_POLL = 30.0

ELECTIONS = "/leadership/elections"
PAGE = "/ui"
_EVENTS = f"{PAGE}/events"

OF_A_PROGRAM = "Sec-Leadership-Client"
"""A field that no page can send: browsers let no script give one of such a name. Who sends it
is held to no name of ours, for clients reach a node by names that it never heard of."""


def standings(node: QuorumLease, directory: str, now: float) -> tuple[Standing, ...]:
    """The elections at or below `directory` that this node knows of, sorted by key."""
    leaders, queued = node.leaders.all(), node.queues.keys()
    told = []
    for key in sorted(leaders.keys() | queued):
        if directory and key != directory and not key.startswith(f"{directory}/"):
            continue
        waiters = node.queues.waiting(key, now) if key in queued else []
        waiting = tuple((each.name or each.node).encode() for each in waiters)
        leader = leaders.get(key)
        if leader is not None:
            entry = Entry(leader.value, leader.term)
            told.append(Standing(key, entry, waiting, lease=key))
        elif waiting:
            told.append(Standing(key, None, waiting))
    return tuple(told)


def stamp(node: QuorumLease, knowledge: Knowledge) -> object:
    """Differs from before, where `standings` may."""
    return knowledge.version, node.queues.stamp


class Question(msgspec.Struct, frozen=True):
    """What a client asks; in the query of a GET.

    Attributes:
        tag: of the answer that it had last; the next one waits until it is another.
        wait: seconds, at most.
    """

    prefix: str = ""
    tag: str = ""
    wait: float = 0.0

    @classmethod
    def read(cls, query: str) -> Question:
        try:
            return msgspec.convert(dict(parse_qsl(query)), cls, strict=False)
        except msgspec.ValidationError:
            return cls()


class ToldElection(msgspec.Struct, frozen=True):
    """One election, as a node tells a client of it."""

    key: str
    value: bytes | None
    term: int
    waiting: tuple[bytes, ...]

    def standing(self) -> Standing:
        entry = None if self.value is None else Entry(self.value, self.term)
        return Standing(self.key, entry, self.waiting)


class ElectionsAnswer(msgspec.Struct, frozen=True):
    """
    Attributes:
        tag: differs with each change.
        known: whether the node would have heard of all leaders.
    """

    tag: str
    known: bool
    elections: tuple[ToldElection, ...]


def answer_of(known: bool, now: tuple[Standing, ...]) -> ElectionsAnswer:
    """What a client is told of these elections."""
    elections = tuple(
        ToldElection(
            each.key,
            None if each.leader is None else each.leader.value,
            0 if each.leader is None else each.leader.token,
            each.waiting or (),
        )
        for each in now
    )
    tag = f"{zlib.crc32(msgspec.json.encode((known, elections))):08x}"
    return ElectionsAnswer(tag, known, elections)


class View:
    """Shows a node to browsers and to clients.

    What clients are told may be read by whoever may have the page, and by no other page.
    """

    def __init__(
        self, node: QuorumLease, knowledge: Knowledge, clock: Clock, page: Page, hosts: Hosts
    ) -> None:
        self._node = node
        self._knowledge = knowledge
        self._clock = clock
        self._page = page
        self._hosts = hosts

    async def answer(self, asked: Asked) -> Answer | None:
        """The answer, if it is this that is asked for."""
        if asked.method != "GET" or asked.path.rstrip("/") not in (PAGE, _EVENTS, ELECTIONS):
            return None
        is_programs = asked.path == ELECTIONS and OF_A_PROGRAM in asked.headers
        refusal = None if is_programs else self._hosts.refusal(asked.headers.get("Host"))
        if refusal is not None:
            return Answer(OTHER_NAME, refusal.encode(), {"Content-Type": "text/plain"})
        if asked.path.rstrip("/") == PAGE:
            return Answer(200, self._page.document, self._page.document_headers)
        if asked.path == _EVENTS:
            if self._page.is_full:
                return Answer(503, headers={"Retry-After": "5"})
            return Answer(200, headers=self._page.events_headers, parts=self._page.events())
        if asked.path == ELECTIONS:
            told = await self._tell(Question.read(asked.query))
            headers = {"Content-Type": "application/json"}
            return Answer(200, msgspec.json.encode(told), headers)
        return None

    async def _tell(self, wanted: Question) -> ElectionsAnswer:
        """The elections now, or as soon as they are others than were told."""
        deadline = self._clock.now() + min(wanted.wait, _LONGEST_POLL)
        while True:
            now = self._clock.now()
            standing = standings(self._node, wanted.prefix, now)
            told = answer_of(self._knowledge.knows_all(), standing)
            if told.tag != wanted.tag or now >= deadline:
                return told
            await self._knowledge.wait(min(deadline - now, 1.0))
