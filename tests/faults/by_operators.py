"""What an operator does to a store in the middle of an election."""

from __future__ import annotations

from .checker import REMOVAL_OVERLAP
from .scene import Scene, Steps, behind, restarted


def entry_removed(scene: Scene, slot: int) -> Steps:
    scene.ground.remove_entry()
    scene.removed()
    yield 2 * REMOVAL_OVERLAP


def session_ended(scene: Scene, slot: int) -> Steps:
    scene.ground.end_session(scene.processes[slot])
    scene.removed()
    yield 2 * REMOVAL_OVERLAP


def token_deleted(scene: Scene, slot: int) -> Steps:
    """Its candidate is refused from now on, and comes back with a new token."""
    ground, process = scene.ground, scene.processes[slot]
    yield from behind(lambda: ground.delete_token(slot))
    yield scene.chance.uniform(0.5, 3) * ground.ttl
    yield from behind(lambda: ground.make_token(slot))
    # It may have ended by itself, of the error that it was told.
    process.terminate()
    yield from restarted(scene, slot)


def member_changed(scene: Scene, slot: int) -> Steps:
    """A member is removed for good, and another takes its place, under a new address."""
    yield from behind(lambda: scene.ground.remove_member(slot))
    scene.processes[slot].terminate()
    scene.ground.renew_member(slot)
    yield from restarted(scene, slot)
    yield from behind(lambda: scene.ground.add_member(slot))
