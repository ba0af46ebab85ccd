"""What strangers send to a node: each attack goes on for a while, and returns when it is over.

An attack is told where the node listens, what else the attacker has seen, and
for how long to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import msgspec

from leadership.backends._electio import node_id
from leadership.backends._peers_http import split_address
from leadership.backends._peers_post import MESSAGES
from leadership.backends._peers_seal import Node, Seals
from leadership.backends._quorum_messages import Entry, Header, Heartbeat, Message, Vote
from leadership.clock import SystemClock

CLOCK = SystemClock()
CHANCE = random.Random(7)
STRANGER = "10.99.99.99:7000"


@dataclass(frozen=True, slots=True)
class Target:
    """A node, as an attacker knows it.

    Attributes:
        address: where it listens.
        members: all addresses.
        secret: of the cluster; only what was recorded may use it.
    """

    address: str
    members: tuple[str, ...]
    secret: str

    def node(self) -> Node:
        """Its present run, which it tells everybody."""
        with urlopen(f"http://{self.address}/leadership/who", timeout=10) as answer:
            return Node(self.address, int(answer.read()))

    @property
    def another(self) -> str:
        return next(member for member in self.members if member != self.address)


Attack = Callable[[Target, float], Coroutine[Any, Any, None]]


async def _send(target: Target, *parts: bytes, pause: float = 0.0, wait: float = 0.0) -> bytes:
    """Send, perhaps slowly, and return what comes back; errors are what an attacker expects."""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection(*split_address(target.address))
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
            if wait:
                async with asyncio.timeout(wait):
                    return await reader.read(1 << 16)
        finally:
            writer.transport.abort()
    return b""


async def _again(seconds: float, side_by_side: int, once: Callable[[], Awaitable[object]]) -> None:
    until = CLOCK.now() + seconds

    async def line() -> None:
        while CLOCK.now() < until:
            await once()
            # So many a second do no more than ten times as many would.
            await asyncio.sleep(0.01)

    await asyncio.gather(*(line() for _ in range(side_by_side)))


def _post(headers: dict[str, str], body: bytes, length: int | None = None) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    length = len(body) if length is None else length
    head = [f"POST {MESSAGES} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def _forged(target: Node, sender: str, term: int) -> bytes:
    """A vote for, and a heartbeat of, somebody who is to lead from now on."""

    def header(number: int) -> Header:
        return Header(
            1, "0" * 16, sender, f"{77:016x}", target.address, f"{target.incarnation:016x}", number
        )

    entry = Entry("service/leader", "1", term, 1.0, b"the forger")
    messages: list[Message] = [
        Vote(header(1), "service/leader", "1", term, 1.0, True, None),
        Heartbeat(header(2), 0, 2, 0, (entry,), ()),
    ]
    return msgspec.json.encode(messages)


# --- attacks ---


async def garbage(target: Target, seconds: float) -> None:
    """What is no HTTP at all."""
    await _again(seconds, 5, lambda: _send(target, CHANCE.randbytes(3000) + b"\r\n\r\n", wait=0.2))


async def oversize_heads(target: Target, seconds: float) -> None:
    """Headers that are too long, and too many."""
    long = b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000
    many = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(2000)) + b"\r\n"

    async def both() -> None:
        await _send(target, long, wait=0.2)
        await _send(target, many, wait=0.2)

    await _again(seconds, 5, both)


async def oversize_bodies(target: Target, seconds: float) -> None:
    """Bodies that are too long, announced or not, and to where none belongs."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    chunked = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    asked = b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"

    async def each() -> None:
        await _send(target, _post({}, b"", 1 << 40), bytes(1 << 16), wait=0.2)
        await _send(target, chunked, *[chunk] * 64, wait=0.2)
        await _send(target, asked, *[bytes(1 << 16)] * 45, wait=0.2)

    await _again(seconds, 5, each)


async def large_bodies(target: Target, seconds: float) -> None:
    """From many at once, bodies that are just short enough, and never quite complete."""
    body = bytes((2 << 20) - 1)
    sender, to = Node(target.another, 77), await asyncio.to_thread(target.node)
    headers, _ = Seals(sender, (b"another secret....",)).request(to, MESSAGES, body)
    whole = _post(headers, body)
    until = CLOCK.now() + seconds
    await asyncio.gather(
        *(_send(target, whole[:-1], wait=max(0.1, until - CLOCK.now())) for _ in range(100))
    )


async def wrong_secret(target: Target, seconds: float) -> None:
    """Votes and heartbeats in a member's name, sealed with another secret, or not at all."""
    to = await asyncio.to_thread(target.node)
    body = _forged(to, target.another, 1 << 51)
    forger = Seals(Node(target.another, 77), (b"another secret....",))
    trusting = Seals(Node(target.another, 77))

    async def both() -> None:
        for seals in (forger, trusting):
            headers, _ = seals.request(to, MESSAGES, body)
            await _send(target, _post(headers, body), wait=0.2)

    await _again(seconds, 5, both)


async def strangers(target: Target, seconds: float) -> None:
    """Votes of who is not in the member list, and pings of unknown ids."""
    to = await asyncio.to_thread(target.node)
    body = _forged(to, STRANGER, 1 << 51)
    seals = Seals(Node(STRANGER, 77))
    known = node_id("c1", target.another)

    async def each() -> None:
        headers, _ = seals.request(to, MESSAGES, body)
        await _send(target, _post(headers, body), wait=0.2)
        for path in (
            f"/ping?fromId={CHANCE.getrandbits(128):032x}&masterId={CHANCE.getrandbits(128):x}",
            f"/ping?fromId={known}&masterId={CHANCE.getrandbits(128):x}",
            f"/follow?fromId={known}&masterId={known}",
            f"/remove?nodeId={known}",
            f"/add?nodes={STRANGER}",
            f"/erasemaster?masterId={known}",
        ):
            await _send(target, _get(path), wait=0.2)

    await _again(seconds, 5, each)


async def replays(target: Target, seconds: float) -> None:
    """A genuine request, sent again and again."""
    to = await asyncio.to_thread(target.node)
    body = _forged(to, target.another, 1)
    member = Seals(Node(target.another, 77), (target.secret.encode(),))
    headers, _ = member.request(to, MESSAGES, body)
    recorded = _post(headers, body)
    await _again(seconds, 5, lambda: _send(target, recorded, wait=0.2))


async def slow_loris(target: Target, seconds: float) -> None:
    """More connections than a node keeps, each of which sends a byte now and then."""
    head = _post({"X-A": "b"}, b"c" * 1000)
    letters = [head[:40], *(bytes([each]) for each in head[40:])]

    async def one() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _send(target, *letters, pause=0.2)

    await asyncio.gather(*(one() for _ in range(300)))


async def opened_and_left(target: Target, seconds: float) -> None:
    """Connections without a word, with half of one, and questions whose asker has gone."""

    async def each() -> None:
        await _send(target)
        await _send(target, b"POST ")
        await _send(target, _post({}, b"", 1000), b"half")
        await _send(target, _get("/leadership/leader?key=service/leader&tag=none&wait=30"))
        await _send(target, _get("/ping?fromId=x"))

    await _again(seconds, 5, each)


async def waiting_for_ever(target: Target, seconds: float) -> None:
    """Questions whose answer is never due."""
    asked = [
        _get(f"/leadership/leader?key=unknown{n}&tag=none&wait={wait}")
        for n in range(10)
        for wait in ("nan", "inf", "1e300", "-1")
    ]
    await asyncio.gather(*(_send(target, each, wait=seconds) for each in asked))


async def pipelined(target: Target, seconds: float) -> None:
    """Behind a question that takes long, more requests than can be answered."""
    many = _get("/") * 2000
    told = await _send(target, _get("/leadership/leader?key=service/leader"), wait=2)
    status = msgspec.json.decode(told.partition(b"\r\n\r\n")[2])
    long = _get(f"/leadership/leader?key=service/leader&tag={status['tag']}&wait=30")

    async def one() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _send(target, long, *[many] * 1000)

    await asyncio.gather(*(one() for _ in range(20)))


ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        garbage,
        oversize_heads,
        oversize_bodies,
        large_bodies,
        wrong_secret,
        strangers,
        replays,
        slow_loris,
        opened_and_left,
        waiting_for_ever,
        pipelined,
    )
}
