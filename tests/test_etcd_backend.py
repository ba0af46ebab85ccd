"""The etcd backend by itself, on a real server: late requests, watches that cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from leadership.backends._etcd_watch import Compacted, Watch, Watches
from leadership.backends._grpc import etcdrpc
from leadership.backends.etcd import EtcdBackend, _TtlLeases
from leadership.errors import AccessDenied, StoreUnavailable
from leadership.events import Event, NestedElection, TtlGranted

from .conftest import MakeEtcd
from .etcd_elections import Late, contender, opened, win
from .loops import on_a_loop
from .servers.etcd import ROOT
from .servers.etcd_client import EtcdClient
from .servers.fault_proxy import FaultProxy
from .waiting import async_wait_until


class TestRequestsThatArriveLate:
    """A request whose sender has long given up may still be carried out, at any later moment."""

    @on_a_loop
    async def test_a_removal_takes_no_newer_entry(self, etcd: EtcdClient, key: str) -> None:
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            first, _ = await win(part)
            late = Late(backend, "delete_range")
            with pytest.raises(StoreUnavailable):
                await part.leave()
            await part.leave()
            second, lost = await win(part)
            assert second.token > first.token
            await late.arrive()
            assert await backend.list(key)
            await asyncio.sleep(0.3)
            assert lost == []
            await part.leave()
            assert await backend.list(key) == []
            await part.close()

    @on_a_loop
    async def test_an_entry_that_a_removal_may_still_take_does_not_lead(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            first, _ = await win(part)
            late = Late(backend, "delete_range")
            with pytest.raises(StoreUnavailable):
                await part.leave()
            second, lost = await win(part)
            assert second.token > first.token
            await late.arrive()
            await asyncio.sleep(0.3)
            assert lost == []
            assert len(await backend.list(key)) == 1
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_an_older_value_does_not_replace_a_newer_one(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            _, lost = await win(part)
            late = Late(backend, "put")
            with pytest.raises(StoreUnavailable):
                await part.proclaim(b"older")
            await part.proclaim(b"newer")
            await late.arrive()
            (pair,) = await backend.list(key)
            assert pair.value == b"newer"
            await part.proclaim(b"newest")
            (pair,) = await backend.list(key)
            assert pair.value == b"newest"
            assert lost == []
            await part.leave()
            await part.close()

    @on_a_loop
    async def test_an_entry_goes_that_appears_after_the_watch_for_it_ended(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            keeper, part = contender(backend, f"{key}-other"), contender(backend, key)
            await win(keeper)
            late = Late(backend, "put")
            with pytest.raises(StoreUnavailable):
                await win(part)
            await part.leave()
            (watch,) = part._session.sweeps.values()
            backend._watches._give_up(watch, Compacted("for the test"))
            await async_wait_until(
                lambda: watch not in part._session.sweeps.values() and part._session.sweeps,
                what="another watch for it",
            )
            await late.arrive()
            await nothing_below(backend, key)
            await keeper.leave()
            for each in (part, keeper):
                await each.close()


async def nothing_below(backend: EtcdBackend, key: str) -> None:
    async with asyncio.timeout(10):
        async with contextlib.aclosing(backend.watch_tree(key)) as states:
            async for pairs in states:
                if not pairs:
                    return


class TestLeavingInTrouble:
    @on_a_loop
    async def test_an_entry_given_up_on_goes_though_its_lease_is_kept_alive_by_others(
        self, etcd: EtcdClient, key: str
    ) -> None:
        with FaultProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
            async with opened(proxy.endpoint) as backend, opened(etcd.endpoint) as outside:
                keeper, part = contender(backend, f"{key}-other"), contender(backend, key)
                for each in (keeper, part):
                    await win(each)
                assert keeper._session is part._session
                proxy.set("reset")
                with pytest.raises(StoreUnavailable):
                    await part.leave()
                await part.close()
                proxy.set("pass")
                await nothing_below(outside, key)
                assert len(await outside.list(f"{key}-other")) == 1
                # Its place in the session is free again, and no removal hits who takes it.
                again = contender(backend, key)
                _, lost = await win(again)
                await asyncio.sleep(0.3)
                assert lost == []
                for each in (keeper, again):
                    await each.leave()
                    await each.close()

    @on_a_loop
    async def test_who_comes_next_waits_for_the_removal_and_takes_no_entry_over(
        self, etcd: EtcdClient, key: str
    ) -> None:
        with FaultProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
            async with opened(proxy.endpoint) as backend:
                keeper, part = contender(backend, f"{key}-other"), contender(backend, key)
                await win(keeper)
                first, _ = await win(part)
                proxy.set("reset")
                with pytest.raises(StoreUnavailable):
                    await part.leave()
                await part.close()
                await asyncio.sleep(0.1)
                proxy.set("pass")
                again = contender(backend, key)
                second, lost = await win(again)
                assert second.token > first.token
                await asyncio.sleep(1.5)
                assert lost == []
                for each in (keeper, again):
                    await each.leave()
                    await each.close()


async def another_guard(part: Any, than: Watch) -> None:
    await async_wait_until(
        lambda: part._guard is not than and part._guard.id is not None, what="another watch"
    )


class TestWatchesThatCannotGoOn:
    @on_a_loop
    async def test_a_leader_whose_watch_was_refused_still_hears_of_its_end(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            keeper, part = contender(backend, f"{key}-other"), contender(backend, key)
            await win(keeper)
            _, lost = await win(part)
            for error in (AccessDenied("for the test"), Compacted("for the test")):
                guard = part._guard
                backend._watches._give_up(guard, error)
                await another_guard(part, guard)
            await backend.delete_tree(key)
            await async_wait_until(lambda: lost, what="the loss")
            assert len(lost) == 1
            for each in (part, keeper):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_one_who_waits_and_may_not_watch_is_told_so(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            leader, second = contender(backend, key), contender(backend, key)
            await win(leader)
            waiting = asyncio.ensure_future(win(second))
            watches = backend._watches._watches
            await async_wait_until(lambda: len(watches) == 3, what="three watches")
            (before,) = [w for w in watches if w.key == leader.name and w is not leader._guard]
            backend._watches._give_up(before, AccessDenied("for the test"))
            with pytest.raises(AccessDenied):
                await waiting
            for each in (second, leader):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_a_watch_ahead_of_the_store_is_not_left_silent(
        self, etcd: EtcdClient, key: str
    ) -> None:
        """So it is after a restore from an older backup."""
        async with opened(etcd.endpoint) as backend:
            pair = await backend.put(key, b"x")
            told: list[BaseException] = []
            backend._watches.watch(
                key.encode(), b"", pair.index + 1_000_000, lambda events: None, told.append
            )
            await async_wait_until(lambda: told, what="the news")
            assert isinstance(told[0], Compacted)
            await backend.delete(key)

    @on_a_loop
    async def test_a_follower_on_a_connection_that_fell_silent_is_told(
        self, etcd: EtcdClient, key: str
    ) -> None:
        """With no session whose renewals fail, only the pings can tell."""
        with FaultProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
            async with opened(proxy.endpoint) as backend:
                async with contextlib.aclosing(backend.observe(key)) as leaders:
                    assert await anext(leaders) is None
                    proxy.set("stall")
                    async with asyncio.timeout(30):
                        with pytest.raises(StoreUnavailable):
                            await anext(leaders)

    @on_a_loop
    async def test_a_slow_consumer_gets_the_last_state_and_not_all_there_were(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            async with contextlib.aclosing(backend.watch(key)) as states:
                assert await anext(states) is None
                for n in range(300):
                    await backend.put(key, f"{n}".encode())
                seen = 0
                async with asyncio.timeout(10):
                    async for pair in states:
                        seen += 1
                        if pair is not None and pair.value == b"299":
                            break
                assert seen < 10
                (feed,) = [w.on_events.__self__ for w in backend._watches._watches]  # type: ignore[attr-defined]
                for n in range(300):
                    await backend.put(key, f"{n}".encode())
                assert len(feed._events) <= 1
            await backend.delete(key)


class TestTokens:
    @on_a_loop
    async def test_a_new_watch_on_a_stream_whose_token_grew_old_is_opened_anew(
        self, make_etcd: MakeEtcd, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """etcd before 3.5.5 speaks of rights, where the token is too old."""
        server = make_etcd(auth=True, auth_token_ttl=1)
        refused: list[str] = []
        refuse = Watches._refused

        def as_older_servers_say_it(watches: Watches, watch: Watch, response: Any) -> None:
            refused.append(response.cancel_reason)
            response.cancel_reason = "rpc error: code = PermissionDenied desc = permission denied"
            refuse(watches, watch, response)

        monkeypatch.setattr(Watches, "_refused", as_older_servers_say_it)
        async with opened(server.endpoint, user=ROOT.name, password=ROOT.password) as backend:
            first, second = contender(backend, f"{key}-1"), contender(backend, f"{key}-2")
            await win(first)
            await asyncio.sleep(4)
            _, lost = await win(second)
            await async_wait_until(lambda: refused, what="a refused watch")
            await async_wait_until(
                lambda: second._guard.id is not None, what="the watch on a new stream"
            )
            server.ctl("del", "--prefix", f"{key}-2/")
            await async_wait_until(lambda: lost, what="the loss")
            for each in (first, second):
                await each.leave()
                await each.close()

    @on_a_loop
    async def test_an_endpoint_that_does_not_let_us_log_in_is_left(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(auth=True)
        with FaultProxy(server.client_port) as first, FaultProxy(server.client_port) as second:
            second.set("reset")
            async with opened(
                first.endpoint,
                second.endpoint,
                server.endpoint,
                user=ROOT.name,
                password=ROOT.password,
            ) as backend:
                part = contender(backend, key, ttl=3)
                claim, lost = await win(part)
                backend._connection.forget_token()
                first.set("reset")
                until = claim.valid_until
                await async_wait_until(
                    lambda: claim.valid_until > until + 3, 12, "renewals by the third"
                )
                assert lost == []
                await part.leave()
                await part.close()


class TestKeysWithATtl:
    @on_a_loop
    async def test_answers_in_another_order_than_the_writes_end_no_lease_in_use(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            send = backend._connection._send
            older_is_done, newer_is_done = asyncio.Event(), asyncio.Event()

            async def answer_the_older_last(method: Any, request: Any, *rest: Any) -> Any:
                answer = await send(method, request, *rest)
                if isinstance(request, etcdrpc.TxnRequest) and b"older" in str(request).encode():
                    older_is_done.set()
                    await newer_is_done.wait()
                return answer

            monkey: Any = backend._connection
            monkey._send = answer_the_older_last
            older = asyncio.ensure_future(backend.put(key, b"older", ttl=60))
            await older_is_done.wait()
            await backend.put(key, b"newer", ttl=60)
            newer_is_done.set()
            await older
            pair = await backend.get(key)
            assert pair is not None
            assert pair.value == b"newer"
            await backend.delete_tree(key)
            assert backend._ttl_leases._of == {}

    def test_what_lapsed_is_forgotten(self) -> None:
        leases = _TtlLeases()
        for n in range(10_000):
            assert leases.replace(f"key-{n}", n + 2, n + 1, float(n) + 10, float(n)) == 0
        assert len(leases._of) < 130
        assert leases.drop_tree("key-9999", 20_000) == [10_000]


class TestEvents:
    @on_a_loop
    async def test_nested_elections_are_told_whichever_comes_first(
        self, etcd: EtcdClient, key: str
    ) -> None:
        events: list[Event] = []
        async with opened(etcd.endpoint, emit=events.append) as backend:
            for keys in ((key, f"{key}/a/b"), (f"{key}/a/b", key)):
                parts = [contender(backend, each) for each in (*keys, *keys)]
                told = [event for event in events if isinstance(event, NestedElection)]
                assert [(event.key, event.other) for event in told] == [(keys[1], keys[0])]
                events.clear()
                for part in parts:
                    await part.close()
                    await part.close()
            contender(backend, f"{key}-c")
            contender(backend, f"{key}/a")
            assert events == []

    @on_a_loop
    async def test_a_ttl_granted_otherwise_is_told_once(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(fast=False)
        events: list[Event] = []
        async with opened(server.endpoint, emit=events.append) as backend:
            parts = [contender(backend, key, ttl=1) for _ in range(3)]
            await win(parts[0])
            waiting = [asyncio.ensure_future(win(part)) for part in parts[1:]]
            await async_wait_until(lambda: len(server.ctl("lease", "list").split()) >= 6)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for part in parts:
                await part.leave()
                await part.close()
        assert [type(event) for event in events].count(TtlGranted) == 1
