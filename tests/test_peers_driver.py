"""A node carries out what it decided, whatever fails, and strangers cost it little."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from leadership.backend import Address, Context
from leadership.backends._peers_driver import Driver
from leadership.backends._peers_http import Answer, Client, Limits
from leadership.backends._peers_knowledge import LEADER, LeaderAnswer
from leadership.backends._peers_members import MEMBERS, OPERATOR, MembersQuestion
from leadership.backends._peers_post import MESSAGES, Post
from leadership.backends._peers_seal import Node, Seals
from leadership.backends._peers_settings import settings_of
from leadership.backends._quorum_effects import Ignored, Lost, Persist, StoredState
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_messages import Header, Members, Message, PreVote
from leadership.backends._quorum_timing import Timing
from leadership.clock import SystemClock
from leadership.errors import ConfigurationError
from leadership.events import Event, PeerRefused

from .loops import on_a_loop
from .peers_cluster import SECRET
from .servers.ports import free_port
from .waiting import async_wait_until

pytestmark = pytest.mark.backend("peers")

CLOCK = SystemClock()


class Running:
    """A node alone, which leads whatever is campaigned for; its events and failures."""

    def __init__(self, **options: object) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.events: list[Event] = []
        self.failures: list[BaseException] = []
        given = {
            "listen": self.address,
            "secret": SECRET,
            "ttl_ceiling": 1,
            "bootstrap": True,
            "wall_clock_skew": 0,
        }
        self.context = Context(emit=self.events.append)
        settings = settings_of(Address("peers", (self.address,), "", given | options), self.context)
        self.settings = settings
        self.driver = Driver(settings, self.context)

    @property
    def refusals(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, PeerRefused)]


@contextlib.asynccontextmanager
async def running(**options: object) -> AsyncIterator[Running]:
    node = Running(**options)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: node.failures.append(told["exception"]))
    try:
        await node.driver.start()
        await async_wait_until(lambda: node.driver.node.ready, what="the node to take part")
        yield node
    finally:
        await node.driver.close()


class Failing:
    """A contender whose every method fails, but the loss, which it counts."""

    def __init__(self) -> None:
        self.losses = 0

    def elected(self, effect: object) -> None:
        raise ZeroDivisionError

    renewed = released = elected

    def lost(self, effect: object) -> None:
        self.losses += 1


@on_a_loop
async def test_an_effect_that_fails_keeps_no_other_from_being_carried_out() -> None:
    async with running() as node:
        part = Failing()
        node.driver.enter("1", part)  # type: ignore[arg-type]
        node.driver.act(lambda now: node.driver.node.campaign("k", "1", b"", 1.0, now))
        await async_wait_until(lambda: node.failures, what="the failure to be told")
        node.driver._carry_out([Lost("k", "1", "a test")])
        assert part.losses == 1
        assert isinstance(node.failures[0], ZeroDivisionError)
        # Its timer still runs: the term goes on being renewed.
        until = node.driver.node.valid_until("k", "1")
        await async_wait_until(lambda: node.driver.node.valid_until("k", "1") > until)


@on_a_loop
async def test_a_task_that_dies_is_told_of() -> None:
    async def dies() -> None:
        raise ZeroDivisionError

    async with running() as node:
        node.driver._spawn(dies())
        await async_wait_until(lambda: node.failures, what="the death to be told")


@on_a_loop
async def test_a_write_that_fails_in_any_way_is_no_vote_and_no_wait(tmp_path: Path) -> None:
    async with running(state_dir=str(tmp_path)) as node:
        told: list[bool] = []

        def fails(values: object) -> None:
            raise ZeroDivisionError

        def persisted(number: int, succeeded: bool, now: float) -> list[object]:
            told.append(succeeded)
            return []

        state = node.driver._state
        assert state is not None
        state.write = fails  # type: ignore[method-assign, assignment]
        node.driver.node.persisted = persisted  # type: ignore[method-assign, assignment]
        stored = StoredState(1, 1.0, Members(1, (node.address,)))
        node.driver._carry_out([Persist(99, stored)])
        await async_wait_until(lambda: told, what="the answer")
        assert told == [False]
        assert len(node.failures) == 1


@on_a_loop
async def test_a_node_that_ran_before_is_silent_whatever_its_address_says(tmp_path: Path) -> None:
    async with running(state_dir=str(tmp_path)) as node:
        pass
    began = CLOCK.now()
    async with running(state_dir=str(tmp_path)):
        assert CLOCK.now() - began >= node.settings.timing.silence(None)


@on_a_loop
async def test_a_state_of_another_version_is_told_as_such(tmp_path: Path) -> None:
    async with running(state_dir=str(tmp_path)) as node:
        node.driver._state.write({"state": {"highest_term": "many"}})  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match="another version"):
        async with running(state_dir=str(tmp_path)):
            pass


@pytest.mark.parametrize("wait", ["nan", "-1", "-inf"])
@on_a_loop
async def test_a_wait_that_is_no_number_is_answered_at_once(wait: str) -> None:
    async with running() as node, calling() as client:
        await async_wait_until(lambda: node.driver.knowledge.knows("k"), what="the quorum")
        path = f"{LEADER}?key=k&tag=none&wait={wait}"
        answer = await client.call("GET", node.address, path, timeout=5)
        assert msgspec.json.decode(answer.body, type=LeaderAnswer).tag == "none"


@on_a_loop
async def test_strangers_do_not_choose_how_much_is_logged() -> None:
    async with running() as node:
        node.events.clear()
        for number in range(1000):
            node.driver._carry_out([Ignored(f"stranger {number}", "a reason")])
        assert len(node.refusals) == 50
        assert len(node.driver._complaints) == 50


@pytest.mark.parametrize(
    "body",
    [
        b'[{"kind":"PreVote","x":' + b"[" * 100_000,
        b'[{"kind":"\xff"}]',
        b'[{"kind":"a\\nline of their own"}]',
        b"",
        b"null",
    ],
    ids=["deep", "no text", "another kind", "nothing", "no list"],
)
@on_a_loop
async def test_what_cannot_be_read_is_refused_in_our_own_words(body: bytes) -> None:
    async with running() as node, calling() as client:
        # Even of who has the secret.
        seals = Seals(Node(node.address, 77), (SECRET.encode(),))
        headers, _ = seals.request(node.driver._own, MESSAGES, body)
        answer = await client.call("POST", node.address, MESSAGES, body, headers=headers, timeout=5)
        assert answer.status == 403
        assert node.refusals == ["it cannot be read"]
        assert node.failures == []


@on_a_loop
async def test_the_content_of_who_has_no_secret_is_not_read() -> None:
    async with running() as node:
        forger = Seals(Node(node.address, 77), (b"another secret....",))
        headers, _ = forger.request(node.driver._own, MESSAGES, b"")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        host, _, port = node.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n{lines}\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            # Refused, though nothing of the content was sent.
            assert b"403" in await reader.readline()
        writer.close()


@on_a_loop
async def test_no_page_in_a_browser_takes_part_or_changes_the_members() -> None:
    """By a name of his own that leads here, a stranger's page sends what a program could."""
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(running(secret=None))
        question = msgspec.json.encode(MembersQuestion(node.settings.cluster))
        client = Client(Limits())
        stack.push_async_callback(client.close)
        asks = [(OPERATOR, MEMBERS, question), (node.address, MESSAGES, b"[]")]
        says = [({}, 200), ({"Origin": "http://rebound.example:7001"}, 403)]
        for sender, path, body in asks:
            seals = Seals(Node(sender, 77), ())
            for origin, status in says:
                headers, _ = seals.request(node.driver._own, path, body)
                answer = await client.call(
                    "POST", node.address, path, body, headers={**headers, **origin}, timeout=10
                )
                assert (path, answer.status) == (path, status), node.refusals


@on_a_loop
async def test_many_messages_go_in_several_requests() -> None:
    sizes: list[int] = []

    class Counting(Client):
        async def call(self, method: str, address: str, path: str, body: bytes = b"", **more):  # type: ignore[no-untyped-def]
            sizes.append(len(msgspec.json.decode(body)))
            return Answer(503)

    client = Counting(Limits())
    own = Node("a:1", 1)
    post = Post(client, Seals(own), CLOCK, 1, 1, lambda to, m: None, lambda of, why: None)
    for number in range(3500):
        header = Header(1, "", "a:1", "1", "b:1", "2", number)
        message: Message = PreVote(header, "k", "1", 1, False)
        post.send("b:1", message)
    await async_wait_until(lambda: sum(sizes) == 3500, what="all of them")
    assert max(sizes) == 1000
    await post.close(1)
    await client.close()


def test_no_secret_is_shown() -> None:
    settings = Running(secret="do not show this one", former_secret="nor that other one").settings
    assert "show this" not in repr(settings)
    assert "that other" not in repr(settings)


@contextlib.asynccontextmanager
async def calling() -> AsyncIterator[Client]:
    client = Client(Limits())
    try:
        yield client
    finally:
        await client.close()


def test_keys_that_nobody_leads_any_more_are_forgotten() -> None:
    node = QuorumLease(
        id="a:1",
        incarnation="1",
        members=["a:1"],
        cluster="c1",
        timing=Timing(),
        random=random.Random(7),
        wall_clock=lambda: 0,
        now=0.0,
        bootstrap=True,
        keys_limit=10,
        forget_after=60,
    )
    now = 0.0
    for number in range(100):
        node.campaign(f"job/{number}", "1", b"", 1.0, now)
        while node.valid_until(f"job/{number}", "1") < now:
            now += 0.1
            node.tick(now)
        node.withdraw(f"job/{number}", "1", now)
        now += 10
        node.tick(now)
    node.tick(now + 60)
    assert node.leaders.leader("job/99") is None
    assert len(node._acceptor.terms()) <= 10
    assert not node._candidacies
