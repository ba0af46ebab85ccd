"""One contender on ZooKeeper and its session, in the moments that are seldom met."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.security import make_acl

from leadership.backend import Context
from leadership.backends._zookeeper_connection import Connection
from leadership.backends._zookeeper_connection import opened as opened_connection
from leadership.backends._zookeeper_contender import ZooKeeperContender
from leadership.backends._zookeeper_session import ZooKeeperSession
from leadership.clock import ManualClock
from leadership.errors import AccessDenied, HandleClosed, StoreUnavailable

from .etcd_elections import CLOCK
from .loops import on_a_loop
from .servers.fault_proxy import Fate, FaultProxy, Mode
from .servers.zookeeper import ZooKeeperClient, ZooKeeperServer
from .waiting import async_wait_until
from .zookeeper_elections import contender, entries, expire, opened, win


@pytest.fixture
def client(zookeeper: ZooKeeperClient) -> Iterator[KazooClient]:
    with zookeeper.client() as started:
        yield started


async def left(part: ZooKeeperContender) -> None:
    """As a candidacy does it: until it is confirmed."""
    while True:
        try:
            return await part.leave()
        except StoreUnavailable:
            await asyncio.sleep(0.1)


class TestTheEntry:
    @on_a_loop
    async def test_after_a_new_election_the_next_directory_is_made_with_the_entry(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            first, new, known = (contender(backend, f"{key}/{each}") for each in range(3))
            await win(first)
            connection = first._session.connection
            request, asked = connection.request, []

            async def counted(ask: Any, *expected: Any, **more: Any) -> Any:
                if not more.get("urgent"):
                    asked.append(ask)
                return await request(ask, *expected, **more)

            connection.request = counted
            claim, _ = await win(new)
            # Both in one, and the watch on the entry: nobody can be before it.
            assert len(asked) == 2
            directory, node = await asyncio.to_thread(client.get, f"/{key}/1")
            assert directory is None, "a key with an empty value"
            assert node.numChildren == 1
            _, stat = await asyncio.to_thread(client.get, f"/{key}/1/{new._name}")
            assert (claim.token, stat.ephemeralOwner) == (stat.czxid, new._session.id)
            await asyncio.to_thread(client.create, f"/{key}/2")
            await win(known)
            assert not known._election.directories_are_missing
            connection.request = request
            for each in (first, new, known):
                await each.leave()
                await each.close()

    @pytest.mark.parametrize("number", [1, 2], ids=["of the entry", "of the token"])
    @on_a_loop
    async def test_after_a_lost_answer_the_entry_that_was_made_with_its_directory_is_found(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str, number: int
    ) -> None:
        async with opened(zookeeper) as backend:
            first, part = contender(backend, f"{key}/first"), contender(backend, f"{key}/a")
            await win(first)
            connection = first._session.connection
            request, answers = connection.request, []

            async def lose_one(ask: Any, *expected: Any, **more: Any) -> Any:
                answer = await request(ask, *expected, **more)
                if not more.get("urgent"):
                    answers.append(answer)
                    if len(answers) == number:
                        raise StoreUnavailable("the answer never came")
                return answer

            connection.request = lose_one
            with pytest.raises(StoreUnavailable):
                await win(part)
            # As if its watch was being set anew just now, and not answered yet.
            part._guarded = number == 2
            claim, _ = await win(part)
            made = answers[0][-1]
            assert await asyncio.to_thread(entries, client, f"{key}/a") == [part._name]
            assert part._name == made.rpartition("/")[2]
            _, stat = await asyncio.to_thread(client.get, made)
            assert claim.token == stat.czxid
            for each in (first, part):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_who_may_not_make_the_directory_enters_one_that_is_there(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            part = contender(backend, f"{key}/a")
            await asyncio.to_thread(client.create, f"/{key}/a", makepath=True)
            read_only = [make_acl("world", "anyone", read=True, delete=True, admin=True)]
            await asyncio.to_thread(client.set_acls, f"/{key}", read_only)
            part._election.directories_are_missing = True
            claim, _ = await win(part)
            assert claim.token > 0
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_who_finds_anothers_node_in_place_of_its_entry_enters_anew_behind_it(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            first, part = contender(backend, f"{key}/first"), contender(backend, f"{key}/a")
            await win(first)
            connection = first._session.connection
            request = connection.request
            remade: list[str] = []

            async def remake(ask: Any, *expected: Any, **more: Any) -> Any:
                answer = await request(ask, *expected, **more)
                if not more.get("urgent") and not remade:
                    remade.append(answer[1])
                    await asyncio.to_thread(client.delete, answer[1])
                    await asyncio.to_thread(client.create, answer[1])
                return answer

            connection.request = remake
            campaign = asyncio.ensure_future(win(part))
            await async_wait_until(
                lambda: campaign.done() or len(entries(client, f"{key}/a")) == 2, what="its place"
            )
            assert not campaign.done(), "it leads by a node that goes with another's session"
            await asyncio.to_thread(client.delete, remade[0])
            claim, _ = await campaign
            _, stat = await asyncio.to_thread(client.get, f"/{key}/a/{part._name}")
            assert (claim.token, stat.ephemeralOwner) == (stat.czxid, part._session.id)
            for each in (first, part):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_a_leader_whose_entry_is_replaced_in_one_step_is_told(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            part = contender(backend, key)
            _, lost = await win(part)
            replacement = client.transaction()
            replacement.delete(f"/{key}/{part._name}")
            replacement.create(f"/{key}/{part._name}")
            await asyncio.to_thread(replacement.commit)
            await async_wait_until(lambda: lost, what="the loss")
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_a_deletion_just_after_the_guard_was_set_is_told(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            part = contender(backend, key)
            _, lost = await win(part)
            connection = part._session.connection
            path, request = f"/{key}/{part._name}", connection.request
            deleted = False

            async def delete_meanwhile(ask: Any, *expected: Any, **more: Any) -> Any:
                nonlocal deleted
                answer = await request(ask, *expected, **more)
                if not deleted and path in connection.watches._told:
                    deleted = True
                    await asyncio.to_thread(client.delete, path)
                    await async_wait_until(
                        lambda: path not in connection.watches._told or lost, what="its watch"
                    )
                return answer

            connection.request = delete_meanwhile
            # Somebody else's write uses the watch up: it is set anew.
            await asyncio.to_thread(client.set, path, b"b")
            await async_wait_until(lambda: lost, what="the loss")
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_an_entry_whose_removal_was_begun_never_leads_again(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            part = contender(backend, key)
            first, _ = await win(part)
            connection = part._session.connection
            request = connection.request

            async def fail(*_: Any, **more: Any) -> Any:
                raise StoreUnavailable("for the test")

            connection.request = fail
            with pytest.raises(StoreUnavailable):
                await part.leave()
            with pytest.raises(StoreUnavailable):
                await win(part)
            connection.request = request
            second, _ = await win(part)
            assert second.token > first.token
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_an_entry_made_after_its_campaign_was_cancelled_counts_once(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            await asyncio.to_thread(client.ensure_path, f"/{key}")
            part = contender(backend, key)
            await part._slot.session()
            campaign = asyncio.ensure_future(win(part))
            await asyncio.sleep(0)
            assert part._attempt, "the write is not under way"
            campaign.cancel()
            await asyncio.wait([campaign])
            first, lost = await win(part)
            await asyncio.to_thread(client.delete, f"/{key}/{part._name}")
            await async_wait_until(lambda: lost, what="the loss")
            second, _ = await win(part)
            assert second.token > first.token
            assert len(await asyncio.to_thread(entries, client, key)) == 1
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_who_was_refused_has_nothing_to_look_for_after_it_closed(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            keeper, part = contender(backend, f"{key}-keeper"), contender(backend, key)
            await win(keeper)
            await asyncio.to_thread(client.ensure_path, f"/{key}")
            closed = [make_acl("world", "anyone", admin=True, delete=True)]
            await asyncio.to_thread(client.set_acls, f"/{key}", closed)
            with pytest.raises(AccessDenied):
                await win(part)
            await part.leave()
            await part.close()
            assert not backend._election._tasks
            await keeper.leave()
            await keeper.close()

    @on_a_loop
    async def test_who_leaves_a_silent_server_does_not_wait_for_those_who_gave_up(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        with FaultProxy(int(zookeeper.endpoint.rpartition(":")[2])) as relay:
            async with opened(ZooKeeperClient([relay.endpoint])) as backend:
                keeper = contender(backend, f"{key}-keeper", ttl=60)
                await win(keeper)
                # It would find the silence too.
                keeper._session._renew = asyncio.Event().wait
                await asyncio.to_thread(client.ensure_path, f"/{key}")
                parts = [contender(backend, key, ttl=60) for _ in range(150)]
                relay.catch(b"__lock__", Fate.REPLY_LATE)
                campaigns = [asyncio.ensure_future(win(part)) for part in parts]
                window = keeper._session.connection._window
                await async_wait_until(lambda: window._waiting, what="a full window")
                for campaign in campaigns:
                    campaign.cancel()
                await asyncio.wait(campaigns)
                async with asyncio.timeout(15):
                    await asyncio.gather(*(left(part) for part in parts))
                for part in parts:
                    await part.close()
                assert await asyncio.to_thread(entries, client, key) == []
                await keeper.leave()
                await keeper.close()

    @on_a_loop
    async def test_closing_at_any_moment_leaves_no_entry_on_a_session_that_lives_on(
        self, zookeeper: ZooKeeperClient, client: KazooClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            keeper = contender(backend, f"{key}-keeper")
            await win(keeper)
            for steps in range(40):
                part = contender(backend, key)
                campaign = asyncio.ensure_future(win(part))
                for _ in range(steps):
                    await asyncio.sleep(0)
                campaign.cancel()
                await asyncio.wait([campaign])
                # As when the store closes, and nobody can wait for `leave`.
                await part.close()
            last = contender(backend, key)
            # It waits for those of them that stand, for as long as they do.
            await win(last)
            await async_wait_until(
                lambda: not backend._election._tasks, what="the ends of the removals"
            )
            assert await asyncio.to_thread(entries, client, key) == [last._name]
            for each in (last, keeper):
                await each.leave()
                await each.close()


class TestWaiting:
    @on_a_loop
    async def test_who_is_next_in_line_looks_and_proves_in_one_round_trip(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend, opened(zookeeper) as other:
            leader, second = contender(other, key), contender(backend, key)
            await win(leader)
            looked: list[None] = []
            second.on_answer = lambda: looked.append(None)
            waiting = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: looked, what="its place")
            connection = second._session.connection
            request, asked = connection.request, []
            both = asyncio.Event()

            async def answer_when_both_are_asked(ask: Any, *expected: Any, **more: Any) -> Any:
                answer = request(ask, *expected, **more)
                if more.get("urgent"):
                    # The session's renewal.
                    return await answer
                asked.append(ask)
                if len(asked) == 2:
                    both.set()
                await both.wait()
                return await answer

            connection.request = answer_when_both_are_asked
            await leader.leave()
            await waiting
            connection.request = request
            await second.leave()
            for each in (leader, second):
                await each.close()

    @on_a_loop
    async def test_who_is_not_next_in_line_proves_nothing_that_the_store_must_write(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            leader, second, third = (contender(backend, key) for _ in range(3))
            await win(leader)
            looked: list[ZooKeeperContender] = []
            proofs: list[Connection] = []
            waits = []
            for part in (second, third):
                part.on_answer = partial(looked.append, part)
                waits.append(asyncio.ensure_future(win(part)))
                await async_wait_until(partial(looked.count, part), what="its place")

            async def stands(connection: Connection) -> bool:
                proofs.append(connection)
                return True

            third._stands = stands
            waits[0].cancel()
            await second.leave()
            await async_wait_until(lambda: looked.count(third) == 2, what="its other look")
            assert third._next_in_line
            assert not proofs
            await leader.leave()
            await waits[1]
            assert proofs
            for each in (leader, second, third):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_a_session_that_is_not_proved_is_told_once_and_the_entry_keeps_its_place(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend, opened(zookeeper) as other:
            leader, second, third = (
                contender(each, key, ttl=2) for each in (other, backend, other)
            )
            await win(leader)
            answers: list[None] = []
            second.on_answer = lambda: answers.append(None)
            waiting = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: answers, what="the first answer")
            behind = asyncio.ensure_future(win(third))
            await async_wait_until(lambda: third._name, what="the third entry")
            session, token = second._session, second._token
            renew = session._renew

            async def fail() -> None:
                raise StoreUnavailable("for the test")

            # As by a server that answers reads and commits nothing.
            session._renew = fail
            with pytest.raises(StoreUnavailable, match="not renewed: for the test"):
                await waiting
            again = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: session._failures > 5, what="more failures")
            assert not again.done(), "the same outage was told twice"
            assert answers == [None, None], "it did not say that the store answers again"
            session._renew = renew
            await leader.leave()
            claim, _ = await again
            assert claim.token == second._token == token
            assert not behind.done()
            await second.leave()
            await behind
            await third.leave()
            for each in (leader, second, third):
                await each.close()

    @on_a_loop
    async def test_who_is_first_with_a_lapsed_lease_is_told_of_the_outage_too(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            keeper = contender(backend, f"{key}-keeper", ttl=2)
            await win(keeper)
            session = keeper._session

            async def fail() -> None:
                raise StoreUnavailable("for the test")

            session._renew = fail
            await async_wait_until(lambda: not session.lease.is_valid(), what="the lapse")
            session._failures, session._told_cut = 0, False
            part = contender(backend, key, ttl=2)
            with pytest.raises(StoreUnavailable, match="not renewed: for the test"):
                await win(part)
            for each in (part, keeper):
                await each.leave()
                await each.close()


class TestTheSession:
    def session(self, clock: ManualClock, **more: Any) -> ZooKeeperSession:
        connection: Any = SimpleNamespace(
            id=1, timeout=4.0, lost=None, opened_at=clock.now(), on_lost=None
        )
        context = Context(clock=clock, max_clock_drift=0.01)
        return ZooKeeperSession(connection, context, "/sessions", **{"standalone": False, **more})

    def test_half_of_the_timeout_is_trusted_at_the_usual_pace(self) -> None:
        clock = ManualClock()
        session = self.session(clock)
        for _ in range(20):
            session._confirm(clock.now())
            assert session.lease.valid_until == pytest.approx(clock.now() + 2 * 0.99 - 0.1)
            clock.advance(0.4)

    def test_after_a_silence_the_ensembles_leader_may_only_have_heard_of_us_before_it(
        self,
    ) -> None:
        clock = ManualClock()
        session = self.session(clock)
        session._confirm(clock.now())
        heard_at = clock.now()
        # We slept. The follower that takes our write passes on that we are
        # there only with its next beat, and is cut off before that.
        clock.advance(3.5)
        session._confirm(clock.now())
        assert session.lease.valid_until <= heard_at + 4
        clock.advance(0.4)
        session._confirm(clock.now())
        assert session.lease.valid_until <= heard_at + 4
        clock.advance(0.7)
        session._confirm(clock.now())
        assert session.lease.valid_until > clock.now() + 1.8

    def test_a_new_connection_is_news_of_us_to_the_ensembles_leader(self) -> None:
        clock = ManualClock()
        session = self.session(clock)
        session._confirm(clock.now())
        clock.advance(3.5)
        session.connection.opened_at = clock.now()
        session._confirm(clock.now())
        assert session.lease.valid_until > clock.now() + 1.8

    def test_one_server_alone_has_heard_of_us_with_each_write(self) -> None:
        clock = ManualClock()
        session = self.session(clock, standalone=True)
        session._confirm(clock.now())
        clock.advance(3.5)
        session._confirm(clock.now())
        assert session.lease.valid_until > clock.now() + 3.8


class TestTheConnection:
    @on_a_loop
    async def test_a_server_that_takes_connections_and_never_answers_is_left_for_the_next(
        self, zookeeper: ZooKeeperClient
    ) -> None:
        (other,) = zookeeper.endpoints
        with FaultProxy(int(other.rpartition(":")[2])) as relay:
            relay.set(Mode.STALL)
            async with opened(zookeeper) as backend:
                settings = dataclasses.replace(backend._settings, servers=(relay.endpoint, other))
                # kazoo by itself would wait for half of this.
                connection = await opened_connection(settings, backend.context, 30)
                await connection.close()

    @on_a_loop
    async def test_a_server_that_grants_less_at_a_reconnect_ends_the_session(
        self, zookeeper: ZooKeeperClient
    ) -> None:
        async with opened(zookeeper) as backend:
            connection = Connection(backend._settings, backend.context, 5)
            for granted in (5.0, 6.0, 5.0):
                connection._changed(KazooState.CONNECTED, KeeperState.CONNECTED, 1, granted, 1.0)
                assert connection.timeout == 5.0
                assert connection.lost is None
            connection._changed(KazooState.CONNECTED, KeeperState.CONNECTED, 1, 4.0, 1.0)
            assert "4 s" in str(connection.lost)
            await connection.close()

    @on_a_loop
    async def test_an_answer_that_kazoo_cannot_place_costs_the_session_and_no_more(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        async with opened(zookeeper) as backend:
            part = contender(backend, key, ttl=2)
            first, lost = await win(part)

            def fail(*_: Any) -> None:
                # As it does, in its thread, where an answer is missing.
                raise RuntimeError("xids do not match")

            part._session.connection._client._connection._read_response = fail
            await async_wait_until(lambda: lost, what="the loss")
            second, _ = await win(part)
            assert second.token > first.token
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_after_its_session_expired_kazoo_opens_no_other(
        self, zookeeper: ZooKeeperClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with opened(zookeeper) as backend:
            connection = await opened_connection(backend._settings, backend.context, 5)
            kazoo = connection._client
            # Its thread may take its time to end kazoo's.
            stop = connection._stop_soon
            monkeypatch.setattr(connection, "_stop_soon", lambda: None)
            await asyncio.to_thread(expire, zookeeper, kazoo.client_id)
            await async_wait_until(lambda: connection.lost, what="the expiry")
            assert not await asyncio.to_thread(kazoo._live.wait, 0.5)
            stop()
            await connection.close()

    @on_a_loop
    async def test_closing_while_a_session_is_opened_leaves_none_at_the_server(
        self, zookeeper_server: ZooKeeperServer, key: str
    ) -> None:
        with FaultProxy(zookeeper_server.client_port) as relay:
            relay.set(Mode.DELAY, 0.1)
            for tenths in (0, 1, 2, 4):
                server = ZooKeeperClient([relay.endpoint])
                async with opened(server) as backend:
                    campaign = asyncio.ensure_future(win(contender(backend, key)))
                    await asyncio.wait([campaign], timeout=tenths / 10)
                    campaign.cancel()
                await asyncio.wait([campaign])
        await async_wait_until(lambda: not zookeeper_server.sessions(), what="no session")

    @on_a_loop
    async def test_closing_while_no_server_answers_is_bounded(
        self, zookeeper: ZooKeeperClient, key: str
    ) -> None:
        with FaultProxy(int(zookeeper.endpoints[0].rpartition(":")[2])) as relay:
            relay.set(Mode.STALL)
            async with opened(ZooKeeperClient([relay.endpoint])) as backend:
                campaign = asyncio.ensure_future(win(contender(backend, key)))
                await async_wait_until(lambda: relay.connections_accepted, what="a connection")
                began = CLOCK.now()
                await backend.close()
                # Three seconds for the opening, two for the end.
                assert CLOCK.now() - began < 10
                with pytest.raises((StoreUnavailable, HandleClosed)):
                    await campaign
