"""Quiet worlds for directed tests of the peers core: what happens is what the test does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from leadership.backends._quorum_effects import Effect, Send
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_messages import Message

from .simulation import Machine, MakeNode, World, draw

DELAY = 0.01
"""Seconds that each message takes."""

NODE: MakeNode = QuorumLease
"""What runs on the machines: a test that a mutant must fail has the mutant here."""


class QuietWorld(World):
    """Machines whose users do nothing by themselves, on a network without faults.

    Attributes:
        told: the effects of each machine, but for `Send`.
        sent: what was sent, with sender and receiver.
        intercept: decides whether a message is delivered.
    """

    def __init__(
        self, nodes: int = 3, make_node: MakeNode | None = None, keys: int = 1, **plan: Any
    ) -> None:
        timing = plan.pop("timing", {})
        quiet = {
            "durable": False, "loss": 0.0, "duplicates": 0.0, "replays": 0.0, "slow": 0.0,
            "wild_clocks": False, "change_members": False, "lost_disks": False,
            "bootstrap": False, "some_without_bootstrap": False,
        }  # fmt: skip
        drawn = draw(0)
        super().__init__(
            dataclasses.replace(
                drawn,
                nodes=nodes,
                keys=keys,
                timing=dataclasses.replace(drawn.timing, **timing),
                **{**quiet, **plan},
            ),
            make_node or NODE,
        )
        self.told: dict[str, list[Effect]] = {}
        self.sent: list[tuple[str, str, Message]] = []
        self.intercept: Callable[[str, str, Message], bool] = lambda sender, to, message: True
        for i in range(nodes):
            self.add_machine(f"n{i}")

    @property
    def key(self) -> str:
        return self.keys[0]

    def start_all(self) -> None:
        """Start all, and wait until they take part."""
        for machine in list(self.machines.values()):
            self.start(machine)
        self.wait(lambda: all(m.node is None or m.node.ready for m in self.machines.values()))

    def elect(self, name: str, key: str | None = None) -> None:
        """Let this machine's contender lead."""
        machine = self.machines[name]
        self.enter(machine, key or self.key)
        self.wait(lambda: (key or self.key) in machine.terms)

    def node(self, name: str) -> QuorumLease:
        """The node of a machine."""
        node = self.machines[name].node
        assert node is not None
        return node

    def do(self, name: str, act: Callable[[QuorumLease, float], list[Effect]]) -> None:
        """Something that a driver does with its node."""
        machine = self.machines[name]
        self._carry_out(machine, act(self.node(name), machine.local(self.now)))
        self._reschedule(machine)

    def wait(self, condition: Callable[[], bool], limit: float = 20.0) -> float:
        """Run until it holds; the seconds that it took."""
        began = self.now
        while not condition():
            if self.now > began + limit or not self._events:
                raise AssertionError(f"not within {limit} s")
            self.run(self._events[0][0])
        return self.now - began

    def leader(self, key: str | None = None) -> str | None:
        """Who leads now, by its own clock."""
        for term in self.terms[key or self.key]:
            if term.machine.local(self.now) < term.valid_until:
                return term.machine.id
        return None

    def of_kind(self, name: str, kind: type[Effect]) -> list[Any]:
        """What a machine was told."""
        return [effect for effect in self.told.get(name, []) if isinstance(effect, kind)]

    def start(self, machine: Machine, members: list[str] | None = None) -> None:
        contending, self.keys = self.keys, []
        super().start(machine, members)
        self.keys = contending

    def _think(self, machine: Machine, key: str) -> None:
        pass

    def _delay(self) -> float:
        return DELAY

    def _deliver(self, sender: str, receiver: str, message: Message) -> None:
        if self.intercept(sender, receiver, message):
            super()._deliver(sender, receiver, message)

    def _carry_out(self, machine: Machine, effects: list[Effect]) -> None:
        told = self.told.setdefault(machine.id, [])
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append((machine.id, effect.to, effect.message))
            else:
                told.append(effect)
        super()._carry_out(machine, effects)


class SlowDisks(QuietWorld):
    """Each write takes `heartbeats_to_write`."""

    heartbeats_to_write = 2.5

    def write_takes(self) -> float:
        return self.heartbeats_to_write * self.plan.timing.heartbeat
