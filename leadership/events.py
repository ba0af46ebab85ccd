"""What happened, as values: hooks get these, one after the other, on a thread of their own.

A hook is any callable that takes an event. It never delays a renewal: events
are queued, and when a hook is slower than the queue is long the oldest are
dropped and counted. `log` is the hook that is always there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

_logger = logging.getLogger("leadership")


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events.

    Attributes:
        key: the election or lock, or "" for what concerns the whole store.
        at: seconds on the store's clock.
    """

    key: str
    at: float


@dataclass(frozen=True, slots=True)
class Campaigning(Event):
    """The candidate wants to lead, and enters the election."""

    id: str


@dataclass(frozen=True, slots=True)
class Elected(Event):
    """A term began."""

    id: str
    token: int
    valid_until: float


@dataclass(frozen=True, slots=True)
class TermEnded(Event):
    """A term is over, and its work has been told; `reason` says why."""

    id: str
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Released(Event):
    """The store confirmed that our entry is gone."""

    id: str
    token: int


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """The candidate's run is over: it no longer contends."""

    id: str


@dataclass(frozen=True, slots=True)
class WorkOverran(Event):
    """The leader's code had not ended when the deadline passed: two may be at work now.

    The fencing token keeps its late writes out, where the resource checks it.
    """

    id: str
    token: int


@dataclass(frozen=True, slots=True)
class LeaderChanged(Event):
    """A follower was told of another leader; `value` is None for none."""

    value: str | None
    token: int | None


@dataclass(frozen=True, slots=True)
class LeaderUnroutable(Event):
    """Requests cannot be sent to the leader, for what it campaigns with is no address."""

    error: str


@dataclass(frozen=True, slots=True)
class StoreTrouble(Event):
    """A request failed; `retry_in` seconds from now it is tried again."""

    error: str
    attempt: int
    retry_in: float


@dataclass(frozen=True, slots=True)
class StoreRecovered(Event):
    """The store answers again after `attempts` failures."""

    attempts: int


@dataclass(frozen=True, slots=True)
class TtlGranted(Event):
    """The server granted another ttl than was asked for; the library obeys it."""

    asked: float
    granted: float


@dataclass(frozen=True, slots=True)
class LeaseRenewed(Event):
    """A lease was confirmed; `round_trip` seconds passed between send and answer.

    `key` is "" for a lease that several elections may share.
    """

    round_trip: float
    valid_until: float


@dataclass(frozen=True, slots=True)
class Unguarded(Event):
    """A guardian was wanted, and there is none: after a crash the key lapses by its ttl."""

    reason: str


@dataclass(frozen=True, slots=True)
class NestedElection(Event):
    """Two elections' keys contain each other, which this backend does not support well."""

    other: str


@dataclass(frozen=True, slots=True)
class PeerReady(Event):
    """This node of the peers backend takes part, after the silence that follows its start."""

    node: str


@dataclass(frozen=True, slots=True)
class PeerExposed(Event):
    """This node can be reached from other machines, and has no secret: anybody may speak to it."""

    node: str


@dataclass(frozen=True, slots=True)
class PeerAlarm(Event):
    """Two processes answer as `node`, or (`raised` False) no longer do."""

    node: str
    raised: bool


@dataclass(frozen=True, slots=True)
class PeerRefused(Event):
    """A message had no effect; the same is told once in a while, however often it comes."""

    sender: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerMembers(Event):
    """This node goes by another member list now.

    Attributes:
        members: the addresses of all members, sorted.
        joining: the list that follows, while the change to it is under way; else empty.
        votes: whether this node is one of them; once removed it never votes again.
    """

    node: str
    members: tuple[str, ...]
    joining: tuple[str, ...]
    votes: bool


@dataclass(frozen=True, slots=True)
class PeerMembersDiffer(Event):
    """This node was given another member list than its `state_dir` has, which it goes by."""

    node: str
    given: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """A hook was too slow; `count` events were not told."""

    count: int


Hook = Callable[[Event], None]

_LEVELS: dict[type[Event], int] = {
    WorkOverran: logging.ERROR,
    LeaderUnroutable: logging.ERROR,
    StoreTrouble: logging.WARNING,
    TtlGranted: logging.WARNING,
    NestedElection: logging.WARNING,
    Unguarded: logging.WARNING,
    EventsDropped: logging.WARNING,
    PeerAlarm: logging.ERROR,
    PeerExposed: logging.WARNING,
    PeerRefused: logging.WARNING,
    PeerReady: logging.INFO,
    PeerMembers: logging.INFO,
    PeerMembersDiffer: logging.WARNING,
    Elected: logging.INFO,
    TermEnded: logging.INFO,
    Released: logging.INFO,
    LeaderChanged: logging.INFO,
    StoreRecovered: logging.INFO,
}


def is_logged(event: Event) -> bool:
    """Whether `log` would write it, as logging is set up now."""
    return _logger.isEnabledFor(_level(event))


def log(event: Event) -> None:
    """The hook that writes each event to the logger `leadership`.

    The record carries the event as `leadership_event`, its name as
    `leadership_kind`, and each of its fields under the field's name with
    `leadership_` before it, such as `leadership_key` and `leadership_token`.
    """
    if is_logged(event):
        extra = {f"leadership_{each.name}": getattr(event, each.name) for each in fields(event)}
        extra |= {"leadership_event": event, "leadership_kind": type(event).__name__}
        _logger.log(_level(event), "%s", event, extra=extra)


def _level(event: Event) -> int:
    return _LEVELS.get(type(event), logging.DEBUG)
