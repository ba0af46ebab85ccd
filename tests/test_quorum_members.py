"""Changes of the member list: schedules that a hand wrote."""

from __future__ import annotations

import pytest

from leadership.backends._quorum_change import Change
from leadership.backends._quorum_effects import Lost, Renewed
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import Quorum, first_stage
from leadership.backends._quorum_messages import MembersAnswer
from leadership.errors import ConfigurationError, NotSupported

from .quorum_worlds import QuietWorld, SlowDisks
from .simulation import draw
from .simulation_faults import simulate


def change(world: QuietWorld, name: str, members: list[str]) -> None:
    world.do(name, lambda node, now: node.change_members(members, now))


def test_a_member_is_added_and_removed_while_a_leader_leads() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.elect("n0")
    world.run(world.now + 2)
    world.start(world.add_machine("n3"), ["n0", "n1", "n2"])
    world.run(world.now + 3)
    change(world, "n1", ["n0", "n1", "n2", "n3"])
    world.wait(lambda: all(len(world.node(n).stage.members) == 4 for n in world.machines))
    world.wait(lambda: world.node("n3").ready)
    world.run(world.now + 2)
    change(world, "n0", ["n0", "n1", "n3"])
    world.wait(lambda: world.node("n2").stage.retired == ("n2",))
    world.run(world.now + 2)
    assert world.leaderships == 1
    assert world.leader() == "n0"
    with pytest.raises(ConfigurationError, match="retired"):
        change(world, "n0", ["n0", "n1", "n2", "n3"])


def test_a_new_member_that_missed_the_change_learns_of_it() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.run(world.now + 2)
    world.start(world.add_machine("m3"), ["n0", "n1", "n2"])
    world.cuts = {pair for n in ("n0", "n1", "n2") for pair in ((n, "m3"), ("m3", n))}
    change(world, "n1", ["m3", "n0", "n1", "n2"])
    world.wait(lambda: all(world.node(f"n{i}").stage.epoch == 1 for i in range(3)))
    world.cuts.clear()
    world.wait(lambda: world.node("m3").ready)
    assert world.node("m3").stage == world.node("n0").stage


def test_a_removed_leader_is_told_and_never_counts_again() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.elect("n2")
    world.enter(world.machines["n0"], world.key)
    world.run(world.now + 2)
    change(world, "n0", ["n0", "n1"])
    world.wait(lambda: world.leader() == "n0")
    assert [effect.reason for effect in world.of_kind("n2", Lost)] == [
        "this node is no longer a member"
    ]
    world.stop(world.machines["n1"])
    world.run(world.now + 3)
    assert world.leader() is None


def test_two_changes_at_a_time_come_to_one_list() -> None:
    world = QuietWorld(4, durable=True)
    world.start_all()
    world.run(world.now + 2)
    change(world, "n0", ["n0", "n1", "n2"])
    change(world, "n3", ["n1", "n2", "n3"])
    world.wait(lambda: all(world.node(n).stage.epoch == 1 for n in world.machines))
    assert len({world.node(n).stage for n in world.machines}) == 1


def test_two_changes_on_two_sides_of_a_cut_come_to_one_list() -> None:
    world = QuietWorld(4, durable=True)
    world.start_all()
    world.run(world.now + 2)
    left, right = ["n0", "n1"], ["n2", "n3"]
    world.cuts = {pair for a in left for b in right for pair in ((a, b), (b, a))}
    change(world, "n0", ["n0", "n1", "n2"])
    change(world, "n3", ["n1", "n2", "n3"])
    world.run(world.now + 0.5)
    world.cuts.clear()
    world.wait(lambda: all(world.node(n).stage.epoch == 1 for n in world.machines))
    assert len({world.node(n).stage for n in world.machines}) == 1


def test_a_change_that_a_cut_held_up_comes_about_soon_after_the_cut() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.run(world.now + 2)
    world.cuts = {pair for n in ("n1", "n2") for pair in ((n, "n0"), ("n0", n))}
    change(world, "n0", ["n0", "n1"])
    world.run(world.now + 15)
    world.cuts.clear()
    world.wait(lambda: all(world.node(n).stage.epoch == 1 for n in world.machines), limit=4)


def test_a_change_comes_about_also_where_writing_takes_longer_than_a_ballot_waits() -> None:
    world = SlowDisks(3, durable=True)
    world.heartbeats_to_write = 5
    world.start_all()
    world.run(world.now + 2)
    change(world, "n0", ["n0", "n1"])
    change(world, "n2", ["n1", "n2"])
    world.wait(lambda: all(world.node(n).stage.epoch == 1 for n in world.machines), limit=60)


def test_who_led_under_the_old_list_is_over_before_the_new_list_leads() -> None:
    world = QuietWorld(5, durable=True)
    world.start_all()
    # Who leads has the promises of those who leave; the others are free to vote.
    leave, stay = ["n0", "n1", "n2"], ["n3", "n4"]
    world.cuts = {pair for b in stay for pair in (("n0", b), (b, "n0"))}
    world.elect("n0")
    world.run(world.now + 2)
    renewed = len(world.of_kind("n0", Renewed))
    world.wait(lambda: len(world.of_kind("n0", Renewed)) > renewed)
    for other in leave:
        world.cuts |= {("n0", other), (other, "n0")}
    change(world, "n1", stay)
    # The world looks at each election whether another term is valid.
    world.wait(lambda: bool(world.node("n3").stage.joining))
    world.enter(world.machines["n3"], world.key)
    world.wait(lambda: world.node("n4").stage.epoch == 1)
    world.enter(world.machines["n4"], world.key)
    world.wait(lambda: world.leader() in stay)


def test_a_cluster_without_stored_states_refuses_a_change() -> None:
    world = QuietWorld(3)
    world.start_all()
    with pytest.raises(NotSupported, match="state_dir"):
        change(world, "n0", ["n0", "n1"])


# --- what is remembered ---


def after_a_term_that_those_who_stay_do_not_know() -> QuietWorld:
    """Two of five are left: those that were cut off when the others had a leader.

    That leader's wall clock was half an hour ahead, so that no later term is above its own
    by itself.
    """
    world = QuietWorld(5, durable=True)
    world.machines["n0"].wall_offset = 1_800_000
    world.start_all()
    leave, stay = ["n0", "n1", "n2"], ["n3", "n4"]
    world.cuts = {pair for a in leave for b in stay for pair in ((a, b), (b, a))}
    world.elect("n0")
    world.leave(world.machines["n0"], world.key)
    world.run(world.now + 3)
    world.cuts.clear()
    world.run(world.now + 2)
    change(world, "n1", stay)
    world.wait(lambda: all(world.node(name).stage.epoch == 1 for name in stay))
    return world


def test_a_new_list_begins_with_the_terms_of_the_old_one() -> None:
    world = after_a_term_that_those_who_stay_do_not_know()
    world.elect("n3")
    assert world.leaderships == 2


def test_carried_terms_survive_a_restart_of_all_new_members() -> None:
    world = after_a_term_that_those_who_stay_do_not_know()
    for name in ("n3", "n4"):
        world.stop(world.machines[name])
    world.start_all()
    world.elect("n3")
    assert world.leaderships == 2


def test_the_terms_that_are_told_to_a_change_come_to_the_highest_of_each_key() -> None:
    mail = Mail("n0", "i1", draw(0).timing, Quorum("c", draw(0).timing, first_stage(["n0", "n1"])))
    change = Change(mail, draw(0).timing, 0.0)
    header = mail.header("n0", 1)
    change.answered(MembersAnswer(header, mail.quorum.stage, 2, {"a": 9, "b": 4}), 0.0)
    change.answered(MembersAnswer(header, mail.quorum.stage, 6, {"c": 3}), 0.0)
    assert (change.floor, change.terms) == (6, {"a": 9, "b": 6, "c": 3})


def test_who_is_recovering_does_not_count_among_those_who_tell_their_terms() -> None:
    world = QuietWorld(4, durable=True)
    world.start_all()
    world.run(world.now + 2)
    change(world, "n1", ["n0", "n1", "n2"])
    world.wait(lambda: bool(world.node("n0").stage.joining))
    for machine in world.machines.values():
        world.stop(machine)
    world.sent.clear()
    for machine in world.machines.values():
        world.start(machine)
    while not any(world.node(name).ready for name in world.machines):
        told = [message for *_, message in world.sent]
        assert not any(isinstance(message, MembersAnswer) for message in told)
        world.run(world.now + 0.01)
    world.wait(lambda: world.node("n3").stage.retired == ("n3",))


def test_tokens_rise_over_a_restart_of_all_in_the_middle_of_a_change() -> None:
    # Two of five had recovered when the others, who knew of a leader, were counted
    # among those who told what they remember.
    simulate(1398)
