"""What is on the disk, in which order, when it is slow or fails."""

from __future__ import annotations

import pytest

from leadership.backends._quorum_effects import Persist, Proposal, Send, StoredState
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import (
    Quorum,
    final_stage,
    first_stage,
    joint_stage,
)
from leadership.backends._quorum_messages import (
    Header,
    Members,
    MembersAnswer,
    MembersPrepare,
    MembersPromise,
)
from leadership.backends._quorum_storage import Storage

from .quorum_worlds import QuietWorld, SlowDisks
from .simulation import draw

OLD = first_stage(["n0", "n1", "n2"])
JOINT = joint_stage(OLD, ["n0", "n1"])
NEW = final_stage(JOINT)


def test_what_is_stored_never_goes_back_to_an_earlier_stage() -> None:
    mail = Mail("n0", "i1", draw(0).timing, Quorum("c", draw(0).timing, OLD))
    storage = Storage(mail, StoredState(0, 1.0, OLD), durable=True)
    entered: list[Members] = []
    # Two others tell of the stage that each of them has come to, while the disk is slow.
    for stage in (NEW, JOINT):
        storage.keep_stage(stage, 0, lambda now, stage=stage: entered.append(stage), 0.0)  # type: ignore[misc]
    writes = [effect for effect in mail.take_effects() if isinstance(effect, Persist)]
    for write in writes:
        storage.persisted(write.number, True, 0.0)
    assert entered[0] == NEW
    assert writes[-1].state.stage == NEW


def test_what_was_accepted_is_told_also_when_the_disk_fails_at_the_next_stage() -> None:
    world = QuietWorld(3, durable=True)
    world.start_all()
    world.run(world.now + 2)
    node, now = world.node("n1"), world.machines["n1"].local(world.now)

    def header(sender: str, number: int) -> Header:
        run = world.node(sender).incarnation
        return Header(1, node.configuration, sender, run, "n1", node.incarnation, number)

    accepted = Proposal((1, "n0"), (1, "n0"), JOINT.joining)
    node._storage.keep_proposal(accepted, lambda now: None)
    [write] = [effect for effect in node.tick(now) if isinstance(effect, Persist)]
    node.persisted(write.number, True, now)

    # n0 has a majority, and says so; n2, which heard of nothing, has a wish of its own.
    notice = MembersAnswer(header("n0", 1), JOINT, 0, {})
    prepare = MembersPrepare(header("n2", 1), (1, "n2"))
    writes = [
        effect
        for message in (notice, prepare)
        for effect in node.receive(message, now)
        if isinstance(effect, Persist)
    ]
    told = [
        effect.message
        for write, succeeded in zip(writes, (False, True), strict=False)
        for effect in node.persisted(write.number, succeeded, now)
        if isinstance(effect, Send)
    ]
    promises = [message for message in told if isinstance(message, MembersPromise)]
    assert all(promise.joining == JOINT.joining for promise in promises)
    assert node.stage == OLD


def test_a_leader_is_elected_where_a_vote_takes_longer_than_a_first_ballot_waits() -> None:
    world = SlowDisks(3, durable=True)
    world.start_all()
    for name in world.machines:
        world.enter(world.machines[name], world.key)
    world.wait(lambda: world.leader() is not None)


def test_who_contends_alone_is_elected_where_a_vote_takes_longer_than_a_first_ballot_waits() -> (
    None
):
    # Its release of the ballot that failed, which reaches itself too, is no sign of quick disks.
    world = SlowDisks(3, durable=True)
    world.start_all()
    world.enter(world.machines["n0"], world.key)
    world.wait(lambda: world.leader() is not None)


@pytest.mark.parametrize("seed", range(4))
def test_of_many_one_is_elected_where_others_ask_for_votes_while_its_own_are_written(
    seed: int,
) -> None:
    world = SlowDisks(5, durable=True, seed=seed)
    world.start_all()
    for name in world.machines:
        world.enter(world.machines[name], world.key)
    world.wait(lambda: world.leader() is not None)
