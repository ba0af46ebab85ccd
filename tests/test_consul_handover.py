"""Who is next on Consul: hand-overs, ranks, and what is left of one who gives up in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from leadership import Candidate, Store, aio, new_store
from leadership.backends._consul_contender import _TRY
from leadership.backends._consul_requests import LOCK_FLAGS
from leadership.backends._consul_watch import Feed, Snapshot, Target
from leadership.errors import StoreUnavailable
from leadership.events import (
    Elected,
    Event,
    Released,
)
from leadership.lease import Claim

from .consul_elections import contender, opened, places, session_for, until_waiting, win
from .etcd_elections import told
from .loops import on_a_loop
from .servers.consul_client import ConsulClient
from .servers.consul_relay import Asked, ConsulRelay, LostReplyError, StallError
from .waiting import async_wait_until, wait_until


def writes(relay: ConsulRelay) -> list[Asked]:
    return [asked for asked in relay.asked if asked.writes]


class TestHandingOver:
    def test_who_just_waited_is_handed_the_key_in_one_commit_and_not_twice_in_a_row(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        relayed_store: Store,
        key: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with new_store(consul.url_of(consul_relay.endpoint)) as other:
            leader = Candidate(relayed_store, key, "a", ttl=30)
            waiter = Candidate(other, key, "b", ttl=30)
            tokens = [leader.campaign(timeout=10).token]
            for handed in (True, False, True):
                self.until_witnessed(leader)
                waiting = pool.submit(waiter.campaign)
                until_waiting(consul, key)
                self.until_witnessed(leader, 1)
                consul_relay.asked.clear()
                leader.resign()
                tokens.append(waiting.result(10).token)
                release = writes(consul_relay)[0]
                assert release.does("delete", key)
                assert release.does("lock", key) is handed
                assert places(consul, key) == []
                leader, waiter = waiter, leader
            assert tokens == sorted(set(tokens))
            leader.stop()

    def test_nothing_delays_the_release(self, consul: ConsulClient, key: str) -> None:
        async def scenario() -> None:
            released = asyncio.Event()

            async def ends_late() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    await released.wait()

            async with opened(consul.endpoint) as backend:
                part = contender(backend, key)
                await win(part)
                part._tasks.append(asyncio.ensure_future(ends_late()))
                await asyncio.sleep(0)
                leaving = asyncio.ensure_future(part.leave())
                await async_wait_until(lambda: not consul.keys(key), 10, "the release")
                assert not leaving.done(), "it left something running"
                released.set()
                await leaving
                await part.close()

        asyncio.run(scenario())

    def until_witnessed(self, candidate: Candidate, count: int = 0) -> None:
        assert candidate._candidacy is not None
        part: Any = candidate._candidacy._contender
        wait_until(lambda: len(part._attendance._seen) == count, 10, "the leader's notice")

    def test_who_waits_on_shows_that_it_is_alive(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        relayed_store: Store,
        consul_store: Store,
        key: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with Candidate(consul_store, key, "b", ttl=2).campaign(timeout=10):
            waiting = pool.submit(Candidate(relayed_store, key, "a", ttl=2).campaign)
            until_waiting(consul, key)
            (place,) = consul.keys(f"{key}.waiting/")
            first = consul.entry(place)["ModifyIndex"]  # type: ignore[index]
            wait_until(
                lambda: consul.entry(place)["ModifyIndex"] > first + 2,  # type: ignore[index]
                10,
                "refreshments",
            )
        waiting.result(10)

    def test_who_leads_keeps_no_session_for_places_and_makes_one_when_it_waits_again(
        self, consul: ConsulClient, key: str
    ) -> None:
        async def scenario() -> None:
            async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
                first, second = contender(one, key, ttl=1), contender(two, key, b"b", ttl=1)
                await win(first)
                waiting = asyncio.ensure_future(win(second))
                await async_wait_until(lambda: places(consul, key), 10, "the second's place")
                await first.leave()
                await waiting
                for_places = second._session._waiting
                assert for_places in consul.sessions()
                await async_wait_until(
                    lambda: for_places not in consul.sessions(), 10, "the end of what is needless"
                )
                assert second._session.id in consul.sessions()
                # It leads on, and may wait again.
                again = asyncio.ensure_future(win(first))
                await async_wait_until(lambda: places(consul, key), 10, "the first's place")
                await second.leave()
                await again
                waiting = asyncio.ensure_future(win(second))
                await async_wait_until(lambda: places(consul, key), 10, "the second's place")
                await first.leave()
                await waiting
                await second.leave()
                for each in (first, second):
                    await each.close()

        asyncio.run(scenario())

    def test_who_waits_keeps_its_place_for_longer_than_a_ttl_beside_one_who_leads(
        self, consul: ConsulClient, key: str
    ) -> None:
        async def scenario() -> None:
            async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
                holder = contender(two, key, ttl=1)
                await win(holder)
                # Two elections on one session: one is led, the other waited for.
                led, waits = contender(one, f"{key}/led", ttl=1), contender(one, key, ttl=1)
                await win(led)
                waiting = asyncio.ensure_future(win(waits))
                await async_wait_until(lambda: places(consul, key), 10, "the place")
                assert led._session is waits._session
                (place,) = consul.keys(f"{key}.waiting/")
                since = consul.entry(place)["CreateIndex"]  # type: ignore[index]
                confirmed = led._session.lease.valid_until
                await async_wait_until(
                    lambda: led._session.lease.valid_until > confirmed + 2.5, 10, "renewals"
                )
                assert consul.entry(place)["CreateIndex"] == since  # type: ignore[index]
                await holder.leave()
                await waiting
                for each in (holder, led, waits):
                    await each.leave()
                    await each.close()

        asyncio.run(scenario())

    def test_who_came_since_the_leader_did_is_next_though_it_was_there_at_the_first_sight(
        self, consul: ConsulClient, key: str
    ) -> None:
        async def scenario() -> None:
            async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
                first, second = contender(one, key), contender(two, key, b"b")
                await win(first)
                # It has not looked yet.
                await first._stop_tasks()
                first._attendance._seen = {}
                waiting = asyncio.ensure_future(win(second))
                await async_wait_until(lambda: places(consul, key), 10, "the second's place")
                looking = first._attendance.watch(first._held.modify_index, first._taken_at)
                first._tasks = [asyncio.ensure_future(looking)]
                await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
                assert first._attendance.successor(10) is not None
                await first.leave()
                await waiting
                assert second._handed
                await second.leave()
                for each in (first, second):
                    await each.close()

        asyncio.run(scenario())

    def test_who_was_silent_since_before_the_leader_came_is_not_next_at_the_first_sight(
        self, consul: ConsulClient, key: str
    ) -> None:
        sessions = [
            consul.api("PUT", "session/create", {"Behavior": each, "LockDelay": "0s"})["ID"]
            for each in ("release", "delete")
        ]
        silent = json.dumps({"session": sessions[0], "value": "", "refreshed": 0}).encode()
        consul.put(f"{key}.waiting/{sessions[0]}", silent, acquire=sessions[1])

        async def scenario() -> None:
            async with opened(consul.endpoint) as one:
                first = contender(one, key)
                await win(first)
                await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
                assert first._attendance.successor(10) is None
                await first.leave()
                await first.close()

        asyncio.run(scenario())
        for session in sessions:
            consul.destroy_session(session)

    def test_who_was_not_seen_alive_of_late_is_not_handed_the_key(
        self, consul: ConsulClient, consul_store: Store, key: str, pool: ThreadPoolExecutor
    ) -> None:
        sessions = [
            consul.api("PUT", "session/create", {"Behavior": each, "LockDelay": "0s"})["ID"]
            for each in ("release", "delete")
        ]
        leader = Candidate(consul_store, key, "a", ttl=1)
        leader.campaign(timeout=10)
        self.until_witnessed(leader)
        dead = json.dumps({"session": sessions[0], "value": "", "refreshed": 0}).encode()
        consul.put(f"{key}.waiting/{sessions[0]}", dead, acquire=sessions[1])
        self.until_witnessed(leader, 1)
        with new_store(consul.url) as other:
            second = Candidate(other, key, "b", ttl=1)
            waiting = pool.submit(second.campaign)
            until_waiting(consul, key, 2)
            assert leader._candidacy is not None
            part: Any = leader._candidacy._contender
            wait_until(lambda: part._attendance.successor(1 / 3) is None, 10, "its silence")
            leader.stop()
            # It gives the one before it its time, and then goes on.
            assert waiting.result(10).is_valid()
            second.stop()
        for session in sessions:
            consul.destroy_session(session)
        assert consul.keys(key) == []

    def test_who_resigned_leaves_other_clients_the_time_to_try(
        self, consul: ConsulClient, consul_store: Store, key: str, events: list[Event]
    ) -> None:
        session = consul.api("PUT", "session/create", {"LockDelay": "0s"})["ID"]
        candidate = Candidate(consul_store, key, "ours", ttl=10)
        with candidate.run_for_election() as standings:
            assert [next(standings), next(standings)] == [False, True]
            candidate.resign()
            assert [next(standings), next(standings)] == [False, True]
            wait_until(lambda: len(told(events, Elected)) == 2, 10, "the second term")
            released, elected = told(events, Released)[0], told(events, Elected)[1]
            assert 0.4 < elected.at - released.at < 5
            candidate.resign()
            assert consul.put(key, b"theirs", acquire=session, flags=str(LOCK_FLAGS))
            assert next(standings) is False
        consul.destroy_session(session)
        consul.delete(key)


async def until_it_waits(part: Any) -> None:
    await async_wait_until(lambda: part._place, 10, "its place")


@on_a_loop
async def test_however_many_have_gone_they_are_waited_for_no_longer_than_a_part_of_the_ttl(
    consul: ConsulClient, key: str
) -> None:
    holder = session_for(consul, key, flags=str(LOCK_FLAGS))
    async with opened(consul.endpoint) as one:
        part = contender(one, key, ttl=4)
        leading = asyncio.ensure_future(win(part))
        await until_it_waits(part)
        part._ahead = [f"gone {number}" for number in range(1000)]
        began = part._clock.now()
        consul.destroy_session(holder)
        await leading
        assert 1 <= part._clock.now() - began < 10
        await part.leave()
        await part.close()


@on_a_loop
async def test_who_is_further_back_looks_before_it_tries_and_keeps_its_rank(
    consul: ConsulClient, consul_relay: ConsulRelay, key: str
) -> None:
    """Its step is over before it hears that another took the free key."""
    async with (
        opened(consul.endpoint) as one,
        opened(consul.endpoint) as two,
        opened(consul_relay.endpoint) as three,
    ):
        first, second = contender(one, key), contender(two, key, b"b")
        third = contender(three, key, b"c")
        await win(first)
        for part in (second, third):
            waiting = asyncio.ensure_future(win(part))
            await until_it_waits(part)
            waiting.cancel()
            await asyncio.wait([waiting])
        consul.delete(key)
        consul_relay.asked.clear()
        free = Snapshot((), 0)
        deaf = Feed(Target(key), free, 1)
        assert third._steps(third._session) == 0.2
        seen = await third._next(third._session, deaf, free, third._clock.now())
        assert seen.entry is None
        assert third._steps(third._session) == 0
        await win(first)
        seen = await third._next(third._session, deaf, seen, third._clock.now())
        assert seen.entry is not None
        await third._wait_behind(third._session, first._session.id)
        assert third._ahead == [second._session.id]
        assert third._steps(third._session) == 0.2
        assert writes(consul_relay) == []
        for part in (third, second, first):
            await part.leave()
            await part.close()
    assert consul.keys(key) == []


@on_a_loop
async def test_who_enters_too_slowly_for_its_step_looks_as_well(
    consul: ConsulClient, consul_relay: ConsulRelay, key: str
) -> None:
    waiting = json.dumps({"session": "another", "value": "", "refreshed": 0}).encode()
    before = session_for(consul, f"{key}.waiting/another", waiting)
    async with opened(consul_relay.endpoint) as one:
        part = contender(one, key)
        turn = part._turn

        async def over(*arguments: Any) -> float:
            await turn(*arguments)
            return -math.inf

        part._turn = over
        await win(part)
        asked = consul_relay.asked
        entered, took = (n for n, each in enumerate(asked) if each.does("lock"))
        looked = [each for each in asked[entered:took] if each.path == f"/v1/kv/{key}"]
        assert [each for each in looked if "index" not in each.query] != []
        await part.leave()
        await part.close()
    consul.destroy_session(before)
    assert consul.keys(key) == []


@on_a_loop
async def test_who_tries_is_left_the_time_by_those_on_its_store_but_not_for_long(
    consul: ConsulClient, consul_relay: ConsulRelay, key: str
) -> None:
    holder = session_for(consul, key, flags=str(LOCK_FLAGS))
    left: list[float] = []

    async with opened(consul_relay.endpoint) as one:

        def hold_back_the_first(asked: Asked) -> None:
            if asked.does("lock", key) and not left:
                left.append(parts[0]._election.trying[key])
                raise StallError

        parts = [contender(one, key), contender(one, key, b"b")]
        runs = []
        for part in parts:
            runs.append(asyncio.ensure_future(win(part)))
            await until_it_waits(part)
        consul_relay.before = hold_back_the_first
        consul.destroy_session(holder)
        await runs[1]
        assert not runs[0].done()
        assert parts[1]._taken_at >= left[0]
        with pytest.raises(StoreUnavailable):
            await runs[0]
        assert parts[0]._election.trying == {}
        for part in parts:
            await part.leave()
            await part.close()


@pytest.mark.parametrize("ahead", [0, 10])
@on_a_loop
async def test_another_that_tries_lets_nobody_overtake_those_before_it(
    consul: ConsulClient, key: str, ahead: int
) -> None:
    async with opened(consul.endpoint) as one:
        part = contender(one, key)
        await win(part)
        now = part._clock.now()
        part._place, part._ahead = object(), ["before"] * ahead
        part._election.trying[key] = now + _TRY
        turn = await part._turn(part._session, now)
        assert turn - now == pytest.approx(max(_TRY, 0.2 * ahead), abs=0.01)
        part._election.trying.clear()
        part._place = None
        await part.leave()
        await part.close()


@pytest.mark.long
@pytest.mark.parametrize("ttl", [10, 60])
def test_while_a_lock_delay_lasts_those_further_back_hardly_try(
    consul: ConsulClient, consul_relay: ConsulRelay, key: str, ttl: float
) -> None:
    """As after the death of one who used another client: those delay by 15 s if not told else."""

    async def scenario() -> int:
        session = consul.api("PUT", "session/create", {"LockDelay": "2s"})["ID"]
        assert consul.put(key, b"theirs", acquire=session, flags=str(LOCK_FLAGS))
        async with contextlib.AsyncExitStack() as stack:
            address = consul.url_of(consul_relay.endpoint)
            store = await stack.enter_async_context(aio.new_store(address))
            runs = [
                asyncio.ensure_future(aio.Candidate(store, key, str(n), ttl=ttl).campaign())
                for n in range(30)
            ]
            await async_wait_until(lambda: len(places(consul, key)) == 30, 20, "all to wait")
            consul_relay.asked.clear()
            consul.destroy_session(session)
            done, others = await asyncio.wait(runs, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            tries = sum(asked.does("lock", key) for asked in consul_relay.asked)
            for run in others:
                run.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return tries

    # The first in rank tries every half second; each other the less often the further back.
    assert asyncio.run(scenario()) < 40
    assert consul.keys(key) == []


class TestContenders:
    def test_an_entry_whose_removal_was_sent_does_not_lead_again(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        async def scenario() -> None:
            def lose(asked: Asked) -> None:
                if asked.does("delete", key):
                    raise LostReplyError

            async with opened(consul_relay.endpoint) as backend:
                part = contender(backend, key)
                first, _ = await win(part)
                consul_relay.before = lose
                with pytest.raises(StoreUnavailable):
                    await part.leave()
                consul_relay.before = lambda asked: None
                again, _ = await win(part)
                assert again.token > first.token
                await part.leave()
                await part.close()

        asyncio.run(scenario())
        assert consul.keys(key) == []

    async def scenario(self, consul: ConsulClient, key: str) -> None:
        async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
            first, second = contender(one, key), contender(two, key, b"b")
            claim, lost = await win(first)
            waiting = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: places(consul, key), 10, "the second's place")
            # Given up between the hand-over and the moment in which it is heard of.
            await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
            (place, _) = next(iter(first._attendance._seen.values()))
            held = consul.entry(key)
            assert held is not None
            waiting.cancel()
            assert await first._hand_over(first._held, place) is True
            await asyncio.wait([waiting])
            await second.leave()
            assert consul.keys(key) == []
            assert lost
            assert claim.token == held["CreateIndex"]
            for each in (first, second):
                await each.close()

    def test_one_who_is_handed_the_key_while_it_leaves_lets_go_of_it(
        self, consul: ConsulClient, key: str
    ) -> None:
        asyncio.run(self.scenario(consul, key))

    def test_one_whose_place_went_by_a_hand_over_unheard_of_lets_go_of_the_key_too(
        self, consul: ConsulClient, key: str
    ) -> None:
        async def scenario() -> None:
            async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
                first, second = contender(one, key), contender(two, key, b"b", ttl=1)
                await win(first)
                waiting = asyncio.ensure_future(win(second))
                await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
                (place, _) = next(iter(first._attendance._seen.values()))
                waiting.cancel()
                await asyncio.wait([waiting])
                assert await first._hand_over(first._held, place) is True
                nothing = Snapshot((), 0)
                deaf = Feed(Target(key), nothing, 1)
                seen = await second._next(second._session, deaf, nothing, math.inf)
                assert seen.entry is not None
                assert seen.entry.session == second._session.id
                await second.leave()
                for each in (first, second):
                    await each.close()

        asyncio.run(scenario())
        assert consul.keys(key) == []

    def test_one_who_saw_itself_in_the_key_reads_it_before_it_leads(
        self, consul: ConsulClient, key: str
    ) -> None:
        async def scenario() -> None:
            async with (
                opened(consul.endpoint) as one,
                opened(consul.endpoint) as two,
                opened(consul.endpoint) as three,
            ):
                first, second = contender(one, key), contender(two, key, b"b", ttl=4)
                third = contender(three, key, b"c")
                await win(first)
                read = second._election.read
                between: list[Claim] = []

                async def read_late(what: str) -> Any:
                    if not between:
                        # What the watch told is old by the time of the read.
                        consul.delete(key)
                        between.append((await win(third))[0])
                    return await read(what)

                second._election.read = read_late
                waiting = asyncio.ensure_future(win(second))
                await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
                (place, _) = next(iter(first._attendance._seen.values()))
                assert await first._hand_over(first._held, place) is True
                await async_wait_until(lambda: places(consul, key), 10, "the second's new place")
                assert not waiting.done()
                await third.leave()
                claim, _ = await waiting
                assert claim.token > between[0].token
                await second.leave()
                for each in (first, second, third):
                    await each.close()

        asyncio.run(scenario())


def test_a_hook_of_the_relay_that_breaks_fails_the_test_that_set_it(consul: ConsulClient) -> None:
    """Whoever asked takes it for an answer of the server's, and asks again."""

    def breaks(asked: Asked) -> None:
        raise ZeroDivisionError

    def asking() -> None:
        with ConsulRelay(consul.endpoint) as relay:
            relay.before = breaks
            with pytest.raises(HTTPError):
                urlopen(f"http://{relay.endpoint}/v1/status/leader", timeout=10)

    with pytest.raises(ZeroDivisionError):
        asking()
