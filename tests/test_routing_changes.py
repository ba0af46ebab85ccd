"""Requests through changes of the leader: none is lost, none is done twice, none comes late.

Two web servers in processes of their own are candidates. They are behind the middleware, or
are plain ones with the proxy before them. The leader resigns, or is killed, while requests
are on their way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from leadership import Follower, new_store

from .command import Command
from .peers_cluster import PeersCluster
from .routing_node import Line, RoutingNode
from .servers.ports import free_port
from .waiting import wait_until

KEY = "service/web"
AT_ONCE = 8
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH")
IDEMPOTENT = {"GET", "PUT", "DELETE"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the election is held.

    Attributes:
        urls: of the two candidates' stores, and of one that only follows.
    """

    urls: tuple[str, str, str]
    ttl: float


Hold = Callable[[float], Place]


BACKENDS = ("etcd", "consul", "peers", "zookeeper")
KINDS = ("middleware", "proxy")


def each_once(backend: str, kind: str) -> Any:
    """Both kinds and all backends in the short round, all pairs of them in the long one."""
    short = BACKENDS.index(backend) % 2 == KINDS.index(kind)
    marks = [pytest.mark.backend(backend), *([] if short else [pytest.mark.long])]
    return pytest.param(backend, kind == "proxy", marks=marks, id=f"{backend}-{kind}")


ONE_OF_EACH = [each_once(backend, kind) for backend in BACKENDS for kind in KINDS]
ALL = [
    pytest.param(
        backend, kind == "proxy", marks=pytest.mark.backend(backend), id=f"{backend}-{kind}"
    )
    for backend in BACKENDS
    for kind in KINDS
]
NAMES = ("hold", "behind_proxy")


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Iterator[Hold]:
    """Makes the place, for terms of so many seconds."""
    with contextlib.ExitStack() as stack:

        def peers(ttl: float) -> Place:
            cluster = PeersCluster(3, ttl_ceiling=ttl)
            # The third only votes, so that one of the two may be dead.
            voter = stack.enter_context(new_store(cluster.url(2)))
            voter.core.start(voter.core.backend.connect)
            return Place((cluster.url(0), cluster.url(1), cluster.url()), ttl)

        def on_servers(ttl: float) -> Place:
            url = request.getfixturevalue(request.param).url
            return Place((url, url, url), ttl)

        yield peers if request.param == "peers" else on_servers


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what came of it; status 0: the connection broke."""

    id: str
    method: str
    status: int


class Round:
    """Two servers, what clients ask them, and what they did."""

    def __init__(self, place: Place, directory: Path, kind: str) -> None:
        self.record = directory / "record"
        self.key = f"{KEY}/{uuid.uuid4().hex}"
        self.place = place
        self.nodes = [
            RoutingNode(url, self.key, str(place.ttl), str(free_port()), str(self.record), kind)
            for url in place.urls[:2]
        ]
        self.fronts = [node.address for node in self.nodes]
        self.sent: list[Sent] = []

    @contextlib.contextmanager
    def running(self, *, behind_proxy: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            for node in self.nodes:
                self.wait_ready(node)
            store = stack.enter_context(new_store(self.place.urls[2]))
            self.follower = stack.enter_context(Follower(store, self.key))
            if behind_proxy:
                listen = f"127.0.0.1:{free_port()}"
                options = ("--listen", listen, "--wait", "40", "--connect-timeout", "30", "--json")
                where = ("--store", self.place.urls[2], "--key", self.key)
                proxy = stack.enter_context(Command("proxy", *where, *options))
                proxy.wait_for("listening")
                self.fronts = [listen]
            self.wait_for_leader()
            yield

    def wait_ready(self, node: RoutingNode) -> None:
        """Until it takes part in the election, so that it follows who gives way."""
        node.wait("ready")
        if self.place.urls[0].startswith("peers:"):
            node.wait("peer ready")

    def wait_for_leader(self) -> RoutingNode:
        value = self.follower.wait_for_leader(40)
        return next(node for node in self.nodes if node.address == value)

    def won(self) -> int:
        """How many terms have begun."""
        return sum(node.said("won") for node in self.nodes)

    def other(self, node: RoutingNode) -> RoutingNode:
        return next(each for each in self.nodes if each is not node)

    async def ask(
        self, fronts: list[str], number: int, change: Callable[[], object] | None
    ) -> None:
        """Send `number` requests, some at once, with the change after some of them."""
        left = [(METHODS[n % len(METHODS)], fronts[n % len(fronts)]) for n in range(number)]
        answered = asyncio.Event()

        async def ask_on(session: aiohttp.ClientSession) -> None:
            while left:
                method, front = left.pop()
                name = uuid.uuid4().hex
                data = None if method == "GET" else b"x" * 2000
                try:
                    url = f"http://{front}/?{name}"
                    async with session.request(method, url, data=data) as response:
                        await response.read()
                        status = response.status
                except aiohttp.ClientError:
                    status = 0
                self.sent.append(Sent(name, method, status))
                if len(left) < number * 2 // 3:
                    answered.set()

        async def change_it() -> None:
            await answered.wait()
            if change is not None:
                await asyncio.to_thread(change)

        # Each request has its own connection: the front may be killed between two of them.
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(total=100)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(change_it(), *(ask_on(session) for _ in range(AT_ONCE)))

    def lines(self) -> list[Line]:
        return [Line(**json.loads(line)) for line in self.record.read_text().splitlines()]

    def check_order(self) -> None:
        """What holds whatever happened."""
        lines = self.lines()
        received = [line for line in lines if line.what == "received"]
        early = [line for line in received if not line.elected_at <= line.at]
        over = [line for line in received if not line.at < line.deadline]
        assert (early, over) == ([], []), "received under a term that did not hold"
        tokens = [line.token for line in lines]
        # The key is kept until the work ends, or until the deadline on a machine that is too busy.
        late = [
            line
            for n, line in enumerate(lines)
            if line.token < max(tokens[: n + 1]) and line.written_at < line.deadline
        ]
        assert late == [], "work of earlier terms came late"
        # Terms follow each other: what one received came before the next one was.
        begun = {line.token: line.elected_at for line in received}
        for line in received:
            later = [at for token, at in begun.items() if token > line.token]
            assert not later or line.at < min(later)
        times = Counter(line.id for line in received)
        repeated = {line.id for line in received if times[line.id] > 1}
        once_only = {sent.id for sent in self.sent if sent.method not in IDEMPOTENT}
        assert repeated & once_only == set(), "done twice"
        done = {line.id for line in lines if line.what == "done"}
        assert {sent.id for sent in self.sent if sent.status == 200} <= done

    def resigns(self, changes: int, number: int) -> None:
        """`number` requests around each of `changes` resignations."""
        for _ in range(changes):
            leader = self.wait_for_leader()
            won = self.won()

            def change(leader: RoutingNode = leader, won: int = won) -> None:
                leader.resign()
                # Whoever it is: one who resigned may win again where the other was not heard of.
                wait_until(lambda: self.won() > won, 40, "the next leader")

            asyncio.run(self.ask(self.fronts, number, change))
        assert Counter(sent.status for sent in self.sent) == {200: changes * number}
        received = Counter(line.id for line in self.lines() if line.what == "received")
        assert received == Counter(sent.id for sent in self.sent)
        self.check_order()
        assert len({line.token for line in self.lines()}) > changes

    def kills(self, changes: int, number: int, *, behind_proxy: bool) -> None:
        """`number` requests around each of `changes` deaths; their front survives."""
        before = len(self.sent)
        for left in reversed(range(changes)):
            leader = self.wait_for_leader()
            fronts = self.fronts if behind_proxy else [self.other(leader).address]
            asyncio.run(self.ask(fronts, number, leader.kill))
            if not left:
                break
            leader.start()
            self.wait_ready(leader)
        assert len(self.sent) == before + changes * number
        failed = [sent for sent in self.sent if sent.status != 200]
        assert {sent.status for sent in failed} <= {502, 503}
        assert [sent for sent in failed if sent.method in IDEMPOTENT] == []
        # No more than were on their way.
        assert len(failed) <= changes * AT_ONCE
        self.check_order()


@contextlib.contextmanager
def two_servers(place: Place, directory: Path, behind_proxy: bool) -> Iterator[Round]:
    made = Round(place, directory, "plain" if behind_proxy else "routed")
    with made.running(behind_proxy=behind_proxy):
        yield made


@pytest.mark.parametrize(NAMES, ONE_OF_EACH, indirect=["hold"])
def test_by_resign_all_succeed_and_by_sigkill_all_that_may_be_sent_twice(
    hold: Hold, tmp_path: Path, behind_proxy: bool
) -> None:
    with two_servers(hold(2), tmp_path, behind_proxy) as made:
        made.resigns(changes=2, number=60)
        made.kills(changes=1, number=60, behind_proxy=behind_proxy)


@pytest.mark.parametrize(NAMES, ALL, indirect=["hold"])
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_thousand_requests_during_ten_resignations(
    hold: Hold, tmp_path: Path, behind_proxy: bool
) -> None:
    # Terms so long that none lapses, however busy the machine is.
    with two_servers(hold(4), tmp_path, behind_proxy) as made:
        made.resigns(changes=10, number=100)


@pytest.mark.parametrize(NAMES, ALL, indirect=["hold"])
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_thousand_requests_during_ten_deaths(
    hold: Hold, tmp_path: Path, behind_proxy: bool
) -> None:
    with two_servers(hold(2), tmp_path, behind_proxy) as made:
        made.kills(changes=10, number=100, behind_proxy=behind_proxy)
