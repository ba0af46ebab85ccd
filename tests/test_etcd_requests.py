"""etcd's requests and proofs: what may be sent twice, and what an answer that came late means."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from leadership.backends._etcd_contender import EtcdContender
from leadership.backends._etcd_session import EtcdSession
from leadership.backends._grpc import etcdrpc, grpc
from leadership.errors import AccessDenied, StoreUnavailable

from .conftest import MakeEtcd
from .etcd_elections import Late, contender, opened, win
from .loops import on_a_loop
from .servers.etcd import ROOT
from .servers.etcd_client import EtcdClient
from .waiting import async_wait_until


def refusal(details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAUTHENTICATED, nothing, nothing, details, None)


class TestTrees:
    @on_a_loop
    async def test_a_removal_of_a_tree_is_not_sent_twice(self, etcd: EtcdClient, key: str) -> None:
        """The first try, when it arrives late, would take what was written since."""
        async with opened(etcd.endpoint, etcd.endpoint) as backend:
            await backend.put(f"{key}/old", b"x")
            late = Late(backend, "delete_range")
            with pytest.raises(StoreUnavailable):
                await backend.delete_tree(key)
            assert late.held is not None
            assert len(await backend.list(key)) == 1
            await backend.delete_tree(key)
            assert await backend.list(key) == []


class TestOldTokens:
    @on_a_loop
    async def test_one_that_is_refused_as_soon_as_it_was_given_is_trouble_and_no_refusal(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(auth=True)
        async with opened(server.endpoint, user=ROOT.name, password=ROOT.password) as backend:
            await backend.put(key, b"x")
            send: Any = backend._connection._send
            answers = ["invalid auth token", "revision of auth store is old"]
            tokens: list[str] = []

            async def refuse(method: Any, request: Any, timeout: float, meta: Any) -> Any:
                if isinstance(request, etcdrpc.RangeRequest):
                    tokens.append(dict(meta)["token"])
                    if answers:
                        raise refusal(f"etcdserver: {answers.pop(0)}")
                return await send(method, request, timeout, meta)

            monkey: Any = backend._connection
            monkey._send = refuse
            with pytest.raises(StoreUnavailable, match="refuses the token that it has just given"):
                await backend.get(key)
            link = backend._connection.link()
            assert (await backend.get(key)) is not None
            assert len(set(tokens)) == 3, "each time a new one"
            assert backend._connection.link() is link, "a server that answers is not given up"

    @on_a_loop
    async def test_who_has_none_and_needs_one_is_told_so(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(auth=True)
        async with opened(server.endpoint) as backend:
            with pytest.raises(AccessDenied, match="user and password"):
                await backend.get(key)


class TestProofs:
    @pytest.mark.parametrize("seen", ["the old one", "none"])
    @on_a_loop
    async def test_an_answer_about_an_entry_that_was_replaced_meanwhile_ends_no_term(
        self, etcd: EtcdClient, key: str, seen: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            await win(part)
            session: EtcdSession = part._session
            call: Any = backend._connection.call_now
            terms: list[list[str]] = []

            async def answer_late(stub: Any, request: Any, **more: Any) -> Any:
                if not isinstance(request, etcdrpc.RangeRequest) or terms:
                    return await call(stub, request, **more)
                terms.append([])
                if seen == "none":
                    await part.leave()
                answer = await call(stub, request, **more)
                await part.leave()
                terms[0] = (await win(part))[1]
                return answer

            monkey: Any = backend._connection
            monkey.call_now = answer_late
            await session._prove(3)
            assert terms == [[]], "a new term was ended by an answer about the old one"
            assert part.name in session.entries
            await part.leave()
            await part.close()


class Unanswered:
    """A keep-alive stream whose answers do not come in time."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = False

    async def write(self, request: Any) -> None:
        self.asked += 1

    async def read(self) -> Any:
        await asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        self.cancelled = True


class TestKeepAlives:
    @on_a_loop
    async def test_an_answer_that_comes_after_its_time_is_not_taken_for_that_to_a_later_request(
        self, etcd: EtcdClient, key: str
    ) -> None:
        """Answers do not say to what: a stream that owes one is given up, though it lives."""
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            await win(part)
            session: EtcdSession = part._session
            link, stream = backend._connection.link(), Unanswered()
            # Others are answered on the same connection, so that is no reason to give it up.
            link.heard_at = float("inf")
            session._stream = (link, stream)
            with pytest.raises(StoreUnavailable, match="did not renew"):
                await session._ask(link, stream, 0.05)
            assert (stream.asked, stream.cancelled) == (1, True)
            assert (await session._open_stream(5))[1] is not stream
            await part.leave()
            await part.close()


class TestLeasesThatEnded:
    @on_a_loop
    async def test_who_waits_on_one_makes_a_new_one_and_does_not_ask_again_and_again(
        self, etcd: EtcdClient, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = 0
        look = EtcdContender._look

        async def end_it_first(self: EtcdContender) -> Any:
            nonlocal looks
            looks += 1
            if looks == 1:
                assert self._session is not None
                # As when the entry was taken off the session just before.
                self._session.entries.clear()
                self._session.lose("for the test")
            return await look(self)

        monkeypatch.setattr(EtcdContender, "_look", end_it_first)
        async with opened(etcd.endpoint) as backend:
            leader, part = contender(backend, key, ttl=3), contender(backend, key, ttl=2)
            await win(leader)
            waiting = asyncio.ensure_future(win(part))
            await async_wait_until(lambda: part.revision, what="its entry")
            await leader.leave()
            claim, lost = await waiting
            assert claim.lease.is_valid()
            assert lost == []
            # One on the old lease, and one when its entry, which is before ours, has lapsed.
            assert looks <= 3
            for each in (part, leader):
                await each.leave()
                await each.close()


class TestRounds:
    @on_a_loop
    async def test_who_enters_knows_by_the_same_request_whether_it_leads(
        self, etcd: EtcdClient, key: str
    ) -> None:
        async with opened(etcd.endpoint) as backend:
            sent: list[Any] = []
            call: Any = backend._connection.call

            async def count(stub: Any, request: Any, **more: Any) -> Any:
                if isinstance(request, etcdrpc.TxnRequest):
                    sent.append(request)
                return await call(stub, request, **more)

            monkey: Any = backend._connection
            monkey.call = count
            await backend.put(f"{key}/a-stranger", b"x")
            leader, *others = (contender(backend, key) for _ in range(3))
            sent.clear()
            await win(leader)
            assert len(sent) == 1
            waiting = []
            for number, other in enumerate(others):
                waiting.append(asyncio.ensure_future(win(other)))
                await async_wait_until(
                    # Its own entry's, and that of the one before it.
                    lambda n=number: len(backend._watches._by_id) == 1 + 2 * (n + 1),  # type: ignore[misc]
                    what="the watches",
                )
            assert len(sent) == 3
            # A hand-over is the removal, and the proof of who was woken.
            await leader.leave()
            await waiting[0]
            assert len(sent) == 5
            assert not waiting[1].done()
            await others[0].leave()
            await waiting[1]
            await others[1].leave()
            for each in (leader, *others):
                await each.close()

    @on_a_loop
    async def test_one_entered_by_an_earlier_call_is_read_again(
        self, etcd: EtcdClient, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Its watch would tell too; the read must do alone.
        monkeypatch.setattr(EtcdContender, "_own_changed", lambda self, events: None)
        async with opened(etcd.endpoint) as backend:
            part = contender(backend, key)
            done, may_answer = asyncio.Event(), asyncio.Event()
            call: Any = backend._connection.call

            async def answer_late(stub: Any, request: Any, **more: Any) -> Any:
                answer = await call(stub, request, **more)
                if isinstance(request, etcdrpc.TxnRequest) and not done.is_set():
                    done.set()
                    await may_answer.wait()
                return answer

            monkey: Any = backend._connection
            monkey.call = answer_late
            campaign = asyncio.ensure_future(win(part))
            await done.wait()
            campaign.cancel()
            await asyncio.wait([campaign])
            (entry,) = await backend.list(key)
            await backend.atomic_delete(entry.key, entry)
            may_answer.set()
            claim, _ = await win(part)
            assert claim.token > entry.index, "it led by an entry that was gone"
            await part.leave()
            await part.close()
