"""One node's part in changes of the member list: deciding, going from stage to stage, telling."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import NotSupported
from ._quorum_acceptor import Acceptor
from ._quorum_change import Change
from ._quorum_decision import Decision
from ._quorum_effects import Ignored, MembersChanged
from ._quorum_mail import Mail
from ._quorum_members import Quorum, final_stage, joint_stage, progress
from ._quorum_messages import (
    Members,
    MembersAccept,
    MembersAccepted,
    MembersAnswer,
    MembersNotice,
    MembersPrepare,
    MembersPromise,
    Message,
)
from ._quorum_storage import Storage
from ._quorum_timing import Timing

_BEFORE_ALL = Members(0, ())
"""Takes nobody forward."""

Entered = Callable[[float], None]
"""Called when the node acts under another stage, with the time."""


class Membership:
    """Which stage the node acts under.

    Args:
        cluster: its name.
        is_ready: whether the node takes part.
        entered: called after each step to another stage.
    """

    def __init__(
        self,
        mail: Mail,
        timing: Timing,
        storage: Storage,
        acceptor: Acceptor,
        chance: random.Random,
        cluster: str,
        now: float,
        is_ready: Callable[[], bool],
        entered: Entered,
    ) -> None:
        self._mail = mail
        self._timing = timing
        self._storage = storage
        self._acceptor = acceptor
        self._random = chance
        self._cluster = cluster
        self._is_ready = is_ready
        self._entered = entered
        self._told_at: dict[str, float] = {}
        self._decision = self._new_decision()
        self._change = Change(mail, timing, now) if self.stage.joining else None

    @property
    def stage(self) -> Members:
        """The one that the node acts under."""
        return self._mail.quorum.stage

    @property
    def next_at(self) -> float:
        """When `tick` must be called, at the latest."""
        change_at = self._change.next_at if self._change is not None else math.inf
        return min(change_at, self._decision.next_at)

    @property
    def handlers(self) -> dict[type[Message], Callable[[Any, float], None]]:
        """Of the messages that are about members."""
        return {
            MembersPrepare: self._on_prepare,
            MembersPromise: self._on_promise,
            MembersAccept: self._on_accept,
            MembersAccepted: self._on_accepted,
            MembersNotice: self._on_notice,
            MembersAnswer: self._on_answer,
        }

    def tick(self, now: float) -> None:
        """Time has passed."""
        change = self._change
        if change is not None and change.tick(now):
            self._go_to(final_stage(self.stage), change.floor, change.terms, now)
        self._decision.tick(now)

    def change(self, members: Iterable[str], now: float) -> None:
        """Begin a change, once the present members have decided for it.

        Raises:
            NotSupported: a member is not known to store its state.
            ConfigurationError: another change is under way, or an id is retired.
        """
        is_member = self._mail.id in self._mail.quorum.everyone
        if not self._storage.durable or not is_member or not self._is_ready():
            raise NotSupported("ask a member that is ready and has a state_dir")
        joining = joint_stage(self.stage, members).joining
        if without := self._mail.not_durable(joining, now):
            raise NotSupported(
                f"not known to have a state_dir: {', '.join(without)}; a cluster without is "
                "changed by stopping all its nodes and starting under a new cluster name"
            )
        self._decision.propose(joining, now)

    def give_up(self) -> None:
        """Propose it no more; what was accepted may still come about."""
        self._decision.give_up()

    def tell(self, receiver: str, now: float) -> None:
        """Whoever acts under another configuration may have missed a change, or we have."""
        if now < self._told_at.get(receiver, -math.inf) + self._timing.heartbeat:
            return
        self._told_at[receiver] = now
        header = self._mail.header(receiver, self._mail.next_number())
        if self._is_ready():
            stage, terms = self.stage, self._acceptor.led_terms()
        else:
            # It has no terms to tell with its stage, so it only asks for the other's.
            stage, terms = _BEFORE_ALL, {}
        self._mail.send(MembersNotice(header, stage, self._acceptor.floor, terms))

    # --- deciding ---

    def _new_decision(self) -> Decision:
        return Decision(self._mail, self._timing, self._storage, self._random, self._begin)

    def _begin(self, joining: tuple[str, ...], now: float) -> None:
        if not self.stage.joining:
            self._go_to(joint_stage(self.stage, joining), 0, {}, now)

    def _on_prepare(self, message: MembersPrepare, now: float) -> None:
        if self._decides(message):
            self._decision.on_prepare(message, now)

    def _on_promise(self, answer: MembersPromise, now: float) -> None:
        self._decision.on_promise(answer, now)

    def _on_accept(self, message: MembersAccept, now: float) -> None:
        if self._decides(message):
            self._decision.on_accept(message, now)

    def _on_accepted(self, answer: MembersAccepted, now: float) -> None:
        self._decision.on_accepted(answer, now)

    def _decides(self, message: Message) -> bool:
        everyone = self._mail.quorum.everyone
        return (
            self._storage.durable
            and not self.stage.joining
            # With another stage on its way to the disk, what was accepted is no longer kept.
            and self._storage.latest_stage == self.stage
            and self._mail.id in everyone
            and message.header.sender in everyone
        )

    # --- stages ---

    def _on_notice(self, message: MembersNotice, now: float) -> None:
        self._catch_up(message, now)
        if not self._is_ready():
            # The next list begins with the terms that are told here: who has yet
            # to learn what it forgot must not be counted among those who told.
            return
        self._mail.send(
            MembersAnswer(
                self._mail.reply_header(message.header),
                self.stage,
                self._acceptor.floor,
                self._acceptor.led_terms(),
            )
        )

    def _on_answer(self, answer: MembersAnswer, now: float) -> None:
        to_this_run = answer.header.receiver_incarnation == self._mail.incarnation
        if self._change is not None and to_this_run:
            self._change.answered(answer, now)
        self._catch_up(answer, now)

    def _catch_up(self, message: MembersNotice | MembersAnswer, now: float) -> None:
        if progress(message.stage) > progress(self.stage):
            self._go_to(message.stage, message.floor, message.terms, now)

    def _go_to(self, stage: Members, floor: int, terms: dict[str, int], now: float) -> None:
        if not self._storage.durable:
            reason = "the members change, but this node has no state_dir"
            self._mail.emit(Ignored(self._mail.id, reason))
            return

        def enter(now: float) -> None:
            if progress(stage) > progress(self.stage):
                self._act_under(stage, floor, terms, now)

        self._storage.keep_stage(stage, max((floor, *terms.values())), enter, now)

    def _act_under(self, stage: Members, floor: int, terms: dict[str, int], now: float) -> None:
        self._mail.quorum = Quorum(self._cluster, self._timing, stage)
        self._acceptor.merge(floor, terms, now)
        self._decision = self._new_decision()
        self._change = Change(self._mail, self._timing, now) if stage.joining else None
        self._entered(now)
        self._mail.emit(MembersChanged(stage))
