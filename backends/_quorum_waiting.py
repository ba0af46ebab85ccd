"""Who waits to lead, and where: hints by which a leader that gives way names who is next.

Each node keeps the contenders that wait on it, key by key, and a version that
rises with each change. A heartbeat says up to which version the sender has
heard of the receiver's; its answer bears what changed since, which is nothing
as a rule, however many keys there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ._quorum_mail import Mail
from ._quorum_messages import Heartbeat, HeartbeatAnswer, Queue, Waiting
from ._quorum_timing import Timing

_TOLD_AT_ONCE = 512
"""Contenders that one answer names, or those of one key; the next answer names the next ones."""
_TOLD_OF_A_KEY = 128
_KEPT = 10_000
"""Keys on which nobody waits any more are forgotten when there are more than so many."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A contender that waits, as far as this node was told. A hint.

    Attributes:
        node: id of its node.
        uid: unique on that node.
        name: what its user calls it; may repeat, or be empty.
        since: when it began to wait, on the clock of the node that asks.
        not_before: on that clock; it was named, and is not to be named again before, unless
            the user asks for it.
    """

    node: str
    uid: str
    name: str
    since: float
    not_before: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Own:
    version: int
    waiters: tuple[Waiter, ...]


@dataclass(slots=True)
class _Heard:
    incarnation: str
    version: int = 0
    waiters: dict[str, tuple[Waiter, ...]] = field(default_factory=dict)


class Queues:
    """One per node: its own contenders that wait, and what it heard of the others'."""

    def __init__(self, mail: Mail, timing: Timing) -> None:
        self.version = 0
        self._mail = mail
        self._timing = timing
        # In the order of their versions.
        self._own: dict[str, _Own] = {}
        self._heard: dict[str, _Heard] = {}
        self._prune_at = _KEPT

    # --- this node's own ---

    def note(self, key: str, waiters: tuple[Waiter, ...]) -> None:
        """So many wait here for the key now, in their order."""
        waiters = waiters[:_TOLD_OF_A_KEY]
        own = self._own.get(key)
        if waiters == (() if own is None else own.waiters):
            return
        self.version += 1
        self._own.pop(key, None)
        self._own[key] = _Own(self.version, waiters)
        if len(self._own) > self._prune_at:
            self._own = {each: own for each, own in self._own.items() if own.waiters}
            self._prune_at = max(_KEPT, 2 * len(self._own))

    def news_for(self, heartbeat: Heartbeat, now: float) -> tuple[int, tuple[Queue, ...]]:
        """What changed after the version that the sender heard, and the one that it hears now."""
        to_this_run = heartbeat.header.receiver_incarnation == self._mail.incarnation
        version = heartbeat.heard if to_this_run else 0
        changed: list[tuple[str, _Own]] = []
        for key, own in reversed(self._own.items()):
            if own.version <= version <= self.version:
                break
            changed.append((key, own))
        queues: list[Queue] = []
        told, room = version, _TOLD_AT_ONCE
        for key, own in reversed(changed):
            room -= max(1, len(own.waiters))
            if queues and room < 0:
                return told, tuple(queues)
            told = own.version
            waiting = tuple(Waiting(w.uid, w.name, max(0.0, now - w.since)) for w in own.waiters)
            queues.append(Queue(key, waiting))
        return self.version, tuple(queues)

    # --- the others' ---

    def heard(self, node: str, incarnation: str) -> int:
        """Up to which version this run of the node was heard; 0: nothing of it."""
        heard = self._heard.get(node)
        return heard.version if heard is not None and heard.incarnation == incarnation else 0

    def learn(self, answer: HeartbeatAnswer, now: float) -> None:
        """Another node told of those that wait on it."""
        sender, incarnation = answer.header.sender, answer.header.incarnation
        if sender == self._mail.id:
            return
        heard = self._heard.get(sender)
        if heard is None or heard.incarnation != incarnation:
            heard = self._heard[sender] = _Heard(incarnation)
        if answer.queued <= heard.version:
            return
        heard.version = answer.queued
        for queue in answer.queues:
            known = queue.key in heard.waiters or len(heard.waiters) < _KEPT
            if queue.waiting and known:
                heard.waiters[queue.key] = tuple(
                    Waiter(sender, each.uid, each.name, now - each.waited)
                    for each in queue.waiting[:_TOLD_OF_A_KEY]
                )
            else:
                heard.waiters.pop(queue.key, None)

    def remove(self, node: str, key: str, uid: str) -> None:
        """That contender of another node led: it waits no more."""
        heard = self._heard.get(node)
        waiters = None if heard is None else heard.waiters.get(key)
        if heard is not None and waiters is not None:
            heard.waiters[key] = tuple(waiter for waiter in waiters if waiter.uid != uid)

    def named(self, named: Waiter, key: str, now: float) -> None:
        """The leader gave way to it; if it still waits then, it could not come, or was not told."""
        heard = self._heard.get(named.node)
        if heard is not None:
            again = replace(named, not_before=now + self._timing.lease_ceiling)
            heard.waiters[key] = tuple(
                again if waiter.uid == named.uid else waiter
                for waiter in heard.waiters.get(key, ())
            )

    @property
    def stamp(self) -> object:
        """Differs from before, where this node was told of anything new."""
        heard = [(node, each.incarnation, each.version) for node, each in self._heard.items()]
        return self.version, tuple(heard)

    def keys(self) -> set[str]:
        """The keys that somebody waits for, as far as this node was told."""
        heard = (each.waiters.keys() for each in self._heard.values())
        return {key for key, own in self._own.items() if own.waiters}.union(*heard)

    def waiting(self, key: str, now: float) -> list[Waiter]:
        """Who waits to lead, on this node and on those that answer; who began first at the head.

        Of two that began within a heartbeat or so of each other, either may be first.
        """
        own = self._own.get(key)
        waiters = [] if own is None else list(own.waiters)
        lately = now - 2 * self._timing.heartbeat
        for node, heard in self._heard.items():
            peer = self._mail.peer(node)
            takes_part = peer.ready and node in self._mail.quorum.everyone
            if takes_part and peer.answered_at >= lately:
                waiters += heard.waiters.get(key, ())
        return sorted(waiters, key=lambda waiter: (waiter.since, waiter.node))
