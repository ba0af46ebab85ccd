"""What a node asks its driver to do. Effects are carried out in their order."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from ._quorum_messages import Ballot, Members, Message


class Proposal(Struct, frozen=True):
    """What a node promised and accepted in deciding on the member list after its present one.

    Attributes:
        promised: nothing in a lower ballot is accepted.
        accepted_in: the ballot in which `joining` was accepted.
        joining: the accepted list, or empty.
    """

    promised: Ballot = (0, "")
    accepted_in: Ballot = (0, "")
    joining: tuple[str, ...] = ()


class StoredState(Struct, frozen=True):
    """What a node with a `state_dir` must find again after a restart.

    Attributes:
        highest_term: of all votes it ever granted, and of what a member list began with.
        lease_ceiling: the longest promise that it may have given, in seconds.
        stage: the membership that it acts under.
        proposal: its part in deciding on the next one.
    """

    highest_term: int
    lease_ceiling: float
    stage: Members
    proposal: Proposal = Proposal()


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message to that node, once, without waiting for it."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Persist:
    """Write this state, with fsync, then call `node.persisted(number, succeeded, now)`.

    What depends on it comes out of that call, so other effects need not wait.
    Writes are done in order; only the last one matters once it is done.
    """

    number: int
    state: StoredState


@dataclass(frozen=True, slots=True)
class Elected:
    """The contender leads `key`, until `valid_until` on the node's clock unless renewed."""

    key: str
    uid: str
    term: int
    valid_until: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """The term is valid until this later moment, by promises asked for at `sent_at`."""

    key: str
    uid: str
    term: int
    valid_until: float
    sent_at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The term, or the contender's place in the queue, ended without its asking."""

    key: str
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """After `resign` or `withdraw`: others can lead now."""

    key: str
    uid: str


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, as far as this node was told. A hint.

    Attributes:
        node: id of the leading node.
        uid: which contender on it.
        value: what it proclaimed.
        term: the fencing token.
        seen_at: when it was last heard of, on this node's clock.
        proclaimed: rises with each value of the term.
    """

    node: str
    uid: str
    value: bytes
    term: int
    seen_at: float
    proclaimed: int = 0


@dataclass(frozen=True, slots=True)
class LeaderSeen:
    """Another leader or value, or None: the key has no leader that this node knows of."""

    key: str
    leader: Leader | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The node takes part: its silence after the start is over, and it knows the terms."""


@dataclass(frozen=True, slots=True)
class TwoIncarnations:
    """Two processes answer as `node`, or (`raised` False) no longer do.

    Neither is granted anything, nor counted, in between.
    """

    node: str
    raised: bool


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The node acts under this stage of the membership from now on."""

    stage: Members


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message had no effect. For a log, rate-limited."""

    sender: str
    reason: str


Effect = (
    Send
    | Persist
    | Elected
    | Renewed
    | Lost
    | Released
    | LeaderSeen
    | Ready
    | TwoIncarnations
    | MembersChanged
    | Ignored
)
