"""Between the members of a cluster, on one machine: a relay for each pair and direction.

Every member knows the others by the same addresses, so what comes to an address is
told apart by its sender, whom the head of each request names.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import threading
from collections.abc import Callable, Iterable

from tests.servers.fault_proxy import Fate, FaultProxy, Mode
from tests.servers.ports import LOOPBACK

from .lines import Request

_SENDER = re.compile(rb"\r\nLeadership-From: ([^\r]+)\r\n", re.IGNORECASE)
_HEAD = 65_536
_LOOK_AGAIN = 0.005
"""Seconds, where a head has come in part only."""


class Doorkeeper:
    """Accepts at an address, sees who comes, and hands the connection to that one's relay.

    Args:
        relay_of: by the sender's address, or by None for whoever is no member.
    """

    def __init__(self, relay_of: Callable[[str | None], FaultProxy]) -> None:
        self._relay_of = relay_of
        self._listener = socket.create_server((LOOPBACK, 0), backlog=100)
        self._listener.setblocking(False)
        self.endpoint = f"{LOOPBACK}:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="doorkeeper", daemon=True)

    def start(self) -> None:
        """Open."""
        self._thread.start()

    def close(self) -> None:
        """Nobody is let in any more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._accepting.cancel)
            self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            with contextlib.suppress(asyncio.CancelledError):
                runner.run(self._accept())

    async def _accept(self) -> None:
        self._accepting = asyncio.ensure_future(self._accept_all())
        await self._accepting

    async def _accept_all(self) -> None:
        async with asyncio.TaskGroup() as visits:
            while True:
                connection, _ = await self._loop.sock_accept(self._listener)
                visits.create_task(self._let_in(connection))

    async def _let_in(self, connection: socket.socket) -> None:
        try:
            sender = await self._sender(connection)
        except BaseException:
            connection.close()
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return
        self._relay_of(sender).adopt(connection)

    async def _sender(self, connection: socket.socket) -> str | None:
        """Whom the first head names; nothing is taken from the connection."""
        while True:
            await self._readable(connection)
            head = connection.recv(_HEAD, socket.MSG_PEEK)
            if named := _SENDER.search(head):
                return named[1].decode()
            if not head or b"\r\n\r\n" in head:
                return None
            await asyncio.sleep(_LOOK_AGAIN)

    async def _readable(self, connection: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(connection, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(connection)


class Lanes:
    """A doorkeeper for each member, and behind it a relay for each other member.

    Args:
        listening: where the members really listen.
        chance: draws which packets are lost.
    """

    def __init__(self, listening: Iterable[str], chance: random.Random) -> None:
        self._listening = list(listening)
        self._chance = chance
        self._relays: dict[tuple[int | None, int], FaultProxy] = {}
        self._doors = [self._door(receiver) for receiver in range(len(self._listening))]
        self.addresses = [door.endpoint for door in self._doors]
        self._number = {address: number for number, address in enumerate(self.addresses)}

    def start(self) -> None:
        """Let everybody through."""
        for receiver, address in enumerate(self._listening):
            host, _, port = address.rpartition(":")
            for sender in (None, *range(len(self._listening))):
                chance = random.Random(self._chance.random())
                self._relays[sender, receiver] = FaultProxy(int(port), host, chance)
        for door in self._doors:
            door.start()

    def close(self) -> None:
        """Drop all."""
        for door in self._doors:
            door.close()
        for relay in self._relays.values():
            relay.close()

    def renew(self, number: int) -> str:
        """Another address for this member; nobody is let in at the former one any more."""
        self._doors[number].close()
        self._doors[number] = door = self._door(number)
        self._number[door.endpoint] = number
        door.start()
        return door.endpoint

    def relay(self, sender: int, receiver: int) -> FaultProxy:
        """What passes all requests of one member to another, and the replies to them."""
        return self._relays[sender, receiver]

    def _door(self, receiver: int) -> Doorkeeper:
        def relay_of(sender: str | None) -> FaultProxy:
            number = None if sender is None else self._number.get(sender)
            return self._relays[number, receiver]

        return Doorkeeper(relay_of)


class MemberLine:
    """All that one member says to the others and hears of them."""

    modes = frozenset(Mode)
    catches = True

    def __init__(self, lanes: Lanes, number: int, size: int) -> None:
        others = [other for other in range(size) if other != number]
        self._asking = [lanes.relay(number, other) for other in others]
        self._asked = [lanes.relay(other, number) for other in others]
        self._lanes = lanes
        self._number = number

    def set(self, mode: Mode, delay: float = 0.0) -> None:
        # What it sends is its requests on one lane, and its replies on the other.
        opposite = {Mode.UP: Mode.DOWN, Mode.DOWN: Mode.UP}.get(mode, mode)
        for relay in self._asking:
            relay.set(mode, delay)
        for relay in self._asked:
            relay.set(opposite, delay)

    def cut_from(self, other: int) -> None:
        """These two hear nothing of each other; both still hear the rest."""
        self._lanes.relay(self._number, other).set(Mode.STALL)
        self._lanes.relay(other, self._number).set(Mode.STALL)

    def catch(self, request: Request, fate: Fate) -> None:
        for relay in self._asking:
            relay.catch(request, fate)

    @property
    def has_caught(self) -> bool:
        return any(relay.has_caught for relay in self._asking)

    def close(self) -> None:
        pass
