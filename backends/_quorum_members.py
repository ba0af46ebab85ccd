"""Who counts: member lists, their majorities, and the stages of a change.

A change goes from the old list over a joint stage, in which every decision
needs a majority of both lists, to the new list. A node grants only to
requests of its own stage, so

- decisions of neighbouring stages share an acceptor, by the majority that both need;
- decisions of the old and of the new stage share none, and are kept apart in
  time: the new stage begins only when a majority of the old members has been in
  the joint stage for as long as a promise can last. Whoever led in the old
  stage needed one of them, and has had no renewal from it since. What terms
  they know is carried into the new stage with the notice that begins it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from itertools import chain

from ..errors import ConfigurationError
from ._quorum_messages import Members
from ._quorum_timing import Timing


def majority_of(members: Collection[str]) -> Callable[[Collection[str]], bool]:
    """A test whether some nodes are more than half of `members`, whoever else is among them."""
    needed = len(members) // 2 + 1
    return lambda nodes: sum(node in members for node in nodes) >= needed


def first_stage(members: Iterable[str]) -> Members:
    """The stage that a cluster begins with."""
    return Members(0, _checked(members))


def joint_stage(stage: Members, members: Iterable[str]) -> Members:
    """The stage on the way to another member list.

    Raises:
        ConfigurationError: a change is under way, or an id comes back that was removed.
    """
    if stage.joining:
        raise ConfigurationError(
            f"a change to {', '.join(stage.joining)} is under way: wait until it is complete"
        )
    new = _checked(members)
    if new == stage.members:
        raise ConfigurationError("these are the members already")
    back = sorted(set(new) & set(stage.retired))
    if back:
        raise ConfigurationError(
            f"{', '.join(back)} was removed before, and its id is retired: use a new address"
        )
    return Members(stage.epoch, stage.members, new, stage.retired)


def final_stage(stage: Members) -> Members:
    """The stage that a joint one ends in."""
    removed = set(stage.members) - set(stage.joining)
    return Members(stage.epoch + 1, stage.joining, (), tuple(sorted({*stage.retired, *removed})))


def progress(stage: Members) -> tuple[int, int]:
    """Orders stages: a node only ever goes forward."""
    return stage.epoch, 1 if stage.joining else 0


def _checked(members: Iterable[str]) -> tuple[str, ...]:
    given = list(members)
    if not given or not all(given):
        raise ConfigurationError("the member list names nobody, or an empty id")
    if len(set(given)) != len(given):
        raise ConfigurationError(f"a member is listed twice: {', '.join(sorted(given))}")
    return tuple(sorted(given))


class Quorum:
    """Majorities of one stage.

    Attributes:
        everyone: all nodes that take part.
        configuration: hash of the cluster's name, the stage, and the durations that all share.
    """

    def __init__(self, cluster: str, timing: Timing, stage: Members) -> None:
        self.stage = stage
        self.everyone = tuple(sorted({*stage.members, *stage.joining}))
        lists = [stage.members, stage.joining] if stage.joining else [stage.members]
        self._lists = [frozenset(members) for members in lists]
        self._majorities = [majority_of(members) for members in self._lists]
        told = chain(
            (cluster, str(stage.epoch)),
            stage.members,
            ("joining",),
            stage.joining,
            map(repr, (timing.lease_ceiling, timing.vote_window, timing.max_clock_drift)),
        )
        self.configuration = blake2b("\n".join(told).encode(), digest_size=8).hexdigest()

    def is_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these nodes can decide. Members that never answer count in the size alone."""
        return all(majority(nodes) for majority in self._majorities)

    def meets_every_quorum(self, nodes: Collection[str]) -> bool:
        """Whether no majority of any list is without one of these nodes."""
        return not any(
            majority(members - set(nodes))
            for members, majority in zip(self._lists, self._majorities, strict=True)
        )
