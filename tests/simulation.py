"""A world of machines, clocks and a bad network for the core of the peers backend, from a seed.

`simulate(seed)` plays one schedule: a real bootstrap, then faults of all kinds,
then a healed network in which a leader must appear within a bound. What must
hold is checked at each step; a breach raises `Violation`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from leadership.backends._quorum_effects import (
    Effect,
    Elected,
    Ignored,
    LeaderSeen,
    Lost,
    MembersChanged,
    Persist,
    Ready,
    Released,
    Renewed,
    Send,
    StoredState,
    TwoIncarnations,
)
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_messages import Members, Message
from leadership.backends._quorum_timing import FAR_AHEAD, Timing, floor_term

START = 1_790_000_000_000.0
"""Wall time of the world's first moment, in milliseconds."""


class Violation(AssertionError):
    """A schedule broke a guarantee."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one schedule is made of. All durations in seconds of true time."""

    seed: int
    nodes: int
    keys: int
    timing: Timing
    durable: bool
    faults_until: float
    loss: float
    duplicates: float
    replays: float
    slow: float
    longest_delay: float
    faults_per_second: float
    wishes_per_second: float
    wild_clocks: bool
    change_members: bool
    lost_disks: bool
    bootstrap: bool
    some_without_bootstrap: bool
    hasty_operators: bool


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    chance = Random(seed)
    nodes = chance.choice([2, 3, 3, 3, 4, 5, 5, 6, 7])
    durable = chance.random() < 0.4
    harsh = chance.random()
    change_members = durable and chance.random() < 0.5
    beginning = Random(f"bootstrap {seed}")
    return Plan(
        seed=seed,
        nodes=nodes,
        keys=chance.choice([1, 1, 2, 3]),
        timing=Timing(
            lease_ceiling=1.0,
            vote_window=0.6,
            max_clock_drift=0.05,
            heartbeat=0.2,
            guard=0.01,
            backoff=0.1,
            # With clocks that agree, who starts together takes part at once.
            wall_clock_skew=chance.choice([0.3, 2.0]) * beginning.choice([0.0, 1.0, 1.0]),
            wall_clock_limit=3600.0,
        ),
        durable=durable,
        faults_until=chance.uniform(8, 16),
        loss=chance.choice([0.0, 0.02, 0.1, 0.3]),
        duplicates=chance.choice([0.0, 0.05, 0.2]),
        replays=chance.choice([0.0, 0.02, 0.1]),
        slow=chance.choice([0.0, 0.02, 0.1, 0.25]),
        longest_delay=chance.choice([0.3, 1.0, 3.0]),
        faults_per_second=0.3 + 2.0 * harsh,
        wishes_per_second=chance.choice([0.1, 0.5, 2.0]),
        wild_clocks=chance.random() < 0.15,
        change_members=change_members,
        lost_disks=durable and not change_members and chance.random() < 0.3,
        bootstrap=beginning.random() < 0.4,
        some_without_bootstrap=beginning.random() < 0.25,
        hasty_operators=change_members and Random(f"operators {seed}").random() < 0.4,
    )


@dataclass(eq=False, slots=True)
class Term:
    """A term as its leader was told of it."""

    machine: Machine
    key: str
    uid: str
    token: int
    valid_until: float


@dataclass(eq=False, slots=True)
class Machine:
    """One computer, its clocks, its disk, and the node on it."""

    id: str
    rate: float
    base_real: float
    base_local: float
    wall_offset: float
    node: QuorumLease | None = None
    incarnation: int = 0
    paused: bool = False
    waiting: list[Message] = field(default_factory=list)
    stored: StoredState | None = None
    writing: list[Persist] = field(default_factory=list)
    disk_works: bool = True
    wake_at: float = math.inf
    wakes: int = 0
    last_local: float = -math.inf
    terms: dict[str, Term] = field(default_factory=dict)
    contending: dict[str, str] = field(default_factory=dict)
    was_ahead: bool = False

    def local(self, real: float) -> float:
        """What its clock shows; never goes back."""
        shown = self.base_local + (real - self.base_real) * self.rate
        self.last_local = max(self.last_local, shown)
        return self.last_local

    def real(self, local: float) -> float:
        """When its clock shows this, at the present rate."""
        return self.base_real + (local - self.base_local) / self.rate


MakeNode = Callable[..., QuorumLease]
Trace = Callable[[str], None]


class World:
    """One schedule.

    Args:
        plan: what happens.
        make_node: `QuorumLease`, or a mutant of it.
        trace: takes a line for each event worth reading, or None.
    """

    def __init__(
        self, plan: Plan, make_node: MakeNode = QuorumLease, trace: Trace | None = None
    ) -> None:
        self.plan = plan
        self.now = 0.0
        self.random = Random(plan.seed * 7919 + 1)
        self.make_node = make_node
        self.trace = trace
        self.keys = [f"key{i}" for i in range(plan.keys)]
        self.machines: dict[str, Machine] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.healed = False
        self.leaderships = 0
        self.delivered = 0
        self.highest: dict[str, int] = dict.fromkeys(self.keys, 0)
        self.terms: dict[str, list[Term]] = {key: [] for key in self.keys}
        self.recorded: list[tuple[str, Message]] = []
        self.stage: Members | None = None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._runs = 0
        self._handlers: dict[type[Effect], Callable[[Machine, Any], None]] = {
            Send: self._on_send,
            Persist: self._on_persist,
            Elected: self._on_elected,
            Renewed: self._on_renewed,
            Lost: self._on_lost,
            Released: self._on_released,
            LeaderSeen: self._on_nothing,
            Ready: self._on_ready,
            TwoIncarnations: self._on_two_incarnations,
            MembersChanged: self._on_members_changed,
            Ignored: self._on_nothing,
        }

    # --- running ---

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Schedule."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        """Schedule, from now."""
        self.at(self.now + delay, action, *args)

    def run(self, until: float) -> None:
        """Play all events up to a moment."""
        events = self._events
        pop = heapq.heappop
        while events and events[0][0] <= until:
            self.now, _, action, args = pop(events)
            action(*args)
        self.now = until

    def say(self, machine: Machine | None, text: str) -> None:
        """To the trace."""
        if self.trace is not None:
            where = f"{machine.id:>4}" if machine else "    "
            self.trace(f"{self.now:9.4f} {where}  {text}")

    def fail(self, text: str) -> None:
        """A guarantee is broken."""
        self.say(None, f"VIOLATION: {text}")
        raise Violation(f"seed {self.plan.seed} at {self.now:.4f} s: {text}")

    # --- machines ---

    def add_machine(self, name: str) -> Machine:
        """A computer that is off."""
        skew = self.plan.timing.wall_clock_skew * 1000
        drift = self.plan.timing.max_clock_drift
        machine = self.machines[name] = Machine(
            name,
            rate=self.random.uniform(1 - drift, 1 + drift),
            base_real=self.now,
            base_local=self.random.uniform(0, 1e5),
            wall_offset=self.random.uniform(-skew / 2, skew / 2),
        )
        return machine

    def start(self, machine: Machine, members: list[str] | None = None) -> None:
        """Start its node, with what is on its disk."""
        if machine.node is not None:
            return
        self._runs += 1
        machine.incarnation = self._runs
        machine.paused = False
        local = machine.local(self.now)
        machine.node = self.make_node(
            id=machine.id,
            incarnation=f"i{self._runs}",
            members=members or self.members(),
            cluster="simulated",
            timing=self.plan.timing,
            random=Random(self.random.getrandbits(32)),
            wall_clock=lambda: START + self.now * 1000 + machine.wall_offset,
            now=local,
            durable=self.plan.durable,
            stored=machine.stored if self.plan.durable else None,
            bootstrap=self._begins(machine),
        )
        self.say(machine, f"starts as i{self._runs}")
        for key in self.keys:
            if self.random.random() < 0.8 or self.healed:
                self.enter(machine, key)
        self._reschedule(machine)

    def _begins(self, machine: Machine) -> bool:
        """Whether the machine's configuration says `bootstrap`."""
        plan = self.plan
        left_out = Random(f"bootstrap {plan.seed} {machine.id}").random() < 0.5
        return plan.bootstrap and not (plan.some_without_bootstrap and left_out)

    def members(self) -> list[str]:
        """The list that a machine is started with: what an operator knows."""
        if self.stage is not None:
            return list(self.stage.members)
        return [name for name in self.machines if name.startswith("n")]

    def stop(self, machine: Machine) -> None:
        """It crashes, with all that it knew; a write under way is done or not."""
        if machine.node is None:
            return
        self.say(machine, "crashes")
        for persist in machine.writing:
            if self.random.random() < 0.5:
                break
            machine.stored = persist.state
        machine.writing.clear()
        machine.node = None
        machine.paused = False
        machine.waiting.clear()
        for term in list(machine.terms.values()):
            self._end(term)
        machine.contending.clear()
        machine.wakes += 1
        machine.wake_at = math.inf

    def pause(self, machine: Machine, seconds: float) -> None:
        """It stands still; what is sent to it waits in its socket."""
        if machine.node is None or machine.paused:
            return
        self.say(machine, f"stands still for {seconds:.2f} s")
        machine.paused = True
        self.after(seconds, self.resume, machine, machine.incarnation)

    def resume(self, machine: Machine, incarnation: int) -> None:
        """It goes on, and reads its old mail before it looks at the time, or after."""
        if not machine.paused or machine.incarnation != incarnation:
            return
        self.say(machine, "goes on")
        machine.paused = False
        waiting, machine.waiting = machine.waiting, []
        if self.random.random() < 0.5:
            self._tick(machine)
        for message in waiting:
            self._receive(machine, message)
        self._tick(machine)

    def change_rate(self, machine: Machine) -> None:
        """Its clock is slewed, within the bound."""
        drift = self.plan.timing.max_clock_drift
        machine.base_local = machine.local(self.now)
        machine.base_real = self.now
        machine.rate = self.random.choice(
            [1 - drift, 1 + drift, self.random.uniform(1 - drift, 1 + drift)]
        )
        machine.wake_at = math.inf
        self._reschedule(machine)

    def _reschedule(self, machine: Machine) -> None:
        node = machine.node
        if node is None:
            return
        wake_at = node.next_tick
        if wake_at != machine.wake_at:
            machine.wake_at = wake_at
            machine.wakes += 1
            if wake_at < math.inf:
                self.at(max(self.now, machine.real(wake_at)), self._wake, machine, machine.wakes)

    def _wake(self, machine: Machine, wakes: int) -> None:
        if wakes == machine.wakes and not machine.paused:
            machine.last_local = max(machine.last_local, machine.wake_at)
            self._tick(machine)

    def _tick(self, machine: Machine) -> None:
        node = machine.node
        if node is None or machine.paused:
            return
        local = machine.local(self.now)
        self._carry_out(machine, node.tick(local))
        for term in machine.terms.values():
            if term.valid_until <= local:
                self.fail(f"{machine.id} was not told that its term {term.token} is over")
        machine.wake_at = math.nan
        self._reschedule(machine)

    def _receive(self, machine: Machine, message: Message) -> None:
        node = machine.node
        if node is None:
            return
        self.delivered += 1
        effects = node.receive(message, machine.local(self.now))
        if effects:
            self._carry_out(machine, effects)
        self._reschedule(machine)

    def _carry_out(self, machine: Machine, effects: list[Effect]) -> None:
        handlers = self._handlers
        for effect in effects:
            handlers[type(effect)](machine, effect)

    # --- the network ---

    def _on_send(self, machine: Machine, effect: Send) -> None:
        if effect.to == machine.id:
            self.fail(f"{machine.id} sends to itself")
        plan, random = self.plan, self.random
        message = effect.message
        if not self.healed:
            if random.random() < plan.replays:
                self.recorded.append((effect.to, message))
                if len(self.recorded) > 200:
                    del self.recorded[: random.randrange(100)]
            if random.random() < plan.duplicates:
                self.after(self._delay(), self._deliver, machine.id, effect.to, message)
            if random.random() < plan.loss:
                return
        self.after(self._delay(), self._deliver, machine.id, effect.to, message)

    def _delay(self) -> float:
        random = self.random.random
        if not self.healed and random() < self.plan.slow:
            return random() * self.plan.longest_delay
        return 0.0005 + 0.004 * random()

    def _deliver(self, sender: str, receiver: str, message: Message) -> None:
        if (sender, receiver) in self.cuts:
            return
        machine = self.machines.get(receiver)
        if machine is None or machine.node is None:
            return
        if machine.paused:
            if len(machine.waiting) < 300:
                machine.waiting.append(message)
            return
        self._receive(machine, message)

    def replay(self) -> None:
        """Somebody sends again what was once sent."""
        if self.recorded:
            receiver, message = self.random.choice(self.recorded)
            self._deliver("", receiver, message)

    # --- the disk ---

    def _on_persist(self, machine: Machine, effect: Persist) -> None:
        if not self.plan.durable:
            self.fail("a node without a disk wants to write")
        machine.writing.append(effect)
        self.after(self.write_takes(), self._written, machine, machine.incarnation, effect)

    def write_takes(self) -> float:
        """Seconds until something is on a disk."""
        return self.random.uniform(0, 0.01)

    def _written(self, machine: Machine, incarnation: int, effect: Persist) -> None:
        node = machine.node
        if node is None or machine.incarnation != incarnation or effect not in machine.writing:
            return
        if machine.paused:
            self.after(0.05, self._written, machine, incarnation, effect)
            return
        done = machine.writing.index(effect) + 1
        del machine.writing[:done]
        succeeded = machine.disk_works or self.healed
        if succeeded:
            machine.stored = effect.state
        self._carry_out(machine, node.persisted(effect.number, succeeded, machine.local(self.now)))
        self._reschedule(machine)

    # --- users ---

    def enter(self, machine: Machine, key: str) -> None:
        """A contender of its own begins to campaign, if there is none."""
        node = machine.node
        if node is None or machine.paused or key in machine.contending:
            return
        uid = f"contender of {machine.id}"
        machine.contending[key] = uid
        ttl = self.random.uniform(0.92, 1.0)
        effects = node.campaign(key, uid, uid.encode(), ttl, machine.local(self.now))
        self._carry_out(machine, effects)
        self._reschedule(machine)

    def leave(self, machine: Machine, key: str) -> None:
        """The contender withdraws, at whatever point; a leader ends its work first."""
        node = machine.node
        if node is None or machine.paused or key not in machine.contending:
            return
        uid = machine.contending[key]
        term = machine.terms.get(key)
        if term is not None:
            self._end(term)
        self.say(machine, f"withdraws from {key}")
        self._carry_out(machine, node.withdraw(key, uid, machine.local(self.now)))
        self._reschedule(machine)

    def resign(self, machine: Machine, key: str, successor: str | None) -> None:
        """The leader, if it is one, gives way."""
        node, term = machine.node, machine.terms.get(key)
        if node is None or machine.paused or term is None:
            return
        local = machine.local(self.now)
        if local >= term.valid_until:
            return
        contender = self.random.choice(["", f"contender of {successor}"]) if successor else ""
        named = {None: "who waits longest", "": "nobody"}.get(successor, f"{successor} {contender}")
        self.say(machine, f"resigns {key} term {term.token} to {named}")
        self._end(term)
        effects = node.resign(key, term.uid, local, successor=successor, contender=contender)
        self._carry_out(machine, effects)
        self._reschedule(machine)

    def change_members(self, machine: Machine, members: list[str]) -> None:
        """An operator asks this node to change the member list."""
        node = machine.node
        assert node is not None
        effects = node.change_members(members, machine.local(self.now))
        self.say(machine, f"is asked to change the members to {', '.join(sorted(members))}")
        self._carry_out(machine, effects)
        self._reschedule(machine)

    # --- what is told, and what must hold ---

    def _on_elected(self, machine: Machine, effect: Elected) -> None:
        local = machine.local(self.now)
        self.say(
            machine,
            f"leads {effect.key} in term {effect.term} for {effect.valid_until - local:.3f} s",
        )
        key = effect.key
        if key in machine.terms or machine.contending.get(key) != effect.uid:
            self.fail(f"{effect.uid} leads {key} twice, or does not contend")
        if effect.valid_until <= local:
            self.fail(f"{effect.uid} was elected too late")
        self._check_clock(effect.term)
        if effect.term <= self.highest[key]:
            self.fail(f"token {effect.term} of {key} is not above {self.highest[key]}")
        self._check_alone(key, effect.term)
        self.highest[key] = effect.term
        self.leaderships += 1
        term = Term(machine, key, effect.uid, effect.term, effect.valid_until)
        machine.terms[key] = term
        self.terms[key].append(term)

    def _on_renewed(self, machine: Machine, effect: Renewed) -> None:
        term = machine.terms.get(effect.key)
        if term is None or term.token != effect.term:
            self.fail(f"{machine.id} renews term {effect.term} that it does not lead")
            return
        if machine.local(self.now) >= term.valid_until:
            self.fail(f"{machine.id} revives its term {effect.term}")
        term.valid_until = effect.valid_until
        if len(self.terms[effect.key]) > 1:
            self._check_alone(effect.key, effect.term)

    def _check_alone(self, key: str, token: int) -> None:
        for other in list(self.terms[key]):
            if other.token == token:
                continue
            if other.machine.local(self.now) < other.valid_until:
                self.fail(
                    f"terms {other.token} ({other.machine.id}) and {token} of {key} "
                    "are valid at the same time"
                )

    def _check_clock(self, term: int) -> None:
        """Wall clocks that are wrong on a few machines are not seen in the tokens."""
        ahead = sum(machine.was_ahead for machine in self.machines.values())
        timing = self.plan.timing
        limit = timing.wall_clock_limit + timing.wall_clock_skew
        few = ahead < (self.plan.nodes + 1) // 2 and not self.plan.change_members
        if few and term > floor_term(START + (self.now + limit) * 1000) + FAR_AHEAD:
            self.fail(f"term {term} is far ahead, though most clocks never were")

    def _on_lost(self, machine: Machine, effect: Lost) -> None:
        self.say(machine, f"has lost {effect.key}: {effect.reason}")
        term = machine.terms.get(effect.key)
        if term is not None:
            self._end(term)
        if machine.contending.pop(effect.key, None) is None:
            self.fail(f"{machine.id} lost {effect.key} without contending")
        self._think(machine, effect.key)

    def _on_released(self, machine: Machine, effect: Released) -> None:
        self.say(machine, f"has released {effect.key}")
        if machine.contending.get(effect.key) == effect.uid:
            if effect.key in machine.terms:
                self.fail(f"{effect.uid} is released, and leads")
            del machine.contending[effect.key]
            self._think(machine, effect.key)

    def _think(self, machine: Machine, key: str) -> None:
        pause = 0.0 if self.healed else self.random.choice([0.0, 0.0, 0.5, 2.0])
        self.after(pause, self.enter, machine, key)

    def _end(self, term: Term) -> None:
        del term.machine.terms[term.key]
        self.terms[term.key].remove(term)

    def _on_ready(self, machine: Machine, effect: Ready) -> None:
        self.say(machine, "is ready")

    def _on_two_incarnations(self, machine: Machine, effect: TwoIncarnations) -> None:
        if effect.raised:
            self.fail(f"{machine.id} sees two runs of {effect.node}, and there is one")

    def _on_members_changed(self, machine: Machine, effect: MembersChanged) -> None:
        stage = effect.stage
        self.say(machine, f"acts under {stage}")
        if not stage.joining and (self.stage is None or stage.epoch > self.stage.epoch):
            self.stage = stage

    def _on_nothing(self, machine: Machine, effect: Effect) -> None:
        pass
