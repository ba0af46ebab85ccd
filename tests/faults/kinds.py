"""The faults: each breaks something, says for how many seconds, and mends it.

A fault is a generator of the seconds until it goes on; between two of its
steps others may act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.servers.fault_proxy import Mode

from .checker import REMOVAL_OVERLAP
from .grounds import Ground
from .scene import Scene, can_step_wall_clock

Steps = Iterator[float]

PROCESS, NETWORK, CLOCK, STORE, OPERATOR = (
    frozenset({area}) for area in ("process", "network", "clock", "store", "operator")
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        play: the fault, for a scene and the slot that it is aimed at.
        areas: what it breaks; two faults that break the same never run at a time.
        possible: whether it can be had on a ground.
        leader: it is aimed at whoever leads, since nobody else would notice.
        alone: at a calm time, and nothing else meanwhile.
        removal: an operator takes a live leader's entry or session.
    """

    name: str
    play: Callable[[Scene, int], Steps]
    areas: frozenset[str]
    possible: Callable[[Ground], bool] = lambda ground: True
    leader: bool = False
    alone: bool = False
    removal: bool = False


def started(scene: Scene, *slots: int) -> Steps:
    """Start candidates in these slots; they contend when it is over."""
    processes = [scene.start(slot) for slot in slots]
    while any(process.is_running and not process.has_started for process in processes):
        yield 0.05


# --- the candidate's process ---


def killed(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].kill()
    yield scene.chance.uniform(0, scene.ground.ttl)
    yield from started(scene, slot)


def paused_shortly(scene: Scene, slot: int) -> Steps:
    yield from _paused(scene, slot, 0.5 * scene.ground.ttl)


def paused_for_long(scene: Scene, slot: int) -> Steps:
    yield from _paused(scene, slot, _long(scene))


def _paused(scene: Scene, slot: int, seconds: float) -> Steps:
    process = scene.processes[slot]
    process.pause()
    yield seconds
    process.resume()


def _long(scene: Scene) -> float:
    """Seconds after which somebody else leads instead."""
    return scene.ground.expiry + scene.chance.uniform(0.3, 1.3) * scene.ground.ttl


def _short_or_long(scene: Scene) -> float:
    short = scene.chance.uniform(0.2, 0.8) * scene.ground.ttl
    return scene.chance.choice((short, _long(scene)))


def drained(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].terminate()
    yield scene.chance.uniform(0.2, scene.ground.ttl)
    yield from started(scene, slot)


def blocked(scene: Scene, slot: int) -> Steps:
    seconds = 2 * scene.ground.ttl
    scene.processes[slot].order(f"block {seconds}")
    yield seconds


def resigned(scene: Scene, slot: int) -> Steps:
    scene.processes[slot].order("resign")
    yield 0.1


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
    yield from started(scene, slot)


def stepped(scene: Scene, slot: int) -> Steps:
    for seconds in (3600, -86_400, 0):
        scene.step_wall_clock(slot, seconds)
        yield scene.ground.ttl / 2


# --- its network ---


def cut(scene: Scene, slot: int, mode: Mode) -> Steps:
    line = scene.ground.lines[slot]
    line.set(mode)
    yield _short_or_long(scene)
    yield from _mended(scene, slot)


def slowed(scene: Scene, slot: int, mode: Mode) -> Steps:
    line = scene.ground.lines[slot]
    line.set(mode, 0.2)
    yield scene.chance.uniform(1, 4) * scene.ground.ttl
    line.set(Mode.PASS)


def session_unanswered(scene: Scene, slot: int) -> Steps:
    """A new candidate's lease or session is made, and it does not hear of it."""
    yield from _unanswered(scene, slot, scene.ground.session_request)


def entry_unanswered(scene: Scene, slot: int) -> Steps:
    """A new candidate's entry is made, and it does not hear of it."""
    yield from _unanswered(scene, slot, scene.ground.entry_request)


def _unanswered(scene: Scene, slot: int, request: bytes) -> Steps:
    line = scene.ground.lines[slot]
    scene.processes[slot].kill()
    line.lose_reply_to(request)
    process = scene.start(slot)
    while process.is_running and not line.has_lost_reply():
        yield 0.05
    yield _short_or_long(scene)
    yield from _mended(scene, slot)


def release_unanswered(scene: Scene, slot: int) -> Steps:
    """A leader resigns, and does not hear that it has."""
    scene.ground.lines[slot].set(Mode.DOWN)
    scene.processes[slot].order("resign")
    yield _short_or_long(scene)
    yield from _mended(scene, slot)


def _mended(scene: Scene, slot: int) -> Steps:
    line = scene.ground.lines[slot]
    # What was held back is lost for good half of the time, else it is only late.
    if Mode.RESET in line.modes and scene.chance.random() < 0.5:
        line.set(Mode.RESET)
        yield 0.1
    line.set(Mode.PASS)


# --- the store ---


def server_killed(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    server.kill()
    yield scene.chance.uniform(0.1, 2) * scene.ground.ttl
    yield from _behind(server.start)


def server_restarted(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    yield from _behind(server.restart)


def server_paused(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    server.pause()
    yield _short_or_long(scene)
    yield from _behind(server.resume)


def quorum_killed(scene: Scene, slot: int) -> Steps:
    lost = scene.chance.sample(list(scene.ground.servers), scene.ground.majority)
    for server in lost:
        server.kill()
    yield _short_or_long(scene)
    # Each is ready only when the others run too.
    yield from _behind(*(server.start for server in lost))


def quorum_paused(scene: Scene, slot: int) -> Steps:
    lost = scene.chance.sample(list(scene.ground.servers), scene.ground.majority)
    for server in lost:
        server.pause()
    yield _short_or_long(scene)
    yield from _behind(*(server.resume for server in lost))


def everybody_killed(scene: Scene, slot: int) -> Steps:
    """Where the candidates are the store: a majority of it, or all."""
    slots = list(scene.processes)
    lost = scene.chance.sample(slots, scene.chance.choice((len(slots) // 2 + 1, len(slots))))
    for each in lost:
        scene.processes[each].kill()
    yield scene.chance.uniform(0.1, 2) * scene.ground.ttl
    yield from started(scene, *lost)


def majority_paused(scene: Scene, slot: int) -> Steps:
    """Where the candidates are the store: it loses its quorum, and gets it back."""
    slots = list(scene.processes)
    lost = scene.chance.sample(slots, len(slots) // 2 + 1)
    for each in lost:
        scene.processes[each].pause()
    yield _short_or_long(scene)
    for each in lost:
        scene.processes[each].resume()


def _behind(*acts: Callable[[], object]) -> Steps:
    """Do all of these at once, while other faults go on; over when they are done."""
    with ThreadPoolExecutor(len(acts)) as pool:
        for doing in [pool.submit(act) for act in acts]:
            while not doing.done():
                yield 0.1
            doing.result()


def token_expired(scene: Scene, slot: int) -> Steps:
    """The leader has nothing to say for so long that the store forgets who it is."""
    assert scene.ground.token_ttl is not None
    yield scene.ground.token_ttl + 1.5
    yield from resigned(scene, slot)


# --- the operator ---


def entry_removed(scene: Scene, slot: int) -> Steps:
    scene.ground.remove_entry()
    yield 2 * REMOVAL_OVERLAP


def session_ended(scene: Scene, slot: int) -> Steps:
    scene.ground.end_session(scene.processes[slot])
    yield 2 * REMOVAL_OVERLAP


def _has_servers(ground: Ground) -> bool:
    return bool(ground.servers)


def _has_cluster(ground: Ground) -> bool:
    return len(ground.servers) > 1


def _is_store_itself(ground: Ground) -> bool:
    return not ground.servers


def _has_tokens(ground: Ground) -> bool:
    return ground.token_ttl is not None


def _sessions_can_be_ended(ground: Ground) -> bool:
    return type(ground).end_session is not Ground.end_session


def _on_the_line(name: str, play: Callable[[Scene, int, Mode], Steps], mode: Mode) -> Kind:
    return Kind(
        name,
        lambda scene, slot: play(scene, slot, mode),
        NETWORK,
        lambda ground: all(mode in line.modes for line in ground.lines),
    )


def _by_the_operator(
    name: str, play: Callable[[Scene, int], Steps], possible: Callable[[Ground], bool]
) -> Kind:
    return Kind(name, play, OPERATOR, possible, leader=True, alone=True, removal=True)


KINDS = (
    Kind("killed", killed, PROCESS),
    Kind("paused for half the ttl", paused_shortly, PROCESS),
    Kind("paused for longer than the ttl", paused_for_long, PROCESS),
    Kind("terminated, drains", drained, PROCESS),
    Kind("user's code blocked", blocked, PROCESS, leader=True),
    Kind("resigns", resigned, PROCESS, leader=True),
    Kind("forked", forked, PROCESS, leader=True),
    Kind("exits without stop", exited, PROCESS, leader=True),
    Kind("wall clock stepped", stepped, CLOCK, lambda ground: can_step_wall_clock()),
    _on_the_line("cut, connections reset", cut, Mode.RESET),
    _on_the_line("half-open both ways", cut, Mode.STALL),
    _on_the_line("half-open towards the store", cut, Mode.UP),
    _on_the_line("half-open from the store", cut, Mode.DOWN),
    _on_the_line("200 ms of delay", slowed, Mode.DELAY),
    _on_the_line("30 % of loss", slowed, Mode.LOSS),
    Kind("session's reply lost", session_unanswered, PROCESS | NETWORK, _has_servers),
    Kind("entry's reply lost", entry_unanswered, PROCESS | NETWORK, _has_servers),
    Kind("release's reply lost", release_unanswered, NETWORK, _has_servers, leader=True),
    Kind("server killed", server_killed, STORE, _has_servers),
    Kind("server restarted", server_restarted, STORE, _has_servers),
    Kind("server paused", server_paused, STORE, _has_servers),
    Kind("quorum killed", quorum_killed, STORE, _has_cluster),
    Kind("quorum paused", quorum_paused, STORE, _has_cluster),
    Kind("members killed", everybody_killed, PROCESS, _is_store_itself),
    Kind("majority paused", majority_paused, PROCESS, _is_store_itself),
    Kind("auth token expires", token_expired, STORE, _has_tokens, leader=True, alone=True),
    _by_the_operator("entry removed", entry_removed, _has_servers),
    _by_the_operator("session ended", session_ended, _sessions_can_be_ended),
)
