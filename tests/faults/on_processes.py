"""What happens to a candidate's process."""

from __future__ import annotations

from .scene import Scene, Steps, long, restarted
from .wall_clock import DELAY


def killed(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].kill()
    yield scene.chance.uniform(0, scene.ground.ttl)
    yield from restarted(scene, slot)


def paused_shortly(scene: Scene, slot: int) -> Steps:
    yield from _paused(scene, slot, 0.5 * scene.ground.ttl)


def paused_for_long(scene: Scene, slot: int) -> Steps:
    yield from _paused(scene, slot, long(scene))


def _paused(scene: Scene, slot: int, seconds: float) -> Steps:
    process = scene.processes[slot]
    process.pause()
    yield seconds
    process.resume()


def drained(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].terminate()
    yield scene.chance.uniform(0.2, scene.ground.ttl)
    yield from restarted(scene, slot)


def blocked(scene: Scene, slot: int) -> Steps:
    seconds = 2 * scene.ground.ttl
    scene.processes[slot].order(f"block {seconds}")
    yield seconds


def seized(scene: Scene, slot: int) -> Steps:
    seconds = long(scene)
    scene.processes[slot].order(f"seize {seconds}")
    yield seconds


def resigned(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].order("resign")
    yield 0.1


def withdrawn(scene: Scene, slot: int) -> Steps:
    seconds = scene.chance.uniform(0.1, 2) * scene.ground.ttl
    scene.processes[slot].order(f"withdraw {seconds}")
    yield seconds


def forked(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].order("fork")
    yield 0.3


def exited(scene: Scene, slot: int) -> Steps:
    process = scene.processes[slot]
    process.order("exit")
    # Who does not lead does not obey, and is to go in the usual way.
    yield 0.5
    process.terminate()
    yield 0.5
    yield from restarted(scene, slot)


def stepped(scene: Scene, slot: int) -> Steps:
    for seconds in (3600, -86_400, 0):
        scene.step_wall_clock(slot, seconds)
        yield DELAY + scene.ground.ttl / 2


def everybody_killed(scene: Scene, slot: int) -> Steps:
    slots = list(scene.processes)
    lost = scene.chance.sample(slots, scene.chance.choice((len(slots) // 2 + 1, len(slots))))
    for each in lost:
        scene.processes[each].kill()
    yield scene.chance.uniform(0.1, 2) * scene.ground.ttl
    yield from restarted(scene, *lost)


def majority_paused(scene: Scene, slot: int) -> Steps:
    slots = list(scene.processes)
    lost = scene.chance.sample(slots, len(slots) // 2 + 1)
    for each in lost:
        scene.processes[each].pause()
    yield long(scene)
    for each in lost:
        scene.processes[each].resume()
