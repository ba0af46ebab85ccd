"""What happens between a candidate and its store, or between two members of one."""

from __future__ import annotations

from tests.servers.fault_proxy import Fate, Mode

from .lanes import MemberLine
from .lines import MachineLine, RelayedLine
from .scene import Scene, Steps, restarted, short_or_long

_PATIENCE = 3.0
"""Times the ttl: a request that has not come by then is waited for no more."""


_LASTING = 8.0
"""Seconds of a ttl that is longer than a request may take."""


def cut(scene: Scene, slot: int, mode: Mode) -> Steps:
    scene.ground.lines[slot].set(mode)
    yield short_or_long(scene)
    yield from _mended(scene, slot)


def slowed(scene: Scene, slot: int, mode: Mode) -> Steps:
    line = scene.ground.lines[slot]
    line.set(mode, 0.2)
    yield scene.chance.uniform(1, 4) * scene.ground.ttl
    line.set(Mode.PASS)


def blocked_and_cut(scene: Scene, slot: int) -> Steps:
    seconds = 2 * scene.ground.ttl
    scene.processes[slot].order(f"block {seconds}")
    scene.ground.lines[slot].set(Mode.STALL)
    yield seconds
    # The user's code runs again before the store is there again.
    yield scene.ground.ttl / 2
    yield from _mended(scene, slot)


def pair_cut(scene: Scene, slot: int) -> Steps:
    line = scene.ground.lines[slot]
    assert isinstance(line, (MemberLine, MachineLine))
    line.cut_from(scene.chance.choice([other for other in scene.processes if other != slot]))
    yield scene.chance.uniform(1, 4) * scene.ground.ttl
    yield from _mended(scene, slot)


def beside_one_server(scene: Scene, slot: int) -> Steps:
    line = scene.ground.lines[slot]
    assert isinstance(line, RelayedLine)
    line.keep_only(scene.chance.randrange(len(line.relays)))
    yield short_or_long(scene)
    line.set(Mode.PASS)


def at_start(scene: Scene, slot: int, request: str, fate: Fate) -> Steps:
    """Of what only a new candidate asks for."""
    scene.processes[slot].kill()
    _catch(scene, slot, request, fate)
    yield from restarted(scene, slot)
    yield from _caught(scene, slot, fate)


def in_term(scene: Scene, slot: int, request: str, fate: Fate) -> Steps:
    """Of what a leader asks for again and again."""
    _catch(scene, slot, request, fate)
    yield from _caught(scene, slot, fate)


def at_end(scene: Scene, slot: int, request: str, fate: Fate) -> Steps:
    """Of what a leader asks for when it resigns."""
    _catch(scene, slot, request, fate)
    scene.processes[slot].order("resign")
    yield from _caught(scene, slot, fate)


def at_succession(scene: Scene, slot: int, request: str, fate: Fate) -> Steps:
    """Of what a candidate asks for when the leader's place is free."""
    successor = scene.chance.choice([other for other in scene.processes if other != slot])
    _catch(scene, successor, request, fate)
    scene.processes[slot].order(scene.chance.choice(("resign", "withdraw 2")))
    yield from _caught(scene, successor, fate)


def entry_late(scene: Scene, slot: int) -> Steps:
    """It is made when its candidate has withdrawn, and another still uses the lease."""
    ground = scene.ground
    scene.processes[slot].kill()
    # The lease outlives the connection that the request is held on.
    yield from restarted(scene, slot, ttl=_LASTING)
    process = scene.processes[slot]
    yield ground.ttl
    _catch(scene, slot, "entry", Fate.REQUEST_LATE)
    process.order(f"withdraw {0.2 * ground.ttl}")
    yield from _until_caught(scene, slot)
    held = _LASTING * scene.chance.uniform(0.7, 1)
    process.order(f"withdraw {10 * _LASTING}")
    yield held
    ground.lines[slot].set(Mode.PASS)
    # Whoever is before the entry gives way; if nobody removes it, all others wait for it.
    for _ in scene.processes:
        yield ground.ttl
        scene.processes[scene.leader()].order("resign")
    yield ground.bound + ground.ttl
    process.terminate()
    yield from restarted(scene, slot)


def _catch(scene: Scene, slot: int, request: str, fate: Fate) -> None:
    scene.ground.lines[slot].catch(scene.ground.requests[request], fate)


def _until_caught(scene: Scene, slot: int) -> Steps:
    line = scene.ground.lines[slot]
    end = scene.now() + _PATIENCE * scene.ground.ttl
    while not line.has_caught and scene.now() < end and scene.processes[slot].is_running:
        yield 0.02


def _caught(scene: Scene, slot: int, fate: Fate) -> Steps:
    yield from _until_caught(scene, slot)
    yield 0.1 if fate is Fate.REPLY_LOST else short_or_long(scene)
    yield from _mended(scene, slot)


def _mended(scene: Scene, slot: int) -> Steps:
    line = scene.ground.lines[slot]
    # What was held back is lost for good half of the time, else it is only late.
    if Mode.RESET in line.modes and scene.chance.random() < 0.5:
        line.set(Mode.RESET)
        yield 0.1
    line.set(Mode.PASS)
