"""Who waits on etcd: what is an outage, and how it goes on after one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, new_store
from leadership.errors import StoreUnavailable
from leadership.events import Event, StoreTrouble

from .conftest import MakeEtcd
from .etcd_elections import CLOCK, contender, entries, opened, told, win
from .loops import on_a_loop
from .servers.etcd import ROOT, EtcdServer
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy
from .waiting import async_wait_until, wait_until


@pytest.fixture
def relay(etcd: EtcdClient) -> Iterator[FaultProxy]:
    with FaultProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


def troubles(events: list[Event], key: str) -> list[StoreTrouble]:
    return [each for each in told(events, StoreTrouble) if each.key == key]


class TestWithoutARetry:
    def test_a_token_that_grew_old_is_no_outage(
        self, make_etcd: MakeEtcd, key: str, pool: ThreadPoolExecutor
    ) -> None:
        server = make_etcd(auth=True, auth_token_ttl=1)
        address = f"etcd://{ROOT.name}:{ROOT.password}@{server.endpoint}"
        with new_store(address) as mine, new_store(address) as theirs:
            leader = Candidate(theirs, key, "a", ttl=5)
            leader.campaign(timeout=10)
            waiting = pool.submit(Candidate(mine, key, "b", ttl=5, retry=None).campaign)
            wait_until(lambda: len(server.ctl("get", "--prefix", key, "--keys-only").split()) == 2)
            for number in range(3):
                # Each time a watch that is new on the stream is refused, and the stream renewed.
                before = CLOCK.now()
                wait_until(lambda b=before: CLOCK.now() > b + 1.5)  # type: ignore[misc]
                with mine.watch(f"{key}-{number}") as states:
                    assert next(states) is None
                assert not waiting.done()
            leader.stop()
            assert waiting.result(20).is_valid()


class TestWithARetry:
    def test_an_outage_in_which_the_leader_goes_is_ridden_out(
        self, etcd_server: EtcdServer, key: str, pool: ThreadPoolExecutor, events: list[Event]
    ) -> None:
        with new_store(etcd_server.url, hooks=[events.append]) as mine:
            leader = Candidate(mine, key, "a", ttl=30)
            leader.campaign(timeout=10)
            second = Candidate(mine, key, "b", ttl=30)
            waiting = pool.submit(second.campaign)
            wait_until(lambda: len(entries(etcd_server, key)) == 2, 10, "the second entry")
            etcd_server.kill()
            wait_until(lambda: troubles(events, key), 20, "its own trouble")
            etcd_server.start()
            leader.stop()
            assert waiting.result(20).is_valid()
            second.stop()


class TestTheContender:
    """What `campaign` raises, and how it goes on when it is called again."""

    @on_a_loop
    async def test_a_session_that_is_not_renewed_is_told_once_and_the_entry_keeps_its_place(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend, opened(etcd.endpoint) as other:
            leader, second, third = (
                contender(each, key, ttl=20) for each in (other, backend, other)
            )
            await win(leader)
            answers: list[None] = []
            second.on_answer = lambda: answers.append(None)
            waiting = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: answers, what="the first answer")
            behind = asyncio.ensure_future(win(third))
            await async_wait_until(lambda: third.revision, what="the third entry")
            session, revision = second._session, second.revision
            renewed = session._renew

            async def fail() -> None:
                raise StoreUnavailable("for the test")

            session._renew = fail
            # Not in six seconds, but now.
            session._task.cancel()
            await asyncio.wait([session._task])
            session.ttl, ttl = 0.3, session.ttl
            session._task = asyncio.ensure_future(session._keep())
            with pytest.raises(StoreUnavailable, match="not renewed: for the test"):
                await waiting
            assert answers == [None]
            again = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: session._failures > 5, what="more failures")
            assert not again.done(), "the same outage was told twice"
            assert answers == [None, None], "it did not say that the store answers again"
            session._renew, session.ttl = renewed, ttl
            await leader.leave()
            claim, _ = await again
            assert claim.token == second.revision == revision
            assert not behind.done()
            await second.leave()
            await behind
            await third.leave()
            for each in (leader, second, third):
                await each.close()

    @on_a_loop
    async def test_the_late_end_of_a_watch_ends_none_of_the_same_id_on_the_next_stream(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            watches = backend._watches
            told: list[object] = []
            watch = watches.watch(key.encode(), b"", 0, told.append, lambda error: None)
            await async_wait_until(lambda: watch.id is not None, what="the watch")
            former = watches._call
            backend._connection.abandon(backend._connection.link())
            await async_wait_until(
                lambda: watch.id is not None and watches._call not in (former, None),
                what="the watch on the next stream",
            )
            assert watch.id is not None
            watches._end_on(former, watch.id)
            await backend.put(key, b"x")
            await async_wait_until(lambda: told, what="the event")

    @on_a_loop
    async def test_a_cancelled_watch_is_ended_at_the_server_while_others_stay(
        self, etcd: EtcdClient, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            watches = backend._watches
            staying, leaving = (
                watches.watch(f"{key}/{each}".encode(), b"", 0, lambda events: None, print)
                for each in range(2)
            )
            await async_wait_until(lambda: len(watches._by_id) == 2, what="both watches")
            ended: list[int] = []
            monkeypatch.setattr(watches, "_end", ended.append)
            number = leaving.id
            watches.cancel(leaving)
            assert list(watches._by_id.values()) == [staying], "it is told of events still"
            await async_wait_until(lambda: ended == [number], what="the word to the server")

    @on_a_loop
    async def test_after_an_outage_a_watch_that_breaks_is_soon_there_again(
        self, etcd: EtcdClient, relay: FaultProxy, key: str
    ) -> None:
        """Who leads is deaf meanwhile, and must hear within a second that its entry was deleted."""
        async with opened(relay.endpoint) as backend:
            watches = backend._watches
            told: list[object] = []
            watch = watches.watch(key.encode(), b"", 0, told.append, lambda error: None)
            await async_wait_until(lambda: watch.id is not None, what="the watch")
            relay.set("reset")
            await async_wait_until(lambda: watches._failures >= 5, what="failures in a row")
            for _ in range(2):
                relay.set("pass")
                back_at = CLOCK.now()
                await async_wait_until(lambda: watch.id is not None, what="the watch again")
                assert CLOCK.now() - back_at < 0.9
                # Else it may be there again before it was seen to be gone.
                relay.set("reset")
                backend._connection.abandon(backend._connection.link())
                await async_wait_until(lambda: watch.id is None, what="its end")

    @on_a_loop
    async def test_a_stream_that_dies_and_is_opened_again_ends_no_wait(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend, opened(etcd.endpoint) as other:
            leader, second = contender(other, key), contender(backend, key)
            await win(leader)
            waiting = asyncio.ensure_future(win(second))
            watches = backend._watches
            for _ in range(3):
                await async_wait_until(
                    lambda: len(watches._by_id) == 2, what="both watches on the stream"
                )
                backend._connection.abandon(backend._connection.link())
                await async_wait_until(lambda: len(watches._by_id) == 0 or watches._failures == 1)
            assert not waiting.done()
            await leader.leave()
            await waiting
            await second.leave()
            for each in (leader, second):
                await each.close()
