"""Who waits, as the nodes of a quorum tell each other, and whom a leader hands over to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import pytest

from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import Quorum, first_stage
from leadership.backends._quorum_messages import (
    AnyMessage,
    Header,
    Heartbeat,
    HeartbeatAnswer,
    Message,
    PreVote,
    Queue,
    Release,
    Ticket,
    Vote,
)
from leadership.backends._quorum_timing import Timing
from leadership.backends._quorum_waiting import Queues, Waiter

from .simulation import Machine, World, draw

DELAY = 0.01
"""Seconds that each message takes."""
ROUND_TRIP = 2 * DELAY


class Quiet(World):
    """Three nodes that are ready, with no faults, whose users do what the test does.

    Attributes:
        sent: every message, with the time of its sending.
        arrives: decides whether a message is delivered.
    """

    def __init__(self, nodes: int = 3, keys: int = 1, seed: int = 0) -> None:
        drawn = draw(0)
        calm = {"durable": False, "loss": 0.0, "duplicates": 0.0, "replays": 0.0, "slow": 0.0}
        super().__init__(
            dataclasses.replace(
                drawn,
                seed=seed,
                nodes=nodes,
                keys=keys,
                timing=dataclasses.replace(
                    drawn.timing, lease_ceiling=1.0, backoff=0.15, wall_clock_skew=0.0
                ),
                bootstrap=True,
                wild_clocks=False,
                change_members=False,
                **calm,  # type: ignore[arg-type]
            )
        )
        self.sent: list[tuple[float, str, Message]] = []
        self.arrives: Callable[[str, str, Message], bool] = lambda sender, to, message: True
        for number in range(nodes):
            self.add_machine(f"n{number}")
        self.keys, wanted = [], self.keys
        for machine in self.machines.values():
            self.start(machine)
        self.keys = wanted
        self.run(1)

    def _delay(self) -> float:
        return DELAY

    def _think(self, machine: Machine, key: str) -> None:
        pass

    def _deliver(self, sender: str, receiver: str, message: Message) -> None:
        self.sent.append((self.now - DELAY, sender, message))
        if self.arrives(sender, receiver, message):
            super()._deliver(sender, receiver, message)

    def node(self, name: str) -> QuorumLease:
        node = self.machines[name].node
        assert node is not None
        return node

    def queue(self, *names: str) -> None:
        """Let them enter one after the other, and all hear of it."""
        for name in names:
            self.enter(self.machines[name], self.keys[0])
            self.run(self.now + 0.5)
        self.run(self.now + 4 * self.plan.timing.idle_heartbeat)

    def named(self, leader: str, name: str, uid: str = "") -> None:
        """The leader resigns to that node, or to one of its contenders."""
        machine, key = self.machines[leader], self.keys[0]
        term = machine.terms[key]
        self._end(term)
        now = machine.local(self.now)
        effects = self.node(leader).resign(key, term.uid, now, successor=name, contender=uid)
        self._carry_out(machine, effects)
        self._reschedule(machine)

    def leader(self) -> str | None:
        for term in self.terms[self.keys[0]]:
            if term.machine.local(self.now) < term.valid_until:
                return term.machine.id
        return None

    def until_led(self) -> float:
        """Run until somebody leads; the seconds that it took."""
        began = self.now
        while self.leader() is None:
            assert self.now < began + 20, "nobody leads"
            self.run(self._events[0][0])
        return self.now - began

    @property
    def plain(self) -> float:
        """The longest that the first of those who wait takes by itself, from the release on."""
        return DELAY + self.plan.timing.backoff + 3 * ROUND_TRIP


# --- whom the leader hands over to ---


def test_who_waits_longest_leads_one_and_a_half_round_trips_after_a_resignation() -> None:
    world = Quiet()
    world.queue("n0", "n2", "n1")
    world.resign(world.machines["n0"], "key0", None)
    assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
    assert world.leader() == "n2"


def test_a_leader_that_withdraws_hands_over_as_one_that_resigns() -> None:
    world = Quiet()
    world.queue("n0", "n2", "n1")
    world.leave(world.machines["n0"], "key0")
    assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
    assert world.leader() == "n2"


def test_they_lead_in_the_order_in_which_they_began_to_wait() -> None:
    world = Quiet(5)
    order = ["n0", "n3", "n1", "n4", "n2"]
    world.queue(*order)
    for _ in range(3):
        for leader, following in zip(order, [*order[1:], order[0]], strict=True):
            world.resign(world.machines[leader], "key0", None)
            world.until_led()
            assert world.leader() == following
            world.queue(leader)


def test_an_order_follows_at_once_for_who_heard_before_it_led() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    for leader, following in (("n0", "n1"), ("n1", "n2")):
        world.resign(world.machines[leader], "key0", None)
        assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
        assert world.leader() == following


def test_the_named_node_leads_and_not_who_waits_longer() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    world.named("n0", "n2")
    assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
    assert world.leader() == "n2"


def test_of_two_on_one_node_the_named_one_leads() -> None:
    world = Quiet()
    world.queue("n0", "n1")
    machine = world.machines["n1"]
    now = machine.local(world.now)
    world.node("n1").campaign("key0", "second", b"", 1.0, now, name="b")
    world.run(world.now + 1)
    told = world.node("n0").queues.waiting("key0", world.machines["n0"].local(world.now))
    assert [(each.node, each.uid, each.name) for each in told] == [
        ("n1", "contender of n1", ""),
        ("n1", "second", "b"),
    ]
    machine.contending["key0"] = "second"
    world.named("n0", "n1", "second")
    world.until_led()
    assert machine.terms["key0"].uid == "second"


def test_a_contender_of_the_leaders_own_node_has_its_turn_as_the_others() -> None:
    world = Quiet()
    world.queue("n0")
    machine = world.machines["n0"]
    world.node("n0").campaign("key0", "second", b"", 1.0, machine.local(world.now))
    world.queue("n1")
    world.resign(machine, "key0", None)
    machine.contending["key0"] = "second"
    assert world.until_led() == pytest.approx(ROUND_TRIP, rel=0.01)
    assert machine.terms["key0"].uid == "second"


def test_who_was_named_by_one_that_it_gave_way_to_need_not_wait_its_turn() -> None:
    world = Quiet()
    world.queue("n0", "n1")
    world.named("n0", "n1")
    world.until_led()
    world.enter(world.machines["n0"], "key0")
    world.named("n1", "n0", "contender of n0")
    assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
    assert world.leader() == "n0"


# --- what a hint that is wrong costs ---


@pytest.mark.parametrize("fate", ["dead", "cut off", "not heard"])
def test_a_ticket_to_who_cannot_take_it_costs_at_most_what_the_plain_way_takes(fate: str) -> None:
    for seed in range(5):
        world = Quiet(seed=seed)
        world.queue("n0", "n1", "n2")
        if fate == "dead":
            world.stop(world.machines["n1"])
        elif fate == "cut off":
            world.arrives = lambda sender, to, message: "n1" not in (sender, to)
        else:
            world.arrives = lambda sender, to, message: sender != "n1"
        world.named("n0", "n1")
        assert world.until_led() <= 2 * world.plain
        assert world.leader() == "n2"


def test_a_ticket_to_one_that_left_costs_at_most_what_the_plain_way_takes() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    world.named("n0", "n1", "another")
    assert world.until_led() <= 2 * world.plain


def test_who_does_not_answer_is_not_chosen() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    world.stop(world.machines["n1"])
    world.run(world.now + 0.6)
    world.resign(world.machines["n0"], "key0", None)
    assert world.until_led() == pytest.approx(1.5 * ROUND_TRIP, rel=0.01)
    assert world.leader() == "n2"


def test_who_has_led_since_is_not_chosen_before_it_says_that_it_waits_again() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    for leader in ("n0", "n1", "n2"):
        world.sent.clear()
        world.resign(world.machines[leader], "key0", None)
        if leader != "n2":
            world.until_led()
    world.run(world.now + ROUND_TRIP)
    assert {ticket.successor for ticket in tickets(world)} == {""}


def test_who_was_named_and_is_not_there_is_not_named_again() -> None:
    world = Quiet()
    world.queue("n0", "n1")
    world.leave(world.machines["n1"], "key0")
    world.run(world.now + 2)
    told = world.node("n0").queues._heard["n1"].waiters
    told["key0"] = (Waiter("n1", "a ghost", "", 0.0),)
    named = []
    for _ in range(2):
        world.sent.clear()
        world.resign(world.machines["n0"], "key0", None)
        world.run(world.now + ROUND_TRIP)
        world.enter(world.machines["n0"], "key0")
        world.until_led()
        named.append({ticket.successor for ticket in tickets(world)})
    assert named == [{"n1"}, {""}]


def test_who_was_named_in_vain_still_waits_and_is_named_again_in_time() -> None:
    world = Quiet()
    world.queue("n0", "n1")
    lost = {"n0": Release, "n1": PreVote}
    world.arrives = lambda sender, to, message: not isinstance(message, lost.get(sender, ()))
    leader = world.machines["n0"]
    world.resign(leader, "key0", None)
    while "key0" in leader.contending:
        world.run(world.now + DELAY)
    world.enter(leader, "key0")
    world.until_led()
    assert world.leader() == "n0"
    now = leader.local(world.now)
    assert [each.node for each in world.node("n0").queues.waiting("key0", now)] == ["n1"]
    world.run(world.now + world.plan.timing.lease_ceiling)
    world.sent.clear()
    world.resign(leader, "key0", None)
    world.run(world.now + ROUND_TRIP)
    assert {ticket.successor for ticket in tickets(world)} == {"n1"}


def test_others_leave_the_successor_time_to_come() -> None:
    for seed in range(5):
        world = Quiet(5, seed=seed)
        world.queue("n0", "n1", "n2", "n3", "n4")
        late: list[Message] = []

        def hold(sender: str, to: str, message: Message, late: list[Message] = late) -> bool:
            if to == "n1" and isinstance(message, Release) and not late:
                late.append(message)
                return False
            return True

        world.arrives = hold
        world.resign(world.machines["n0"], "key0", None)
        world.run(world.now + DELAY + world.plan.timing.backoff * 0.4)
        world._receive(world.machines["n1"], late[0])
        world.until_led()
        assert world.leader() == "n1"


def test_who_does_not_take_part_yet_is_not_chosen() -> None:
    queues = Queues(mail("n1"), Timing())
    queues.learn(answer(*own_with(1).news_for(heartbeat(0), 10.0)), 10.0)
    peer = queues._mail.peer("n0")
    peer.answered_at, peer.ready = 10.0, True
    assert [each.since for each in queues.waiting("key0", 10.1)] == [1.0]
    peer.ready = False
    assert queues.waiting("key0", 10.1) == []


def test_who_was_restarted_waits_no_more() -> None:
    world = Quiet()
    world.queue("n0", "n1")
    world.stop(world.machines["n1"])
    world.keys, wanted = [], world.keys
    world.start(world.machines["n1"])
    world.keys = wanted
    world.run(world.now + 4)
    assert world.node("n0").queues.waiting("key0", world.machines["n0"].local(world.now)) == []


def test_a_successor_needs_its_majority() -> None:
    world = Quiet()
    world.queue("n0", "n1", "n2")
    world.arrives = lambda sender, to, message: not isinstance(message, Vote)
    world.named("n0", "n1")
    world.run(world.now + 3)
    assert world.leader() is None


# --- what is told ---


def test_where_nothing_changes_an_answer_names_nobody_however_many_wait() -> None:
    def answers(keys: int) -> set[tuple[int, int]]:
        world = Quiet(keys=keys)
        for name in ("n0", "n1"):
            for key in world.keys:
                world.enter(world.machines[name], key)
            # One node after the other: where votes are split, a key is refused for good.
            world.run(world.now + 3)
        world.sent.clear()
        world.run(world.now + 2)
        told = [message for _, _, message in world.sent if isinstance(message, HeartbeatAnswer)]
        assert len(told) > 20
        return {(len(answer.queues), len(answer.refused)) for answer in told}

    assert answers(1) == answers(60) == {(0, 0)}


def test_many_that_change_at_once_are_told_over_some_answers() -> None:
    told = news(own_with(1300))
    assert [len(queues) for queues in told] == [512, 512, 276, 0]
    assert len({queue.key for queues in told for queue in queues}) == 1300


def test_a_change_is_told_alone_and_to_who_heard_nothing_with_all_the_rest() -> None:
    queues = own_with(3)
    first, _ = queues.news_for(heartbeat(0), 10.0)
    queues.note("key1", ())
    assert queues.news_for(heartbeat(first), 10.0)[1] == (Queue("key1", ()),)
    assert {queue.key for queue in queues.news_for(heartbeat(0), 10.0)[1]} == {
        "key0",
        "key1",
        "key2",
    }
    # Whoever speaks to an earlier run of this node has heard nothing of this one.
    assert len(queues.news_for(heartbeat(first, run="earlier"), 10.0)[1]) == 3


def test_an_answer_that_was_overtaken_changes_nothing() -> None:
    queues = Queues(mail("n1"), Timing())
    own = own_with(1)
    old = answer(*own.news_for(heartbeat(0), 10.0))
    own.note("key0", ())
    queues.learn(answer(*own.news_for(heartbeat(0), 10.0)), 10.0)
    queues.learn(old, 10.0)
    assert not queues._heard["n0"].waiters


def test_keys_that_nobody_waits_for_any_more_are_forgotten_in_time() -> None:
    queues = own_with(5)
    for number in range(20_500):
        queues.note(f"passing{number}", (Waiter("n0", "1", "", 0.0),))
        queues.note(f"passing{number}", ())
    assert len(queues._own) < 10_100
    assert len([own for own in queues._own.values() if own.waiters]) == 5


def test_messages_without_the_new_fields_are_understood() -> None:
    encode = msgspec.json.Encoder().encode
    decoder = msgspec.json.Decoder(AnyMessage, strict=True)
    ticket = Ticket("k", "n0", "r0", "1", 7, "", "", "")
    new: list[tuple[Message, tuple[str, ...]]] = [
        (heartbeat(3), ("heard",)),
        (answer(3, (Queue("k", ()),)), ("queued", "queues")),
        (Release(heartbeat(0).header, ticket, "1"), ("contender",)),
    ]
    for message, fields in new:
        plain = msgspec.json.decode(encode(message))
        assert decoder.decode(encode(plain)) == message
        for field in fields:
            del plain[field]
        old = decoder.decode(encode(plain))
        assert all(not getattr(old, field) for field in fields)


def tickets(world: Quiet) -> list[Ticket]:
    """Of the releases that were sent."""
    return [message.ticket for _, _, message in world.sent if isinstance(message, Release)]


def mail(id: str) -> Mail:
    timing = Timing()
    return Mail(id, "run", timing, Quorum("c", timing, first_stage(["n0", "n1"])))


def own_with(keys: int) -> Queues:
    queues = Queues(mail("n0"), Timing())
    for number in range(keys):
        queues.note(f"key{number}", (Waiter("n0", "1", "a", 1.0),))
    return queues


def heartbeat(heard: int, run: str = "run") -> Heartbeat:
    return Heartbeat(Header(1, "c", "n1", "run", "n0", run, 1), 0, 1, 0, (), (), heard)


def answer(queued: int, queues: tuple[Queue, ...]) -> HeartbeatAnswer:
    header = Header(1, "c", "n0", "run", "n1", "run", 1)
    return HeartbeatAnswer(header, 1, 5.0, (), True, False, queued, queues)


def news(queues: Queues) -> list[tuple[Queue, ...]]:
    """What one that heard nothing is told, answer by answer."""
    heard = 0
    told: list[tuple[Queue, ...]] = []
    while not told or told[-1]:
        heard, changes = queues.news_for(heartbeat(heard), 10.0)
        told.append(changes)
    return told
