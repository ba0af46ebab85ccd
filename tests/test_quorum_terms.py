"""No node campaigns twice in a term: what is late of a first attempt must not meet the second."""

from __future__ import annotations

from leadership.backends._quorum_messages import (
    Message,
    PreVote,
    Release,
    ReleaseAnswer,
    Vote,
)

from .quorum_worlds import QuietWorld


def votes(world: QuietWorld, name: str) -> list[Vote]:
    """What a node asked for, to each other node."""
    return [m for sender, _, m in world.sent if sender == name and isinstance(m, Vote)]


def test_a_late_release_of_a_failed_campaign_ends_no_later_term() -> None:
    world = QuietWorld(3)
    # The terms of n2 are above what the clock of the others would say for a second.
    world.machines["n0"].wall_offset = world.machines["n1"].wall_offset = 0.0
    world.machines["n2"].wall_offset = 2000.0
    world.start_all()
    world.run(world.now + 1)
    late: list[Message] = []

    def arrives(sender: str, to: str, message: Message) -> bool:
        if sender == "n2" and to == "n0" and isinstance(message, Vote):
            late.append(message)
            return False
        about_n2 = sender == "n2" and (late or isinstance(message, Vote))
        about_n0 = sender == "n0" and isinstance(message, (Vote, Release))
        return not (about_n2 or about_n0)

    world.intercept = arrives
    world.enter(world.machines["n2"], world.key)
    world.wait(lambda: bool(late))
    # The others have forgotten that n2 asked, so n0 asks for votes and leases in one step.
    world.run(world.now + 0.7)
    world.enter(world.machines["n0"], world.key)
    world.wait(lambda: any(s == "n0" and isinstance(m, PreVote) for s, _, m in world.sent))
    world._receive(world.machines["n0"], late[0])
    world.wait(lambda: any(s == "n0" and isinstance(m, Release) for s, _, m in world.sent))
    world.do("n2", lambda node, now: node.withdraw(world.key, "contender of n2", now))

    # Now all is heard again, but for what is left of that campaign.
    world.intercept = lambda sender, to, message: (
        not (
            isinstance(message, ReleaseAnswer)
            or (isinstance(message, Release) and message.ticket.node == "n0")
        )
    )
    world.wait(lambda: world.leader() == "n0")
    world.intercept = lambda sender, to, message: not isinstance(message, ReleaseAnswer)
    world.enter(world.machines["n1"], world.key)
    world.run(world.now + 1)
    assert world.leaderships == 1
