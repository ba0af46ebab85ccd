"""What peers say to each other: values that msgspec encodes as they are, in JSON or otherwise.

`msgspec.json.Encoder().encode(message)` and
`msgspec.json.Decoder(Message, strict=True).decode(body)` are the codec. The
names of the fields are the wire format of version `WIRE_VERSION`.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from ..checks import LONGEST_KEY

WIRE_VERSION = 1
SPOKEN_VERSIONS = frozenset({WIRE_VERSION})
"""The versions that this node understands: its own, and its neighbours as they come."""

VALUE = 1024
"""Bytes of a leader's value: each heartbeat after a restart carries them all."""

# A member that is out of its mind must not fill the memory of the others: what is longer
# cannot be read.
Name = Annotated[str, Meta(max_length=LONGEST_KEY)]
Value = Annotated[bytes, Meta(max_length=VALUE)]


class Owner(NamedTuple):
    """Who holds a vote or a promise.

    Attributes:
        node: the node's id.
        incarnation: which run of that node; a restarted node is another owner.
        uid: which contender on it.
    """

    node: str
    incarnation: str
    uid: str


class Header(Struct, frozen=True):
    """On each message.

    Attributes:
        version: of the wire format.
        configuration: hash of the membership and of the durations that all share.
        sender: id of the sending node.
        incarnation: random, chosen by the sender at its start.
        receiver: id of the node that it is meant for.
        receiver_incarnation: which run of it, as far as the sender knows; else "".
        number: counts the sender's requests; an answer bears the number of its request.
    """

    version: int
    configuration: str
    sender: str
    incarnation: str
    receiver: str
    receiver_incarnation: str
    number: int


class Message(Struct, frozen=True, tag=True, tag_field="kind"):
    """What all messages have."""

    header: Header


class Request(Message, frozen=True):
    """Wants an answer."""


class Answer(Message, frozen=True):
    """Bears the number of the request that it answers."""


class Entry(Struct, frozen=True):
    """A key that the sender leads.

    Attributes:
        proclaimed: rises with each value of the term, so that a late message is told as one.
    """

    key: Name
    uid: Name
    term: int
    ttl: float
    value: Value
    proclaimed: int = 0


class Ticket(Struct, frozen=True):
    """Proof that a term was given up by its own leader, and for whom.

    Attributes:
        key, node, incarnation, uid, term: the term that ended.
        successor: id of the node that may campaign at once, or "".
        successor_incarnation: which run of it.
        configuration: hash of the configuration that it was written under.
        seal: the driver's: a MAC over the rest, so that the successor can show the ticket on.
    """

    key: Name
    node: str
    incarnation: str
    uid: Name
    term: int
    successor: str
    successor_incarnation: str
    configuration: str
    seal: str = ""

    @property
    def owner(self) -> Owner:
        return Owner(self.node, self.incarnation, self.uid)


class PreVote(Request, frozen=True):
    """Would you vote for me? Changes nothing.

    Attributes:
        established: the term follows one that no majority can be had without.
    """

    key: Name
    uid: Name
    term: int
    established: bool


class PreVoteAnswer(Answer, frozen=True):
    """
    Attributes:
        granted: such a vote would be granted now.
        reason: why not, or "".
        term: the highest that the acceptor knows for the key.
        remaining: seconds that a promise to another still lasts.
        rival: another contender asked lately.
    """

    key: Name
    granted: bool
    reason: str
    term: int
    remaining: float
    rival: bool


class Vote(Request, frozen=True):
    """Vote for me in this term; with a ttl, promise me the lease in the same step.

    Attributes:
        ttl: seconds; 0 asks for the vote alone.
        established: as in `PreVote`.
        ticket: of the leader that gave way to the sender, or None.
    """

    key: Name
    uid: Name
    term: int
    ttl: float
    established: bool
    ticket: Ticket | None


class VoteAnswer(Answer, frozen=True):
    """
    Attributes:
        promised: seconds of lease granted with the vote, from its receipt on; 0: none asked for.
    """

    key: Name
    granted: bool
    reason: str
    term: int
    remaining: float
    promised: float


class Lease(Request, frozen=True):
    """A majority voted for me: promise me the first lease."""

    key: Name
    uid: Name
    term: int
    ttl: float


class LeaseAnswer(Answer, frozen=True):
    """
    Attributes:
        promised: seconds, counted from the receipt of the request.
    """

    key: Name
    granted: bool
    reason: str
    term: int
    promised: float


class Heartbeat(Request, frozen=True):
    """I am here, and I lead these keys: renew my leases on all of them.

    Attributes:
        base: the version of the sender's key set that the changes apply to; 0: they are the whole.
        target: the version that results.
        digest: of the resulting set, so that a difference is noticed.
        changes: entries new or changed since `base`.
        removed: keys no longer led.
        heard: up to which version the sender knows who waits on the receiver.
    """

    base: int
    target: int
    digest: int
    changes: tuple[Entry, ...]
    removed: tuple[str, ...]
    heard: int = 0


class Waiting(Struct, frozen=True):
    """A contender that waits on the sender.

    Attributes:
        uid: unique on the sender.
        name: what its user calls it, or "".
        waited: seconds.
    """

    uid: Name
    name: Name
    waited: float


class Queue(Struct, frozen=True):
    """All that wait for a key on the sender, in their order; empty: nobody does any more."""

    key: Name
    waiting: tuple[Waiting, ...]


class HeartbeatAnswer(Answer, frozen=True):
    """
    Attributes:
        target: the version of the sender's key set that is known now; 0: send the whole.
        ceiling: no promise was given for longer than this many seconds.
        refused: each key whose lease was not granted; all others of that version were.
        ready: the answering node takes part (is not recovering).
        durable: it stores its state.
        queued: the version of who waits on the answering node that is known with `queues`.
        queues: what changed in that since the version that the heartbeat named. A hint.
    """

    target: int
    ceiling: float
    refused: tuple[str, ...]
    ready: bool
    durable: bool
    queued: int = 0
    queues: tuple[Queue, ...] = ()


class Release(Request, frozen=True):
    """The term of this ticket has ended, by the will of its leader.

    Attributes:
        contender: which one of the successor node's is meant; "": its first. A hint.
    """

    ticket: Ticket
    contender: str = ""


class ReleaseAnswer(Answer, frozen=True):
    """The release was noted."""

    key: Name
    term: int


class Announcement(Request, frozen=True):
    """I lead this key now: a hint for followers, which promises nothing and wants no answer."""

    entry: Entry


class Recovery(Request, frozen=True):
    """I was restarted: which terms do you know?"""


class RecoveryAnswer(Answer, frozen=True):
    """
    Attributes:
        ready: the answering node has its memory: it is not recovering itself.
        floor: the highest term of all keys that it no longer knows one by one.
        terms: the highest term of each key.
        after_you: this run took no part before it heard from the run that asks.
    """

    ready: bool
    floor: int
    terms: dict[str, int]
    after_you: bool


class Members(Struct, frozen=True):
    """A stage of the membership.

    Attributes:
        epoch: rises by one with each change.
        members: node ids, sorted.
        joining: the member list that is to follow, while the change is under way; else empty.
        retired: ids that were removed, for good.
    """

    epoch: int
    members: tuple[str, ...]
    joining: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()


Ballot = tuple[int, str]
"""Orders the attempts to decide on a member list: a count, then the proposer's id."""


class MembersPrepare(Request, frozen=True):
    """I want to propose the next member list in this ballot: accept no lower one any more."""

    ballot: Ballot


class MembersPromise(Answer, frozen=True):
    """
    Attributes:
        granted: no lower ballot will be accepted.
        promised: the highest ballot that was promised.
        accepted_in: the ballot that `joining` was accepted in.
        joining: the list that was accepted, or empty.
    """

    granted: bool
    promised: Ballot
    accepted_in: Ballot
    joining: tuple[str, ...]


class MembersAccept(Request, frozen=True):
    """Accept this as the next member list."""

    ballot: Ballot
    joining: tuple[str, ...]


class MembersAccepted(Answer, frozen=True):
    """
    Attributes:
        granted: it was accepted.
    """

    granted: bool


class MembersNotice(Request, frozen=True):
    """The membership has come to this stage. Told whatever configuration the receiver is in.

    Attributes:
        floor, terms: once a change is complete, what a majority of the old members knew.
    """

    stage: Members
    floor: int
    terms: dict[str, int]


class MembersAnswer(Answer, frozen=True):
    """
    Attributes:
        stage: the stage that the answering node acts under.
        floor: the highest term of the keys that it no longer knows one by one.
        terms: of each key, the highest term that may have been led.
    """

    stage: Members
    floor: int
    terms: dict[str, int]


AnyMessage = (
    PreVote
    | PreVoteAnswer
    | Vote
    | VoteAnswer
    | Lease
    | LeaseAnswer
    | Heartbeat
    | HeartbeatAnswer
    | Release
    | ReleaseAnswer
    | Announcement
    | Recovery
    | RecoveryAnswer
    | MembersPrepare
    | MembersPromise
    | MembersAccept
    | MembersAccepted
    | MembersNotice
    | MembersAnswer
)
"""The type to decode."""
