"""Who is told to followers as leading, when what nodes say comes late."""

from __future__ import annotations

from leadership.backends._quorum_effects import LeaderSeen
from leadership.backends._quorum_leaders import Leaders
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import Quorum, first_stage
from leadership.backends._quorum_messages import Entry

from .simulation import draw


def entry(term: int) -> Entry:
    return Entry("key", "uid", term, 1.0, b"value")


def make_leaders() -> tuple[Leaders, Mail]:
    timing = draw(0).timing
    mail = Mail("n0", "i1", timing, Quorum("c", timing, first_stage(["n0", "n1", "n2"])))
    return Leaders(mail, longest=5.0, limit=100), mail


def told(mail: Mail) -> list[tuple[str, int] | None]:
    """The leaders that were told, and None for each time when there was none."""
    seen = [effect.leader for effect in mail.take_effects() if isinstance(effect, LeaderSeen)]
    return [None if leader is None else (leader.node, leader.term) for leader in seen]


def test_an_earlier_leader_is_not_told_after_a_later_one_that_is_gone() -> None:
    leaders, mail = make_leaders()
    leaders.note("n1", entry(5), 0.0)
    leaders.note("n2", entry(6), 0.1)
    leaders.clear("key", "n2", 6)
    leaders.note("n1", entry(5), 0.2)
    assert told(mail) == [("n1", 5), ("n2", 6), None]
    leaders.note("n1", entry(7), 0.3)
    leaders.tick(2.0)
    leaders.note("n2", entry(6), 2.1)
    assert told(mail) == [("n1", 7), None]


def test_an_older_value_of_a_term_is_not_told_after_a_newer_one() -> None:
    leaders, mail = make_leaders()
    newer = Entry("key", "uid", 5, 1.0, b"newer", proclaimed=2)
    leaders.note("n1", newer, 0.0)
    leaders.note("n1", Entry("key", "uid", 5, 1.0, b"older", proclaimed=1), 0.1)
    leader = leaders.leader("key")
    assert leader is not None
    assert leader.value == b"newer"
    assert told(mail) == [("n1", 5)]


def test_a_leader_that_gave_way_is_not_told_again() -> None:
    leaders, mail = make_leaders()
    leaders.note("n1", entry(5), 0.0)
    leaders.clear("key", "n1", 5)
    leaders.note("n1", entry(5), 0.1)
    assert told(mail) == [("n1", 5), None]


def test_a_leader_that_gave_way_before_it_was_heard_of_is_not_told() -> None:
    leaders, mail = make_leaders()
    leaders.clear("key", "n1", 5)
    leaders.note("n1", entry(5), 0.0)
    assert told(mail) == []


def test_a_leader_that_was_not_heard_of_for_a_while_is_told_again() -> None:
    leaders, mail = make_leaders()
    leaders.note("n1", entry(5), 0.0)
    leaders.tick(1.5)
    leaders.note("n1", entry(5), 2.0)
    assert told(mail) == [("n1", 5), None, ("n1", 5)]


def test_a_campaign_that_failed_hides_no_other_nodes_leader() -> None:
    leaders, mail = make_leaders()
    leaders.clear("key", "n2", 9)
    leaders.note("n1", entry(5), 0.0)
    assert told(mail) == [("n1", 5)]
