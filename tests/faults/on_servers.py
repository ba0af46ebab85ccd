"""What happens to a store's servers, and between them."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

from tests.network_namespaces import Network
from tests.servers.fault_proxy import Mode

from .on_processes import resigned
from .scene import Scene, Steps, behind, long, short_or_long
from .wall_clock import DELAY


def killed(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    server.kill()
    yield scene.chance.uniform(0.1, 2) * scene.ground.ttl
    yield from behind(server.start)


def restarted(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    yield from behind(server.restart)


def paused(scene: Scene, slot: int) -> Steps:
    server = scene.chance.choice(scene.ground.servers)
    server.pause()
    yield short_or_long(scene)
    yield from behind(server.resume)


def quorum_killed(scene: Scene, slot: int) -> Steps:
    lost = scene.chance.sample(list(scene.ground.servers), scene.ground.majority)
    for server in lost:
        server.kill()
    yield short_or_long(scene)
    # Each is ready only when the others run too.
    yield from behind(*(server.start for server in lost))


def quorum_paused(scene: Scene, slot: int) -> Steps:
    lost = scene.chance.sample(list(scene.ground.servers), scene.ground.majority)
    for server in lost:
        server.pause()
    yield short_or_long(scene)
    yield from behind(*(server.resume for server in lost))


def leader_cut(scene: Scene, slot: int) -> Steps:
    number = yield from _leading(scene)
    _network(scene).isolate(number)
    yield long(scene)
    yield from _rejoined(scene)


def leader_cut_with_candidate(scene: Scene, slot: int) -> Steps:
    """Whoever leads the candidates reaches only the server that leads the others, and is alone."""
    number = yield from _leading(scene)
    line = scene.ground.lines[slot]
    line.keep_only(number)  # type: ignore[attr-defined]
    # Long enough to have come over to that server.
    yield scene.chance.uniform(0, 0.3) * scene.ground.ttl
    _network(scene).isolate(number)
    yield long(scene)
    yield from _rejoined(scene)
    line.set(Mode.PASS)


def leader_cut_one_way(scene: Scene, slot: int) -> Steps:
    number = yield from _leading(scene)
    deaf = scene.chance.random() < 0.5
    network = _network(scene)
    for other in range(len(network.hosts)):
        if other != number:
            network.cut(*((other, number) if deaf else (number, other)))
    yield long(scene)
    yield from _rejoined(scene)


def all_cut(scene: Scene, slot: int) -> Steps:
    network = _network(scene)
    for number in range(len(network.hosts)):
        network.isolate(number)
    yield short_or_long(scene)
    yield from _rejoined(scene)


def clock_stepped(scene: Scene, slot: int) -> Steps:
    clock = scene.ground.server_clock
    assert clock is not None
    for seconds in (3600, -86_400, 0):
        clock.step(seconds)
        yield DELAY + scene.ground.ttl


def token_expired(scene: Scene, slot: int) -> Steps:
    """The leader has nothing to say for so long that the store forgets who it is."""
    assert scene.ground.token_ttl is not None
    yield scene.ground.token_ttl + 1.5
    yield from resigned(scene, slot)


def _leading(scene: Scene) -> Generator[float, None, int]:
    """The server that leads the others; any, if they do not know."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(scene.ground.leading_server)
        while not asking.done():
            yield 0.02
    number = asking.result()
    return scene.chance.randrange(len(scene.ground.servers)) if number is None else number


def _rejoined(scene: Scene) -> Steps:
    _network(scene).heal()
    yield from behind(scene.ground.rejoin)
    yield from behind(*(server.wait_ready for server in scene.ground.servers))


def _network(scene: Scene) -> Network:
    assert scene.ground.network is not None
    return scene.ground.network
