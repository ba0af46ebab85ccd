"""The member list of a node as operators see it: told to who asks, and changed through any member.

The change itself is the core's (`_quorum_decision`, `_quorum_change`). Here it
is asked for, in requests that are sealed like the nodes' own; refused, where
it would leave the cluster without a majority that answers; and waited for.
A change is said as what to add and what to remove, and not as a list: so it can
be repeated, and two at a time come about one after the other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from enum import StrEnum

import msgspec

from ..backend import Membership
from ..errors import (
    ConfigurationError,
    HandleClosed,
    LeadershipError,
    NotSupported,
    StoreUnavailable,
)
from ._peers_http import Answer, Asked, split_address
from ._peers_post import UNREADABLE
from ._peers_seal import OtherIncarnation, Refused, Seals
from ._peers_settings import Settings
from ._quorum_effects import Effect
from ._quorum_lease import QuorumLease
from ._quorum_members import joint_stage, majority_of, progress
from ._quorum_messages import Members

MEMBERS = "/leadership/members"
OPERATOR = "operator"
"""Who asks, in the seals: no address, so no member has this name."""

LONGEST_WAIT = 10.0
"""Seconds that a change may hold its answer back; who asked asks again."""
_PATIENCE = 2.0
"""Seconds that a node may take to say whether it is there."""
_NONCES = 64


class Outcome(StrEnum):
    """What became of a question."""

    DONE = "done"
    """The list is as it was wanted, or only asked for."""
    UNFINISHED = "unfinished"
    """Not yet: ask again, here or elsewhere."""
    ELSEWHERE = "elsewhere"
    """This node cannot change anything: ask another one."""
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    STALE = "stale"
    """The nonce is used up: ask again with the one of this answer."""


class MembersQuestion(msgspec.Struct, frozen=True):
    """What an operator asks; without `add` and `remove` only for the list.

    Attributes:
        nonce: of an answer of this node; each serves for one change, so a
            recording of a change has no effect.
        wait: seconds for which the answer may be held back.
    """

    cluster: str
    nonce: str = ""
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    wait: float = 0.0


class MembersTold(msgspec.Struct, frozen=True):
    """
    Attributes:
        reason: why it is not done, or "".
        stage: what the node acts under.
        is_member: whether it is one.
        is_silent: whether it was started so lately that it may not take part.
        durable: whether it has a state_dir.
        durations: what all nodes must share: ttl ceiling, vote window, clock drift.
    """

    outcome: Outcome
    reason: str
    stage: Members
    nonce: str
    is_member: bool
    is_silent: bool
    durable: bool
    durations: tuple[float, float, float]

    @property
    def membership(self) -> Membership:
        stage = self.stage
        return Membership(stage.members, stage.joining, stage.retired, stage.epoch)


Ask = Callable[[str, MembersQuestion, float], Awaitable[MembersTold]]
"""Asks the node at an address, for at most so many seconds."""

_WITHOUT = (
    "{} has no state_dir: members are changed only where each one has. Stop all nodes, and start "
    "them with state_dir, and under a new cluster name"
)

_encode = msgspec.json.Encoder().encode
_question = msgspec.json.Decoder(MembersQuestion)


def is_member(address: str, stage: Members) -> bool:
    """Whether a node is in the list, or about to join or to leave it."""
    return address in stage.members or address in stage.joining


def check(told: MembersTold) -> None:
    """Raise what a node refused with, as if it had been refused here."""
    if told.outcome is Outcome.REFUSED:
        raise ConfigurationError(told.reason)
    if told.outcome is Outcome.UNSUPPORTED:
        raise NotSupported(told.reason)


def not_in_time(timeout: float, known: str) -> TimeoutError:
    """What to raise for a change that did not end in `timeout` seconds."""
    return TimeoutError(
        f"the members were not changed within {timeout:g} s: {known}. It may still come about: "
        "look at the list, and repeat the same change"
    )


class MemberList:
    """One node's part.

    Args:
        node: the node.
        act: has it decide something.
        wait_change: waits until something about it is different, or for some seconds;
            raises HandleClosed when the node is closed.
        ask: asks another node, as an operator does.
        complain: is told who sent what had no effect, and why.
    """

    def __init__(
        self,
        node: QuorumLease,
        settings: Settings,
        seals: Seals,
        chance: random.Random,
        now: Callable[[], float],
        act: Callable[[Callable[[float], list[Effect]]], None],
        wait_change: Callable[[float], Awaitable[None]],
        ask: Ask,
        complain: Callable[[str, str], None],
    ) -> None:
        self._node = node
        self._settings = settings
        self._seals = seals
        self._random = chance
        self._now = now
        self._act = act
        self._wait_change = wait_change
        self._ask = ask
        self._complain = complain
        self._nonces: dict[str, None] = {}
        # The node has one wish at a time.
        self._turn = asyncio.Lock()
        self._obstacle = ""

    # --- asked over HTTP ---

    async def answer(self, asked: Asked) -> Answer:
        """Answer an operator."""
        try:
            try:
                # Each command is another operator. A change that is repeated has a nonce used up.
                sealed = self._seals.open_request(
                    asked.headers, MEMBERS, frozenset({OPERATOR}), once=False
                )
            except OtherIncarnation:
                # Or closing the connection could overtake the answer.
                await asked.read()
                return self._sealed(asked, b"", 409)
            body = await asked.read()
            sealed.check(body)
            question = _question.decode(body)
        except Refused as error:
            self._complain(asked.came_from, str(error))
            return Answer(403)
        except UNREADABLE:
            self._complain(asked.came_from, "it cannot be read")
            return Answer(403)
        return self._sealed(asked, _encode(await self._answered(question)), 200)

    def _sealed(self, asked: Asked, body: bytes, status: int) -> Answer:
        return Answer(status, body, self._seals.answer(asked.headers, MEMBERS, body))

    async def _answered(self, question: MembersQuestion) -> MembersTold:
        cluster = self._settings.cluster
        if question.cluster != cluster:
            return self.told(Outcome.REFUSED, f"{self._node.id} is a node of cluster={cluster}")
        if not question.add and not question.remove:
            return self.told()
        if question.nonce not in self._nonces:
            return self.told(Outcome.STALE, "the nonce is used up")
        del self._nonces[question.nonce]
        try:
            return await self.change(
                question.add, question.remove, min(question.wait, LONGEST_WAIT)
            )
        except HandleClosed:
            return self.told(Outcome.ELSEWHERE, f"{self._node.id} is being closed")

    def told(self, outcome: Outcome = Outcome.DONE, reason: str = "") -> MembersTold:
        """What this node knows now."""
        node, timing = self._node, self._settings.timing
        nonce = f"{self._random.getrandbits(64):016x}"
        while len(self._nonces) >= _NONCES:
            del self._nonces[next(iter(self._nonces))]
        self._nonces[nonce] = None
        return MembersTold(
            outcome,
            reason,
            node.stage,
            nonce,
            is_member(node.id, node.stage),
            node.is_silent(self._now()),
            self._settings.state_dir is not None,
            (timing.lease_ceiling, timing.vote_window, timing.max_clock_drift),
        )

    # --- a change ---

    async def change(
        self, add: Collection[str], remove: Collection[str], seconds: float | None
    ) -> MembersTold:
        """Add and remove members, if it can be done within `seconds`; None: in any time."""
        self._obstacle = ""
        try:
            async with asyncio.timeout(seconds), self._turn:
                return await self._change(set(add), set(remove))
        except TimeoutError:
            return self.told(Outcome.UNFINISHED, self._how_far())
        except NotSupported as error:
            return self.told(Outcome.UNSUPPORTED, str(error))
        except ConfigurationError as error:
            return self.told(Outcome.REFUSED, str(error))

    async def _change(self, add: set[str], remove: set[str]) -> MembersTold:
        node = self._node
        proposed_in = -1
        try:
            while True:
                stage = node.stage
                if not stage.joining:
                    wanted = tuple(sorted({*stage.members, *add} - remove))
                    came_about = -1 < proposed_in < stage.epoch or (
                        not add and remove <= {*stage.retired}
                    )
                    if wanted == stage.members and came_about:
                        return self.told()
                    if not is_member(node.id, stage):
                        return self.told(Outcome.ELSEWHERE, f"{node.id} is no member")
                    if not node.reaches_quorum(self._now()):
                        # Who has heard of a later list answers to this one no more.
                        self._obstacle = (
                            f"{node.id} reaches no majority of the members that it knows of, "
                            "and may have missed a change"
                        )
                    elif never := sorted(remove - {*stage.members, *stage.retired}):
                        raise ConfigurationError(
                            f"{', '.join(never)} is no member, and never was: look at the list"
                        )
                    elif wanted == stage.members:
                        return self.told()
                    elif proposed_in != stage.epoch:
                        self._obstacle = await self._obstacle_to(stage, wanted)
                        if node.stage != stage:
                            continue
                        if not self._obstacle and self._propose(wanted):
                            proposed_in = stage.epoch
                await self._wait_change(self._settings.timing.heartbeat)
        finally:
            # Whoever wanted it has been told that it is not done, or has gone.
            node.stop_changing_members()

    def _propose(self, members: tuple[str, ...]) -> bool:
        """Whether the node could."""
        try:
            self._act(lambda now: self._node.change_members(members, now))
        except NotSupported as error:
            # All that answer have a state_dir, as they said: the node has to hear of it yet.
            self._obstacle = str(error)
            return False
        return True

    def _how_far(self) -> str:
        stage = self._node.stage
        if stage.joining:
            return f"a change to {', '.join(stage.joining)} is under way, and goes on by itself"
        return self._obstacle or "no majority of the present members has agreed to it"

    async def _obstacle_to(self, stage: Members, wanted: tuple[str, ...]) -> str:
        """What is to be waited for before the change can begin, or "".

        Raises:
            ConfigurationError, NotSupported: it can never begin.
        """
        node = self._node
        if self._settings.state_dir is None:
            raise NotSupported(_WITHOUT.format(node.id))
        joint_stage(stage, wanted)
        if not node.ready:
            return f"{node.id} was started a moment ago, and does not take part yet"
        new = [each for each in wanted if each not in stage.members]
        # Asked now: who died a moment ago would still count by what was heard of it.
        obstacles, alive = await asyncio.gather(
            asyncio.gather(*(self._obstacle_at(each, stage) for each in new)),
            asyncio.gather(*(self._is_alive(each) for each in stage.members)),
        )
        if any(obstacles):
            return "; ".join(each for each in obstacles if each)
        members = zip(stage.members, alive, strict=True)
        answering = [*new, *(each for each, is_alive in members if is_alive and each in wanted)]
        if not majority_of(wanted)(answering):
            raise ConfigurationError(
                f"of the members that would result ({', '.join(wanted)}) no majority answers, "
                f"only {', '.join(answering) or 'none'}: start others first, or remove others"
            )
        return ""

    async def _is_alive(self, address: str) -> bool:
        """Whether a member answers.

        Raises:
            NotSupported: it does, and has no state_dir.
        """
        if address == self._node.id:
            return True
        try:
            told = await self._ask(address, MembersQuestion(self._settings.cluster), _PATIENCE)
        except HandleClosed:
            raise
        except LeadershipError:
            return False
        if told.outcome is not Outcome.DONE or not told.is_member:
            return False
        if not told.durable:
            raise NotSupported(_WITHOUT.format(address))
        return True

    async def _obstacle_at(self, address: str, stage: Members) -> str:
        """The same, at a node that is to be added."""
        split_address(address)
        try:
            told = await self._ask(address, MembersQuestion(self._settings.cluster), _PATIENCE)
        except StoreUnavailable as error:
            return f"{error}: start it as a node that joins (join=1)"
        except HandleClosed:
            raise
        except LeadershipError as error:
            raise ConfigurationError(f"{address} cannot be added: {error}") from error
        check(told)
        if not told.durable:
            raise NotSupported(f"{address} has no state_dir: start it with one, and with join=1")
        if progress(told.stage) > progress(stage):
            return f"{address} knows of a later change"
        if told.is_member or not set(told.stage.members) & set(stage.members):
            raise ConfigurationError(
                f"{address} runs as a member of {', '.join(told.stage.members)}: "
                "start it as a node that joins these members (join=1), with an empty state_dir"
            )
        if told.durations != self.told().durations:
            raise ConfigurationError(
                f"{address} has another ttl_ceiling, vote_window or max_clock_drift than "
                f"{self._node.id}: start it with the same"
            )
        return f"{address} was started a moment ago, and is silent yet" if told.is_silent else ""
