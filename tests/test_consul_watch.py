"""Blocking queries that many share: answers come in an order that a test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from leadership.backend import Context
from leadership.backends import _consul_watch
from leadership.backends._consul_agents import Agents, Answer
from leadership.backends._consul_requests import ConsulEntry
from leadership.backends._consul_watch import Feed, Snapshot, Target, Watches
from leadership.clock import ManualClock
from leadership.errors import StoreUnavailable

from .loops import on_a_loop, settle

pytestmark = pytest.mark.backend("consul")


@dataclass(eq=False)
class Question:
    """A request that waits for its answer; `index`: of a blocking query."""

    path: str
    index: int | None
    reply: asyncio.Future[Answer]

    def answer(self, index: int, *entries: ConsulEntry) -> None:
        body = [
            {"Key": each.key, "CreateIndex": each.create_index, "ModifyIndex": each.modify_index}
            for each in entries
        ]
        self.reply.set_result(Answer(200 if body else 404, json.dumps(body), index))


class ScriptedAgents:
    def __init__(self, clock: ManualClock) -> None:
        self.open: list[Question] = []
        self._clock = clock

    async def call(self, method: str, path: str, *_: Any, repeatable: bool) -> Answer:
        return await self._ask(path, None)

    async def poll(self, path: str, parameters: Any, index: int, wait: float) -> Answer:
        return await self._ask(path, index)

    async def _ask(self, path: str, index: int | None) -> Answer:
        question = Question(path, index, asyncio.get_running_loop().create_future())
        self.open.append(question)
        try:
            return await question.reply
        finally:
            self.open.remove(question)

    async def question(self) -> Question:
        """The only one that is open now, or once those who were told have had their time."""
        await settle()
        if not self.open:
            self._clock.advance(_consul_watch.AFTER_THE_NEWS)
            await settle()
        (question,) = self.open
        return question

    def is_cut(self, failures: int) -> bool:
        return failures >= 2


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[Watches, ScriptedAgents, ManualClock]]:
    clock = ManualClock()
    agents = ScriptedAgents(clock)
    watches = Watches(cast(Agents, agents), Context(clock=clock), "default")
    try:
        yield watches, agents, clock
    finally:
        await watches.close()


def entry(key: str, index: int) -> ConsulEntry:
    return ConsulEntry(key, index, index)


@on_a_loop
async def test_one_who_joins_a_query_is_told_nothing_older_than_it_has_read() -> None:
    feed = Feed(Target("key"), Snapshot((), 7), 1)
    assert feed.take(Snapshot((entry("key", 6),), 6), restarted=False) is False
    assert feed.take(Snapshot((entry("key", 6),), 6), restarted=True) is True
    assert (await feed.next()) == Snapshot((entry("key", 6),), 6)


@on_a_loop
async def test_one_who_joins_a_query_that_knows_more_than_it_has_read_is_told() -> None:
    async with scripted() as (watches, agents, _):
        seen = Snapshot((entry("key", 5),), 5)
        first = watches.follow(Target("key"), seen, 10)
        (await agents.question()).answer(7)
        await settle()
        # Its read was answered before the deletion, and is heard of after.
        second = watches.follow(Target("key"), seen, 10)
        for feed in (first, second):
            async with asyncio.timeout(5):
                assert await feed.next() == Snapshot((), 7)


@on_a_loop
async def test_who_is_told_something_acts_before_the_next_query_is_made() -> None:
    async with scripted() as (watches, agents, clock):
        feed = watches.follow(Target("key"), Snapshot((), 5), 10)
        (await agents.question()).answer(7, entry("key", 7))
        await settle()
        assert feed.latest() is not None
        assert agents.open == []
        clock.advance(_consul_watch.AFTER_THE_NEWS)
        assert (await agents.question()).index == 7


@pytest.mark.parametrize("told_before_the_read", [False, True])
@on_a_loop
async def test_what_comes_back_after_another_was_read_is_told(told_before_the_read: bool) -> None:
    async with scripted() as (watches, agents, _):
        feed = watches.follow(Target("key"), Snapshot((), 5), 10)
        query = await agents.question()
        reading = asyncio.ensure_future(watches.read_for(feed))
        await settle()
        read = agents.open[1]
        if told_before_the_read:
            query.answer(7)
            await settle()
        read.answer(6, entry("key", 6))
        assert await reading == Snapshot((entry("key", 6),), 6)
        if not told_before_the_read:
            query.answer(7)
        async with asyncio.timeout(5):
            assert await feed.next() == Snapshot((), 7)


class TestSharing:
    @pytest.fixture(autouse=True)
    def _all_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_consul_watch, "_MOST_QUERIES", 0)

    @pytest.mark.parametrize("steps", range(5))
    @on_a_loop
    async def test_an_answer_about_fewer_keys_tells_those_who_joined_since_of_no_deletion(
        self, steps: int
    ) -> None:
        async with scripted() as (watches, agents, _):
            one = watches.follow(Target("a/x/leader"), Snapshot((), 1), 10)
            other = entry("a/y/leader", 5)
            narrow = await agents.question()
            assert narrow.path == "/v1/kv/a/x/"
            narrow.answer(9, entry("a/x/leader", 9))
            # Before all have heard of that answer, at whatever moment.
            for _ in range(steps):
                await asyncio.sleep(0)
            two = watches.follow(Target(other.key), Snapshot((other,), 5), 10)
            wide = await agents.question()
            assert (wide.path, wide.index) == ("/v1/kv/a/", 1)
            assert two._latest is None
            wide.answer(9, entry("a/x/leader", 9), other)
            await settle()
            assert two._latest is None
            assert await one.next() == Snapshot((entry("a/x/leader", 9),), 9)

    @on_a_loop
    async def test_nor_does_a_read_that_began_before_they_joined(self) -> None:
        async with scripted() as (watches, agents, clock):
            watches.follow(Target("a/x/leader"), Snapshot((), 1), 10)
            (await agents.question()).reply.set_exception(StoreUnavailable("cut"))
            await settle()
            clock.advance(1)
            narrow = await agents.question()
            assert narrow.index is None
            other = entry("a/y/leader", 5)
            two = watches.follow(Target(other.key), Snapshot((other,), 5), 10)
            narrow.answer(9)
            wide = await agents.question()
            assert wide.path == "/v1/kv/a/"
            assert two._latest is None

    @on_a_loop
    async def test_those_who_join_miss_nothing_that_the_others_were_not_told(self) -> None:
        async with scripted() as (watches, agents, _):
            watches.follow(Target("a/x/leader"), Snapshot((), 1), 10)
            (await agents.question()).answer(200, entry("a/x/leader", 200))
            await settle()
            two = watches.follow(Target("a/y/leader"), Snapshot((entry("a/y/leader", 5),), 5), 10)
            # It changed at 150, after it was read and before it was asked about here.
            wide = await agents.question()
            assert wide.index is not None
            assert wide.index < 150
            changed = entry("a/y/leader", 150)
            wide.answer(200, entry("a/x/leader", 200), changed)
            assert await two.next() == Snapshot((changed,), 200)


class TestPauses:
    @on_a_loop
    async def test_after_a_wait_in_which_nothing_happened_it_is_asked_again_at_once(self) -> None:
        async with scripted() as (watches, agents, clock):
            watches.follow(Target("key"), Snapshot((), 5), 10)
            for _ in range(5):
                asked = await agents.question()
                clock.advance(10)
                asked.answer(5)
                assert await agents.question() is not asked

    @on_a_loop
    async def test_woken_again_and_again_by_other_keys_it_asks_less_often(self) -> None:
        async with scripted() as (watches, agents, clock):
            watches.follow(Target("key"), Snapshot((), 5), 10)
            pauses = []
            for index in range(6, 12):
                (await agents.question()).answer(index)
                await settle()
                paused = 0.0
                while not agents.open:
                    clock.advance(0.001)
                    paused += 0.001
                    await settle()
                pauses.append(paused)
            assert pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25], abs=0.002)
