"""What befalls a simulated world, and the schedule from bootstrap to the healed end."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_members import progress
from leadership.backends._quorum_messages import Members
from leadership.errors import ConfigurationError, NotSupported

from .simulation import Machine, MakeNode, Plan, Trace, Violation, World, draw

YEARS = 10 * 365 * 86_400_000.0
"""Ten years in milliseconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule came to.

    Attributes:
        leaderships: terms that began.
        messages: delivered.
        healed_after: seconds from healing until all nodes took part and each key had a leader.
        bound: what `healed_after` had to stay below.
    """

    leaderships: int
    messages: int
    healed_after: float
    bound: float


def simulate(
    plan: Plan | int, make_node: MakeNode = QuorumLease, trace: Trace | None = None
) -> Outcome:
    """Play one schedule.

    Raises:
        Violation: a guarantee did not hold.
    """
    if isinstance(plan, int):
        plan = draw(plan)
    world = World(plan, make_node, trace)
    faults = Faults(world)
    faults.begin()
    world.run(plan.faults_until)
    return faults.heal()


class Faults:
    """Chance's hand."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.random = world.random

    def begin(self) -> None:
        """The real bootstrap: all machines start, each in its own moment, and faults begin."""
        world, plan = self.world, self.plan
        for i in range(plan.nodes):
            world.add_machine(f"n{i}")
        machines = list(world.machines.values())
        if plan.wild_clocks:
            # Fewer, as many, or more than a majority.
            for machine in machines[: self.random.randint(1, plan.nodes)]:
                machine.wall_offset += YEARS
                machine.was_ahead = True
                world.at(self.random.uniform(1, 12), self._step_back, machine)
        for machine in machines:
            world.at(self.random.choice([0.0, self.random.uniform(0, 4)]), world.start, machine)
        self._next_fault()
        self._next_wish()
        if plan.replays:
            self._next_replay()

    def _step_back(self, machine: Machine) -> None:
        if machine.wall_offset > YEARS / 2:
            machine.wall_offset -= YEARS
            self.world.say(machine, "wall clock steps back to the truth")

    # --- phase 1 ---

    def _next_fault(self) -> None:
        self.world.after(self.random.expovariate(self.plan.faults_per_second), self._fault)

    def _fault(self) -> None:
        world = self.world
        if world.healed:
            return
        faults = [
            (self._crash, 3),
            (self._pause, 3),
            (self._cut_one_way, 3),
            (self._cut_off, 2),
            (self._split, 2),
            (self._mend, 4),
            (self._change_rate, 3),
            (self._crash_all, 0.5),
            (self._break_disk, 1 if self.plan.durable else 0),
            (self._move_wall_clock, 1),
            (self._lose_disk, 1 if self.plan.lost_disks else 0),
            (self._change_members, 3 if self.plan.change_members else 0),
            (self._change_in_haste, 3 if self.plan.hasty_operators else 0),
        ]
        fault = self.random.choices([f for f, _ in faults], [weight for _, weight in faults])[0]
        fault()
        self._next_fault()

    def _lose_disk(self) -> None:
        if self.plan.wild_clocks:
            return
        machine = self._any()
        self.world.stop(machine)
        self.world.say(machine, "loses its disk")
        machine.stored = None
        self.world.after(self._downtime(), self.world.start, machine)

    def _change_members(self) -> None:
        """An operator adds, removes or replaces a member, through any node."""
        world = self.world
        asked = self._any()
        node = asked.node
        if node is None or asked.paused or node.stage.joining:
            return
        members = list(node.stage.members)
        new = f"m{len(world.machines)}"
        choice = self.random.random()
        if choice < 0.6 and len(members) > 2:
            members.remove(self.random.choice(members))
        if choice > 0.3 and len(members) < 7:
            members.append(new)
        with contextlib.suppress(NotSupported, ConfigurationError):
            world.change_members(asked, members)
            if new in members:
                world.start(world.add_machine(new), list(node.stage.members))

    def _change_in_haste(self) -> None:
        """Two operators wish something at a time, and one of them gives up."""
        self._change_members()
        self._change_members()
        machine = self._any()
        self.world.after(self.random.uniform(0, 1), self._give_up, machine, machine.incarnation)

    def _give_up(self, machine: Machine, incarnation: int) -> None:
        if machine.node is not None and not machine.paused and machine.incarnation == incarnation:
            machine.node.stop_changing_members()

    def _any(self) -> Machine:
        return self.random.choice(list(self.world.machines.values()))

    def _crash(self) -> None:
        machine = self._any()
        if self._may_forget():
            self.world.stop(machine)
            self.world.after(self._downtime(), self.world.start, machine)

    def _crash_all(self) -> None:
        if not self._may_forget():
            return
        machines = list(self.world.machines.values())
        self.world.say(None, "all crash")
        for machine in machines:
            self.world.stop(machine)
            self.world.after(self._downtime(), self.world.start, machine)

    def _may_forget(self) -> bool:
        # With wall clocks that are years off, a majority without memory and
        # without a disk has nothing to tell later terms by: that is documented.
        return self.plan.durable or not self.plan.wild_clocks

    def _downtime(self) -> float:
        return self.random.choice([0.0, 0.05, self.random.uniform(0, 1), self.random.uniform(0, 4)])

    def _pause(self) -> None:
        self.world.pause(self._any(), self.random.choice([0.3, 1.2, self.random.uniform(0, 3)]))

    def _cut_one_way(self) -> None:
        a, b = self._any(), self._any()
        if a is not b:
            self.world.cuts.add((a.id, b.id))
            self.world.say(a, f"is not heard by {b.id}")

    def _cut_off(self) -> None:
        machine = self._any()
        self.world.say(machine, "is cut off")
        for other in self.world.machines:
            if other != machine.id:
                self.world.cuts |= {(machine.id, other), (other, machine.id)}

    def _split(self) -> None:
        names = list(self.world.machines)
        self.random.shuffle(names)
        at = self.random.randrange(1, len(names)) if len(names) > 1 else 0
        left, right = names[:at], names[at:]
        self.world.say(None, f"split: {left} | {right}")
        self.world.cuts |= {(a, b) for a in left for b in right}
        self.world.cuts |= {(b, a) for a in left for b in right}

    def _mend(self) -> None:
        cuts = sorted(self.world.cuts)
        self.world.cuts = set() if self.random.random() < 0.6 else set(cuts[::2])
        if cuts:
            self.world.say(None, f"{len(self.world.cuts)} of {len(cuts)} cuts are left")

    def _change_rate(self) -> None:
        self.world.change_rate(self._any())

    def _break_disk(self) -> None:
        machine = self._any()
        machine.disk_works = not machine.disk_works
        self.world.say(machine, f"disk {'works' if machine.disk_works else 'fails'}")

    def _move_wall_clock(self) -> None:
        machine = self._any()
        if machine.wall_offset < YEARS / 2:
            skew = self.plan.timing.wall_clock_skew * 1000
            machine.wall_offset = self.random.uniform(-skew / 2, skew / 2)

    # --- users ---

    def _next_wish(self) -> None:
        self.world.after(self.random.expovariate(self.plan.wishes_per_second), self._wish)

    def _wish(self) -> None:
        world = self.world
        if world.healed:
            return
        key = self.random.choice(world.keys)
        choice = self.random.random()
        if choice < 0.2:
            world.leave(self._any(), key)
        elif choice < 0.7:
            for machine in world.machines.values():
                if key in machine.terms:
                    others = [name for name in world.machines if name != machine.id]
                    to = self.random.choice([None, "", self.random.choice(others), machine.id])
                    world.resign(machine, key, to)
                    break
        else:
            world.enter(self._any(), key)
        self._next_wish()

    def _next_replay(self) -> None:
        self.world.after(self.random.expovariate(5), self._replay)

    def _replay(self) -> None:
        if not self.world.healed:
            self.world.replay()
            self._next_replay()

    # --- phase 2 ---

    def heal(self) -> Outcome:
        """All is repaired: a leader for each key appears within a bound, and stays."""
        world = self.world
        world.say(None, "HEALED")
        world.healed = True
        world.cuts.clear()
        for machine in world.machines.values():
            world.resume(machine, machine.incarnation)
            machine.disk_works = True
            self._step_back(machine)
            world.start(machine)
            for key in world.keys:
                world.enter(machine, key)
        bound = self.bound()
        healed_at = world.now
        step = 0.05
        led_at = math.inf
        while world.now < healed_at + bound:
            world.run(world.now + step)
            if self._all_led() and self._settled():
                led_at = world.now
                break
        if led_at == math.inf:
            missing = [key for key in world.keys if not self._leader(key)]
            world.fail(f"{', '.join(missing)} without a leader {bound:.2f} s after healing")
        self._stays()
        return Outcome(world.leaderships, world.delivered, led_at - healed_at, bound)

    def bound(self) -> float:
        """Seconds within which a healed cluster must have a leader for each key."""
        timing = self.plan.timing
        on_clock = (
            # Mail of before is on its way, and may renew promises to those who are gone.
            self.plan.longest_delay
            # All may have to recover from a loss of all memory.
            + timing.silence(None)
            + timing.wall_clock_skew
            + 4 * timing.heartbeat
            # A promise, seen or waited for, and a second one of a campaign that failed.
            + 2 * timing.lease_ceiling
            # A handful of campaigns that meet each other.
            + 10 * (timing.backoff * 2 + timing.heartbeat)
        )
        if self.plan.change_members:
            # Perhaps a joint stage to finish, and another one that a node still has to begin.
            on_clock += 2 * (timing.lease_ceiling + timing.vote_window + 2 * timing.heartbeat)
        return timing.outlasting(on_clock)

    def _leader(self, key: str) -> Machine | None:
        for term in self.world.terms[key]:
            if term.machine.local(self.world.now) < term.valid_until:
                return term.machine
        return None

    def _latest(self) -> Members:
        nodes = [machine.node for machine in self.world.machines.values() if machine.node]
        return max((node.stage for node in nodes), key=progress)

    def _settled(self) -> bool:
        """Whether all members take part, under the same list."""
        nodes = [machine.node for machine in self.world.machines.values() if machine.node]
        latest = self._latest()
        members = [node for node in nodes if node.id in latest.members]
        return not latest.joining and all(node.ready and node.stage == latest for node in members)

    def _all_led(self) -> bool:
        return all(self._leader(key) for key in self.world.keys)

    def _stays(self) -> None:
        """Nobody deposes a leader without need."""
        world = self.world
        # What was sent before healing must have come or gone.
        world.run(world.now + self.plan.longest_delay)
        while True:
            stage = self._latest()
            if self.plan.change_members:
                # A change carries each term that may have been led, also one of a campaign
                # that failed after some gave it leases. Whoever leads in a lower one is
                # refused by all then, lapses once, and is followed in a higher one.
                world.run(world.now + 2 * self.plan.timing.lease_ceiling)
            leaderships = world.leaderships
            world.run(world.now + 2 * self.plan.timing.lease_ceiling)
            if self._latest() == stage and self._settled():
                break
            # An operator's wish from before has only now come through.
            world.run(world.now + self.bound())
        if not self._all_led() or world.leaderships != leaderships:
            world.fail("the leaders of a healed cluster change")


__all__ = ["Outcome", "Violation", "simulate"]
