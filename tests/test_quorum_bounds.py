"""What one member says, however much, fills no other member's memory."""

from __future__ import annotations

import math

import msgspec
import pytest

from leadership.backends._quorum_effects import Send
from leadership.backends._quorum_holdings import digest
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_messages import (
    VALUE,
    Announcement,
    AnyMessage,
    Entry,
    Header,
    Heartbeat,
    HeartbeatAnswer,
    Message,
)
from leadership.backends._quorum_timing import Timing
from leadership.checks import LONGEST_KEY, checked_key
from leadership.errors import ConfigurationError

from .quorum_worlds import QuietWorld

LIMIT = 10
"""Keys that a member keeps; of another it hears twice as many."""


def node_among_three() -> QuorumLease:
    world = QuietWorld(3, make_node=lambda **given: QuorumLease(**given, keys_limit=LIMIT))
    world.start_all()
    return world.node("n1")


def entry(number: int, ttl: float = 1.0) -> Entry:
    return Entry(f"job/{number}", "1", 1, ttl, b"")


def header(node: QuorumLease, number: int) -> Header:
    return Header(1, node.configuration, "n0", "mad", node.id, node.incarnation, number)


def answer_to(node: QuorumLease, message: Message, now: float) -> HeartbeatAnswer:
    sent = [effect.message for effect in node.receive(message, now) if isinstance(effect, Send)]
    (answer,) = (each for each in sent if isinstance(each, HeartbeatAnswer))
    return answer


def all_of(entries: list[Entry]) -> int:
    combined = 0
    for each in entries:
        combined ^= digest(each)
    return combined


def test_of_a_member_that_says_it_leads_more_keys_than_there_can_be_nothing_is_kept() -> None:
    node = node_among_three()
    told: list[Entry] = []
    for number in range(2 * LIMIT + 1):
        told.append(entry(number))
        base, version = number, number + 1
        news = Heartbeat(header(node, version), base, version, all_of(told), (told[-1],), (), 0)
        answer = answer_to(node, news, 100.0)
        full = number == 2 * LIMIT
        assert answer.target == (0 if full else version)
    assert not node._granting._key_sets["n0"].entries


def test_who_announces_key_after_key_is_heard_up_to_a_limit() -> None:
    node = node_among_three()
    for number in range(10 * LIMIT):
        node.receive(Announcement(header(node, number + 1), entry(number)), 100.0)
    assert len(node.leaders._known) == 2 * LIMIT


def test_a_leader_that_claims_a_ttl_without_end_is_forgotten_when_it_falls_silent() -> None:
    node = node_among_three()
    node.receive(Announcement(header(node, 1), entry(0, ttl=math.inf)), 100.0)
    assert node.leaders.leader("job/0") is not None
    node.tick(100.0 + node.timing.lease_ceiling)
    assert node.leaders.leader("job/0") is None


@pytest.mark.parametrize(
    "long",
    [
        Entry("k" * (LONGEST_KEY + 1), "1", 1, 1.0, b""),
        Entry("key", "u" * (LONGEST_KEY + 1), 1, 1.0, b""),
        Entry("key", "1", 1, 1.0, b"v" * (VALUE + 1)),
    ],
)
def test_what_is_longer_than_any_user_may_give_cannot_be_read(long: Entry) -> None:
    message = Announcement(header(node_among_three(), 1), long)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(message), type=AnyMessage)


def test_the_longest_key_that_a_user_may_give_can_be_read() -> None:
    with pytest.raises(ConfigurationError, match="1001 characters"):
        checked_key("k" * (LONGEST_KEY + 1))
    message = Announcement(
        header(node_among_three(), 1),
        Entry(checked_key("ü" * LONGEST_KEY), "1", 1, 1.0, b"v" * VALUE),
    )
    assert msgspec.json.decode(msgspec.json.encode(message), type=AnyMessage) == message


@pytest.mark.parametrize("name", ["wall_clock_skew", "wall_clock_limit", "earlier_lease_ceiling"])
def test_a_duration_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Timing(**{name: math.nan})
