"""The peers core, rule by rule: schedules that a hand wrote."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgspec
import pytest

from leadership.backends._quorum_acceptor import Acceptor
from leadership.backends._quorum_effects import (
    LeaderSeen,
    Lost,
    Persist,
    Ready,
    Released,
    Renewed,
    Send,
    TwoIncarnations,
)
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_messages import (
    Announcement,
    AnyMessage,
    Entry,
    Heartbeat,
    HeartbeatAnswer,
    Lease,
    Message,
    Owner,
    PreVote,
    Release,
    Ticket,
    Vote,
    VoteAnswer,
)
from leadership.backends._quorum_timing import FAR_AHEAD, Timing, floor_term
from leadership.errors import ConfigurationError, NotLeader

from .quorum_worlds import DELAY, QuietWorld
from .simulation import START
from .simulation_faults import YEARS

A, B = Owner("a", "1", "x"), Owner("b", "1", "y")


def make_acceptor(limit: int = 10) -> Acceptor:
    return Acceptor(Timing(), lambda: START, limit)


def ticket_of(owner: Owner, term: int, key: str = "key") -> Ticket:
    return Ticket(key, owner.node, owner.incarnation, owner.uid, term, "", "", "")


# --- durations ---


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heartbeat": 0}, "heartbeat"),
        ({"lease_ceiling": -1}, "lease_ceiling"),
        ({"lease_ceiling": 60}, "at most 30"),
        ({"earlier_lease_ceiling": 60.0}, "at most 30"),
        ({"vote_window": 6}, "vote_window"),
        ({"max_clock_drift": 0.6}, "max_clock_drift"),
        ({"heartbeat": 2}, "three lost heartbeats"),
        ({"wall_clock_limit": 1}, "wall_clock_limit"),
        ({"wall_clock_skew": -1}, "wall_clock_skew"),
    ],
)
def test_durations_that_contradict_each_other_are_refused(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Timing(**changes)


@pytest.mark.parametrize("ttl", [0.5, 6.0])
def test_a_ttl_out_of_bounds_is_refused_with_the_bound(ttl: float) -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        Timing().check_ttl(ttl)


def test_the_leader_believes_for_less_than_the_slowest_promise_lasts() -> None:
    timing = Timing(max_clock_drift=0.05, guard=0.001)
    on_slow_clock = timing.validity(2.0) / (1 - 0.05)
    on_fast_clock = 2.0 / (1 + 0.05)
    assert on_slow_clock < on_fast_clock


def test_silence_covers_the_longest_promise_that_may_have_been_given() -> None:
    timing = Timing(lease_ceiling=2.0, earlier_lease_ceiling=10.0)
    assert timing.silence(None) > 10 + timing.vote_window
    assert timing.silence(20.0) > 20 + timing.vote_window
    assert timing.silence(1.0) < 4


# --- promises ---


def test_no_vote_and_no_lease_while_a_promise_to_another_lasts() -> None:
    acceptor = make_acceptor()
    assert acceptor.lease("key", A, 5, 1.0, 1, 0.0).granted
    assert not acceptor.vote("key", B, 6, 0.5).granted
    assert not acceptor.lease("key", B, 6, 1.0, 1, 0.5).granted
    refused = acceptor.pre_vote("key", B, 6, 0.5)
    assert (refused.granted, refused.remaining) == (False, 0.5)
    assert acceptor.vote("key", B, 6, 1.0).granted


def test_one_vote_per_term() -> None:
    acceptor = make_acceptor()
    assert acceptor.vote("key", A, 5, 0.0).granted
    assert not acceptor.vote("key", B, 5, 0.0).granted
    assert not acceptor.lease("key", B, 5, 1.0, 1, 0.0).granted
    assert not acceptor.vote("key", B, 4, 0.0).granted
    assert acceptor.vote("key", B, 6, 0.0).granted
    assert not acceptor.lease("key", A, 5, 1.0, 1, 0.0).granted


def test_a_promise_is_never_shortened() -> None:
    acceptor = make_acceptor()
    acceptor.lease("key", A, 5, 3.0, 1, 0.0)
    acceptor.lease("key", A, 5, 1.0, 2, 0.0)
    assert not acceptor.vote("key", B, 6, 2.9).granted


def test_a_promise_tells_what_it_is_and_is_never_over_the_ceiling() -> None:
    assert make_acceptor().lease("key", A, 5, 60.0, 1, 0.0).promised == Timing().lease_ceiling


def test_a_repeated_or_overtaken_request_extends_no_promise() -> None:
    acceptor = make_acceptor()
    acceptor.lease("key", A, 5, 1.0, 2, 0.0)
    assert not acceptor.lease("key", A, 5, 1.0, 2, 0.9).granted
    assert not acceptor.lease("key", A, 5, 1.0, 1, 0.9).granted
    assert acceptor.vote("key", B, 6, 1.0).granted


def test_a_released_term_is_closed_also_where_it_had_no_promise() -> None:
    for promised in (True, False):
        acceptor = make_acceptor()
        if promised:
            acceptor.lease("key", A, 5, 1.0, 1, 0.0)
        assert acceptor.release(ticket_of(A, 5), 0.1)
        assert not acceptor.lease("key", A, 5, 1.0, 2, 0.2).granted
        assert acceptor.vote("key", B, 6, 0.2).granted


def test_a_release_clears_exactly_its_own_promise() -> None:
    acceptor = make_acceptor()
    acceptor.lease("key", A, 5, 1.0, 1, 0.0)
    assert not acceptor.release(ticket_of(B, 5), 0.1)
    assert not acceptor.release(ticket_of(B, 6), 0.1)
    assert not acceptor.release(ticket_of(A, 4), 0.1)
    assert not acceptor.vote("key", B, 7, 0.2).granted
    assert acceptor.lease("key", A, 5, 1.0, 2, 0.2).granted


def test_terms_far_ahead_are_refused_unless_the_node_stands_there_already() -> None:
    acceptor = make_acceptor()
    far = floor_term(START + YEARS)
    assert not acceptor.vote("key", A, far, 0.0).granted
    assert acceptor.vote("key", A, far, 0.0, established=True).granted
    assert acceptor.vote("key", B, far + FAR_AHEAD, 0.0).granted
    assert not acceptor.vote("key", A, far + 3 * FAR_AHEAD, 0.0).granted


def test_a_key_more_than_the_limit_is_refused_and_idle_ones_leave_a_floor() -> None:
    acceptor = make_acceptor(limit=2)
    assert acceptor.vote("one", A, 7, 0.0).granted
    assert acceptor.lease("two", A, 5, 3.0, 1, 0.0).granted
    assert not acceptor.vote("three", A, 9, 0.0).granted
    acceptor.forget_idle(1.0, 2.0)
    assert set(acceptor.records) == {"two"}
    assert not acceptor.vote("one", B, 7, 2.0).granted
    assert acceptor.vote("three", B, 8, 2.0).granted is False
    acceptor.forget_idle(4.0, 4.0)
    assert acceptor.vote("three", B, 8, 4.0).granted


def test_the_floor_that_another_tells_holds_for_each_key_that_it_does_not_name() -> None:
    acceptor = make_acceptor()
    for key in ("named", "known"):
        assert acceptor.vote(key, A, 3, 0.0).granted
    acceptor.merge(7, {"named": 5}, 0.0)
    assert {key: acceptor.term(key) for key in ("named", "known", "new")} == {
        "named": 5,
        "known": 7,
        "new": 7,
    }


# --- elections ---


def test_one_of_several_contenders_leads_and_all_are_told() -> None:
    world = QuietWorld(5)
    world.start_all()
    for machine in world.machines.values():
        world.enter(machine, world.key)
    world.wait(lambda: world.leader() is not None)
    world.run(world.now + 2)
    assert world.leaderships == 1
    for name in world.machines:
        seen = world.node(name).leaders.leader(world.key)
        assert seen is not None
        assert (seen.node, seen.term) == (world.leader(), world.highest[world.key])


def test_two_who_campaign_in_the_same_moment_come_to_one_leader() -> None:
    world = QuietWorld(2)
    for machine in world.machines.values():
        machine.rate, machine.wall_offset = 1.0, 0.0
    world.start_all()
    for machine in world.machines.values():
        world.enter(machine, world.key)
    world.wait(lambda: world.leader() is not None)


def test_a_single_node_leads_by_itself() -> None:
    world = QuietWorld(1)
    world.start_all()
    world.elect("n0")
    world.run(world.now + 3)
    assert world.leaderships == 1


def test_a_dead_leader_is_followed_within_its_ttl_and_the_delay() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    world.enter(world.machines["n2"], world.key)
    world.run(world.now + 3.0)
    world.stop(world.machines["n0"])
    took = world.wait(lambda: world.leader() is not None)
    timing = world.plan.timing
    assert took < timing.outlasting(timing.lease_ceiling + timing.backoff) + 8 * DELAY


def test_a_leader_cut_off_is_told_before_the_next_one_leads() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    for other in ("n1", "n2"):
        world.cuts |= {("n0", other), (other, "n0")}
    world.wait(lambda: world.leader() == "n1")
    assert world.of_kind("n0", Lost)
    assert not world.node("n0").reaches_quorum(world.machines["n0"].local(world.now) + 3)


def test_contenders_of_one_node_queue_and_follow_each_other() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.do("n0", lambda node, now: node.campaign(world.key, "second", b"", 1.0, now))
    world.run(world.now + 1)
    assert world.leaderships == 1
    machine = world.machines["n0"]
    world.resign(machine, world.key, None)
    machine.contending[world.key] = "second"
    world.wait(lambda: world.leader() == "n0")
    assert machine.terms[world.key].uid == "second"


def test_a_proclaimed_value_is_told_to_followers_and_kept_by_later_terms() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    uid = world.machines["n0"].contending[world.key]
    world.do("n0", lambda node, now: node.proclaim(world.key, uid, b"new", now))
    world.run(world.now + 2 * DELAY)
    seen = world.node("n1").leaders.leader(world.key)
    assert seen is not None
    assert seen.value == b"new"
    world.run(world.now + 2)
    assert len([s for s in world.of_kind("n1", LeaderSeen) if s.leader is not None]) == 2


def test_only_the_leader_resigns() -> None:
    world = QuietWorld(3)
    world.start_all()
    with pytest.raises(NotLeader):
        world.do("n0", lambda node, now: node.resign(world.key, "nobody", now))


def test_a_withdrawn_candidate_leaves_no_promise() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.intercept = lambda sender, to, message: not isinstance(message, VoteAnswer)
    world.enter(world.machines["n0"], world.key)
    world.wait(lambda: any(isinstance(message, Vote) for *_, message in world.sent))
    world.leave(world.machines["n0"], world.key)
    world.wait(lambda: bool(world.of_kind("n0", Released)))
    world.intercept = lambda sender, to, message: True
    world.enter(world.machines["n1"], world.key)
    assert world.wait(lambda: world.leader() == "n1") < world.plan.timing.lease_ceiling / 2


# --- giving way ---


def test_a_named_successor_leads_one_and_a_half_round_trips_later() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    world.run(world.now + 1)
    world.resign(world.machines["n0"], world.key, "n1")
    took = world.wait(lambda: world.leader() == "n1")
    assert took == pytest.approx(3 * DELAY, rel=0.01)


def test_the_ticket_opens_the_promise_where_the_release_comes_late() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    world.run(world.now + 1)
    world.intercept = lambda sender, to, message: (
        (not (isinstance(message, Release) and to == "n2") and sender != "n0") or to == "n1"
    )
    world.resign(world.machines["n0"], world.key, "n1")
    assert world.wait(lambda: world.leader() == "n1") == pytest.approx(3 * DELAY, rel=0.01)


def test_a_ticket_helps_nobody_but_the_one_that_it_names() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.run(world.now + 1)
    thief, owner = world.node("n1"), world.machines["n0"]
    term = owner.terms[world.key]
    ticket = Ticket(
        world.key, "n0", world.node("n0").incarnation, term.uid, term.token, "n2", "i3", ""
    )
    header = thief._mail.header("n2", 10**6)
    vote = Vote(header, world.key, "thief", term.token + 1, 1.0, False, ticket)
    effects = world.node("n2").receive(vote, world.machines["n2"].local(world.now))
    [answer] = [e.message for e in effects if isinstance(e, Send)]
    assert isinstance(answer, VoteAnswer)
    assert not answer.granted


def test_who_gave_way_stays_out_until_another_has_led() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    world.run(world.now + 1)
    world.resign(world.machines["n0"], world.key, None)
    world.wait(lambda: bool(world.of_kind("n0", Released)))
    world.enter(world.machines["n0"], world.key)
    world.wait(lambda: world.leader() is not None)
    assert world.leader() == "n1"


def test_who_gave_way_leads_again_where_nobody_else_wants_to() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.run(world.now + 1)
    world.resign(world.machines["n0"], world.key, None)
    world.wait(lambda: bool(world.of_kind("n0", Released)))
    world.enter(world.machines["n0"], world.key)
    assert world.wait(lambda: world.leader() == "n0") < 1


def test_a_grant_that_was_on_its_way_revives_nobody_who_resigned() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    held: list[Message] = []

    def hold(sender: str, to: str, message: Message) -> bool:
        if to == "n0" and isinstance(message, HeartbeatAnswer):
            held.append(message)
            return False
        return True

    world.intercept = hold
    world.wait(lambda: bool(held))
    world.intercept = lambda sender, to, message: True
    machine = world.machines["n0"]
    world.resign(machine, world.key, None)
    renewed = len(world.of_kind("n0", Renewed))
    for message in held:
        world._receive(machine, message)
    assert len(world.of_kind("n0", Renewed)) == renewed


def test_the_term_is_valid_for_the_shortest_promise_that_it_counts() -> None:
    world = QuietWorld(3, timing={"lease_ceiling": 4.0})

    def shorten(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, VoteAnswer) and message.promised > 1:
            machine = world.machines[to]
            world._receive(machine, msgspec.structs.replace(message, promised=1.0))
            return False
        return True

    world.intercept = shorten
    world.start_all()
    machine = world.machines["n0"]
    machine.contending[world.key] = "long"
    world.do("n0", lambda node, now: node.campaign(world.key, "long", b"", 4.0, now))
    world.wait(lambda: world.key in machine.terms)
    assert machine.terms[world.key].valid_until - machine.local(world.now) < 1.0

    def lower(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, HeartbeatAnswer) and message.ceiling > 1:
            world._receive(world.machines[to], msgspec.structs.replace(message, ceiling=1.5))
            return False
        return True

    world.intercept = lower
    world.wait(lambda: bool(world.of_kind("n0", Renewed)))
    assert machine.terms[world.key].valid_until - machine.local(world.now) < 1.5


def hold_votes(world: QuietWorld, seconds: float) -> float:
    """Let n0 campaign, and hear of all its votes that much later; when they were sent for."""
    machine = world.machines["n0"]
    late: list[Message] = []

    def hold(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, VoteAnswer):
            # So that the node cannot see that its patience is over, either.
            machine.paused = True
            late.append(message)
            return False
        return True

    world.intercept = hold
    world.enter(machine, world.key)
    world.wait(lambda: any(isinstance(message, Vote) for *_, message in world.sent))
    sent_at = machine.local(world.now)
    world.wait(lambda: bool(late))
    world.run(world.now + seconds)
    machine.paused = False
    for message in late:
        world._receive(machine, message)
    return sent_at


def test_a_vote_that_comes_after_the_window_does_not_count() -> None:
    world = QuietWorld(3)
    world.start_all()
    hold_votes(world, 1.1 * world.plan.timing.vote_window)
    assert world.leaderships == 0


def test_nobody_leads_whose_time_is_over_when_the_votes_come() -> None:
    world = QuietWorld(3, timing={"vote_window": 1.0})
    world.start_all()
    world.change_rate(world.machines["n0"])
    hold_votes(world, 0.92)
    assert world.leaderships == 0


def test_a_term_is_counted_from_the_sending_of_the_request() -> None:
    world = QuietWorld(3)
    world.start_all()
    sent_at = hold_votes(world, 0.3)
    term = world.machines["n0"].terms[world.key]
    assert term.valid_until <= sent_at + world.plan.timing.validity(1.0)


def test_a_node_in_ill_health_does_not_campaign() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.node("n0").healthy = False
    world.enter(world.machines["n0"], world.key)
    world.run(world.now + 3)
    assert world.leaderships == 0
    world.node("n0").healthy = True
    world.wait(lambda: world.leader() == "n0")


# --- who counts ---


def test_legacy_members_count_in_the_size_and_never_vote() -> None:
    world = QuietWorld(3)
    for name in ("n0", "n1"):
        world.start(world.machines[name])
        world.node(name).legacy.add("n2")
    world.wait(lambda: world.node("n0").ready and world.node("n1").ready)
    world.elect("n0")
    world.run(world.now + 2)
    assert not any(to == "n2" for _, to, _ in world.sent)
    world.stop(world.machines["n1"])
    world.run(world.now + 3)
    assert world.leader() is None


def test_one_node_among_legacy_members_is_no_majority() -> None:
    world = QuietWorld(3)
    world.start_all()
    for name in ("n1", "n2"):
        world.stop(world.machines[name])
    world.node("n0").legacy.update({"n1", "n2"})
    world.enter(world.machines["n0"], world.key)
    world.run(world.now + 3)
    assert world.leaderships == 0


def test_a_higher_term_deposes_nobody_whom_a_majority_supports() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.run(world.now + 1)
    stray = world.node("n2")._acceptor
    record = stray.records[world.key]
    record.max_term += 10**6
    record.voted_for = None
    world.run(world.now + 5)
    assert world.leader() == "n0"
    assert world.leaderships == 1


def test_a_node_that_is_cut_off_raises_no_term_and_disturbs_nobody_when_it_returns() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n2"], world.key)
    world.run(world.now + 1)
    for _ in range(3):
        for other in ("n0", "n1"):
            world.cuts |= {("n2", other), (other, "n2")}
        world.run(world.now + 3)
        assert world.node("n2")._acceptor.term(world.key) == world.highest[world.key]
        world.cuts.clear()
        world.run(world.now + 1)
    assert world.leaderships == 1


def test_nodes_of_other_durations_refuse_each_other() -> None:
    world = QuietWorld(2)
    world.start(world.machines["n0"])
    other = dataclasses.replace(world.plan.timing, lease_ceiling=2.0)
    world.make_node = lambda **given: QuorumLease(**{**given, "timing": other})
    world.start(world.machines["n1"])
    world.run(20)
    assert not world.node("n0").ready
    assert not world.node("n1").ready


def test_two_runs_of_one_node_are_noticed_and_neither_counts() -> None:
    node = QuorumLease(
        id="a", incarnation="1", members=["a", "b", "c"], cluster="c", timing=Timing(),
        random=random.Random(1), wall_clock=lambda: START, now=0.0, bootstrap=True,
    )  # fmt: skip
    now, raised = 0.0, []
    for step in range(12):
        now += 1.0
        for effect in node.tick(now):
            if isinstance(effect, TwoIncarnations):
                raised.append(effect.raised)
            if not isinstance(effect, Send) or effect.to != "b":
                continue
            if isinstance(effect.message, Heartbeat):
                header = effect.message.header
                run = "first" if step % 2 and step < 6 else "second"
                answer = HeartbeatAnswer(
                    msgspec.structs.replace(
                        header, sender="b", incarnation=run, receiver="a", receiver_incarnation="1"
                    ),
                    header.number, 5.0, (), True, False,
                )  # fmt: skip
                told = node.receive(answer, now)
                raised += [e.raised for e in told if isinstance(e, TwoIncarnations)]
    assert raised == [True, False]


# --- restarts ---


@pytest.mark.parametrize("durable", [False, True])
def test_a_restarted_node_is_silent_for_as_long_as_its_promises_may_last(durable: bool) -> None:
    world = QuietWorld(3, durable=durable)
    world.start_all()
    world.elect("n0")
    machine = world.machines["n1"]
    world.stop(machine)
    world.start(machine)
    started = machine.local(world.now)
    world.wait(lambda: world.node("n1").ready)
    waited = machine.local(world.now) - started
    assert waited >= world.plan.timing.silence(None)
    assert waited <= world.plan.timing.silence(None) + 5 * DELAY


@pytest.mark.parametrize("durable", [True, False])
def test_an_acceptor_that_forgot_its_promise_helps_no_second_leader_up(durable: bool) -> None:
    world = QuietWorld(3, durable=durable)
    world.start_all()
    world.cuts = {("n0", "n2"), ("n2", "n0")}
    world.elect("n0")
    world.enter(world.machines["n2"], world.key)
    renewed = len(world.of_kind("n0", Renewed))
    world.wait(lambda: len(world.of_kind("n0", Renewed)) > renewed)
    world.stop(world.machines["n1"])
    world.start(world.machines["n1"])
    # The world looks at each election whether another term is valid.
    world.wait(lambda: world.leader() == "n2")


def test_a_recording_of_what_an_earlier_run_was_asked_binds_nobody() -> None:
    world = QuietWorld(3)
    world.start_all()
    world.elect("n0")
    recorded = [m for _, to, m in world.sent if to == "n1" and isinstance(m, Vote)]
    for machine in world.machines.values():
        world.stop(machine)
    world.start_all()
    for message in recorded:
        world._receive(world.machines["n1"], message)
    assert recorded
    records = world.node("n1")._acceptor.records
    assert all(record.promised_to is None for record in records.values())


def test_a_lowered_ceiling_shortens_no_silence() -> None:
    world = QuietWorld(3, durable=True, timing={"lease_ceiling": 4.0})
    world.start_all()
    world.run(world.now + 1)
    for machine in world.machines.values():
        world.stop(machine)
    lower = dataclasses.replace(world.plan.timing, lease_ceiling=1.0)
    world.plan = dataclasses.replace(world.plan, timing=lower)
    for machine in world.machines.values():
        world.start(machine)
    world.run(world.now + 3.5)
    assert not any(world.node(name).ready for name in world.machines)


def test_a_rolling_restart_deposes_no_leader_of_any_key() -> None:
    world = QuietWorld(3, keys=3)
    world.start_all()
    for key in world.keys:
        world.elect("n0", key)
    for name in ("n1", "n2"):
        world.stop(world.machines[name])
        world.start(world.machines[name])
        world.wait(lambda name=name: world.node(name).ready)  # type: ignore[misc]
        world.run(world.now + 1)
    assert world.leaderships == 3
    assert all(world.leader(key) == "n0" for key in world.keys)


@pytest.mark.parametrize("durable", [False, True])
def test_tokens_rise_over_a_restart_of_all(durable: bool) -> None:
    world = QuietWorld(3, durable=durable)
    world.start_all()
    world.elect("n0")
    for machine in world.machines.values():
        world.stop(machine)
    world.start_all()
    world.elect("n1")
    assert world.leaderships == 2


def test_a_stored_term_needs_no_wall_clock() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.elect("n0")
    for machine in world.machines.values():
        world.stop(machine)
        machine.wall_offset -= YEARS
    world.start_all()
    world.elect("n1")
    assert world.leaderships == 2


def test_a_node_that_cannot_store_refuses_to_vote() -> None:
    world = QuietWorld(2, durable=True)
    world.start_all()
    world.machines["n1"].disk_works = False
    world.enter(world.machines["n0"], world.key)
    world.run(world.now + 5)
    assert world.leaderships == 0
    assert world.of_kind("n1", Persist)
    world.machines["n1"].disk_works = True
    world.wait(lambda: world.leader() == "n0")


def test_nodes_that_all_start_together_take_part_at_once() -> None:
    world = QuietWorld(3, bootstrap=True, timing={"wall_clock_skew": 0.0})
    world.start_all()
    assert world.now < 0.1
    assert world.of_kind("n0", Ready)


def test_where_wall_clocks_differ_nodes_that_start_together_wait_until_terms_rise() -> None:
    world = QuietWorld(3, bootstrap=True, timing={"wall_clock_skew": 0.3})
    world.start_all()
    timing = world.plan.timing
    # For a clock that is as fast as any.
    longest = timing.outlasting(timing.wall_clock_skew + timing.vote_window)
    assert timing.wall_clock_skew + timing.vote_window < world.now < timing.outlasting(longest)


def test_the_last_of_those_that_start_together_need_not_be_silent() -> None:
    world = QuietWorld(3, bootstrap=True, timing={"wall_clock_skew": 0.0})
    for name in ("n0", "n1"):
        world.start(world.machines[name])
    world.run(world.now + 0.5)
    assert not any(world.node(name).ready for name in ("n0", "n1"))
    began = world.now
    world.start_all()
    assert world.now - began < 2 * world.plan.timing.heartbeat


@pytest.mark.parametrize("others", [1, 2])
def test_one_that_starts_where_another_took_part_before_it_is_silent(others: int) -> None:
    world = QuietWorld(3, bootstrap=True, timing={"wall_clock_skew": 0.0})
    world.start_all()
    world.elect("n0")
    again = ["n1", "n2"][:others]
    for name in again:
        world.stop(world.machines[name])
    began = {name: world.machines[name].local(world.now) for name in again}
    for name in again:
        world.start(world.machines[name])
    world.wait(lambda: all(world.node(name).ready for name in again))
    for name in again:
        now = world.machines[name].local(world.now)
        assert now - began[name] >= world.plan.timing.silence(None)


def test_who_hears_of_another_list_while_it_begins_is_silent_for_not_all_begin() -> None:
    world = QuietWorld(4, bootstrap=True, timing={"wall_clock_skew": 0.0})
    # Taken off the others' lists by hand, and still running.
    world.start(world.machines["n3"])
    fewer = ["n0", "n1", "n2"]
    began = {name: world.machines[name].local(world.now) for name in fewer}
    for name in fewer:
        world.start(world.machines[name], fewer)
    world.wait(lambda: all(world.node(name).ready for name in fewer))
    for name in fewer:
        now = world.machines[name].local(world.now)
        assert now - began[name] >= world.plan.timing.silence(None)


def test_a_node_that_stored_a_state_is_silent_for_it_may_have_promised_under_another_list() -> None:
    world = QuietWorld(3, bootstrap=True, durable=True, timing={"wall_clock_skew": 0.0})
    world.start_all()
    world.elect("n0")
    for machine in world.machines.values():
        world.stop(machine)
    began = world.now
    world.start_all()
    assert world.now - began > world.plan.timing.lease_ceiling * 0.9


# --- wall clocks ---


def test_one_wall_clock_that_is_years_ahead_is_not_seen_in_the_tokens() -> None:
    world = QuietWorld(3)
    world.machines["n0"].wall_offset = YEARS
    world.start_all()
    for machine in world.machines.values():
        world.enter(machine, world.key)
    world.wait(lambda: world.leader() in {"n1", "n2"})
    leader = world.machines[str(world.leader())]
    world.resign(leader, world.key, "n0")
    world.wait(lambda: world.leader() == "n0")
    assert world.highest[world.key] < floor_term(START + world.plan.timing.wall_clock_limit * 1000)


@pytest.mark.parametrize("ahead", [2, 3, 4])
def test_clocks_that_were_years_ahead_stop_no_election_after_they_step_back(ahead: int) -> None:
    world = QuietWorld(4)
    machines = list(world.machines.values())
    for machine in machines[:ahead]:
        machine.wall_offset = YEARS
        machine.was_ahead = True
    world.start_all()
    for machine in machines:
        world.enter(machine, world.key)
    world.run(world.now + 3)
    for machine in machines[:ahead]:
        machine.wall_offset = 0
    for machine in machines:
        # Whoever led dies with its run, one after the other.
        world.stop(machine)
        world.start(machine)
        world.wait(lambda machine=machine: machine.node.ready)  # type: ignore[misc]
        world.enter(machine, world.key)
        world.wait(lambda: world.leader() is not None)


def led_far_ahead(cuts: set[tuple[str, str]]) -> QuietWorld:
    """Two of three voted years ahead, and their clocks were set right; one knows of it or not."""
    world = QuietWorld(3)
    ahead = [world.machines["n0"], world.machines["n1"]]
    for machine in ahead:
        machine.wall_offset, machine.was_ahead = YEARS, True
    world.start_all()
    world.cuts = cuts
    world.elect("n0")
    for machine in ahead:
        machine.wall_offset = 0
    return world


def test_a_term_that_a_majority_voted_for_is_supported_by_all_however_far_ahead() -> None:
    world = led_far_ahead(set())
    world.run(world.now + 1)
    world.stop(world.machines["n1"])
    world.run(world.now + 3)
    assert (world.leader(), world.leaderships) == ("n0", 1)


def test_a_restarted_node_takes_over_terms_however_far_ahead() -> None:
    world = led_far_ahead({("n0", "n2"), ("n2", "n0")})
    world.stop(world.machines["n1"])
    world.start(world.machines["n1"])
    world.wait(lambda: world.node("n1").ready)
    world.stop(world.machines["n0"])
    world.elect("n2")
    assert world.leaderships == 2


# --- many keys in one message ---


def test_a_thousand_keys_need_as_many_messages_as_one_and_no_more_bytes_when_nothing_changes() -> (
    None
):
    world = QuietWorld(3, keys=1000)
    world.start_all()
    machine = world.machines["n0"]
    for key in world.keys:
        world.enter(machine, key)
    world.wait(lambda: len(machine.terms) == 1000)
    world.run(world.now + 2)
    world.sent.clear()
    began = world.now
    world.run(began + 2)
    beats = [message for _, _, message in world.sent if isinstance(message, Heartbeat)]
    by_leader = [beat for beat in beats if beat.header.sender == "n0"]
    rounds = 2 / (world.plan.timing.heartbeat / machine.rate)
    assert len(by_leader) == pytest.approx(2 * rounds, abs=2)
    assert max(len(msgspec.json.encode(beat)) for beat in by_leader) < 400
    assert len(machine.terms) == 1000
    answers = [message for _, _, message in world.sent if isinstance(message, HeartbeatAnswer)]
    assert max(len(msgspec.json.encode(answer)) for answer in answers) < 400


def test_a_key_that_is_not_granted_is_named_and_its_term_lapses_alone() -> None:
    world = QuietWorld(3, keys=2)
    world.start_all()
    for key in world.keys:
        world.elect("n0", key)
    world.run(world.now + 1)
    lost, kept = world.keys
    for name in ("n1", "n2"):
        record = world.node(name)._acceptor.records[lost]
        record.max_term += 1
        record.voted_for = None
    world.wait(lambda: bool(world.of_kind("n0", Lost)))
    assert [effect.key for effect in world.of_kind("n0", Lost)] == [lost]
    assert world.leader(kept) == "n0"
    refusals = {m.refused for *_, m in world.sent if isinstance(m, HeartbeatAnswer) and m.refused}
    assert refusals == {(lost,)}


def test_an_acceptor_that_does_not_know_the_version_asks_for_the_whole_set() -> None:
    world = QuietWorld(3, keys=2)
    world.start_all()
    for key in world.keys:
        world.elect("n0", key)
    world.run(world.now + 1)
    world.node("n1")._granting._key_sets["n0"].version = 0
    world.sent.clear()
    world.run(world.now + 1)
    asked = [m for *_, m in world.sent if isinstance(m, HeartbeatAnswer) and m.target == 0]
    whole = [m for _, to, m in world.sent if isinstance(m, Heartbeat) and to == "n1" and m.changes]
    assert len(asked) == 1
    assert [len(beat.changes) for beat in whole] == [2]


def test_changes_reach_acceptors_that_missed_some_heartbeats() -> None:
    world = QuietWorld(3, keys=4)
    world.start_all()
    world.elect("n0", world.keys[0])
    world.run(world.now + 1)
    world.cuts = {("n0", "n1")}
    world.elect("n0", world.keys[1])
    world.elect("n0", world.keys[2])
    world.resign(world.machines["n0"], world.keys[1], None)
    world.cuts = set()
    world.run(world.now + 1)
    keys = world.node("n1")._granting._key_sets["n0"]
    assert set(keys.entries) == {world.keys[0], world.keys[2]}


# --- the wire ---


def test_all_messages_survive_json() -> None:
    world = QuietWorld(3, keys=2, durable=True)
    world.start_all()
    world.elect("n0")
    world.enter(world.machines["n1"], world.key)
    world.run(world.now + 2)
    world.resign(world.machines["n0"], world.key, "n1")
    world.do("n0", lambda node, now: node.change_members(["n0", "n1"], now))
    world.wait(lambda: world.node("n2").stage.retired == ("n2",))
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(AnyMessage)
    kinds = set()
    for *_, message in world.sent:
        assert decoder.decode(encoder.encode(message)) == message
        kinds.add(type(message))
    assert {PreVote, Vote, Heartbeat, Release, Announcement} <= kinds
    entry = Entry("k", "u", 1, 1.0, b"\x00\xff")
    lease = Lease(world.node("n0")._mail.header("n1", 1), "k", "u", 1, 1.0)
    announcement = Announcement(lease.header, entry)
    for message in (lease, announcement):
        assert decoder.decode(encoder.encode(message)) == message
