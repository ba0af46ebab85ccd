"""The kit: the group for the backend itself, without the library's faces before it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from .backend import Address, Backend, Capability, Contender, Context, Entry
from .conformance_store import Conformance
from .errors import ConfigurationError, HandleClosed, NotLeader, StoreUnavailable
from .store import Store

T = TypeVar("T")

Scenario = Callable[[Backend], Awaitable[None]]

TTL = 30.0
"""Seconds; long enough that nothing lapses by itself here."""


class RawConformance(Conformance):
    """What the library expects of a `Backend` and its `Contender`, on an event loop of their own.

    After each test no task may be left, and no exception that nobody took.
    """

    def make_backend(self, context: Context) -> Backend:
        """The backend behind `make_store`, by itself; no I/O yet."""
        with self.make_store() as store:
            inner = store.core.backend
        return type(inner)(inner.address, context)

    def on_a_loop(self, scenario: Scenario) -> None:
        """Run `scenario` with a backend of its own, close it, and see that nothing is left."""
        complaints: list[dict[str, Any]] = []
        backend = self.make_backend(Context())

        async def watched() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(2 * self.patience):
                try:
                    await scenario(backend)
                finally:
                    await backend.close()
                left = asyncio.all_tasks() - {asyncio.current_task()}
                if left:
                    # What was cancelled needs a moment to end; the time-out is the judge.
                    await asyncio.wait(left)
            gc.collect()

        asyncio.run(watched())
        assert complaints == []

    # --- the backend ---

    def test_it_is_made_without_a_loop_and_closed_without_use(self, store: Store) -> None:
        async def scenario(backend: Backend) -> None:
            await backend.close()

        self.on_a_loop(scenario)

    def test_an_option_that_it_does_not_know_is_refused_by_name(self, store: Store) -> None:
        backend = self.make_backend(Context())
        wrong = {**backend.address.options, "no_such_option": "1"}
        with pytest.raises(ConfigurationError, match="no_such_option"):
            type(backend)(dataclasses.replace(backend.address, options=wrong), Context())

    def test_it_says_what_it_offers(self, store: Store) -> None:
        backend = self.make_backend(Context())
        assert backend.capabilities
        assert all(isinstance(each, Capability) for each in backend.capabilities)
        assert backend.minimum_ttl >= 0
        assert backend.maximum_value_size > 0
        assert isinstance(backend.address, Address)

    def test_it_connects(self, store: Store) -> None:
        async def scenario(backend: Backend) -> None:
            await backend.connect()

        self.on_a_loop(scenario)

    def test_after_its_close_every_call_fails_and_watches_have_ended(
        self, store: Store, directory: str
    ) -> None:
        missing = {Capability.KV, Capability.WATCH} - store.capabilities
        if missing:
            pytest.skip(f"the backend does not offer {', '.join(sorted(missing))}")

        async def scenario(backend: Backend) -> None:
            states = backend.watch(f"{directory}/key")
            assert await anext(states) is None
            waiting = asyncio.ensure_future(_next(states))
            await asyncio.sleep(0)
            await backend.close()
            await backend.close()
            with pytest.raises((StoreUnavailable, HandleClosed)):
                await waiting
            with pytest.raises((StoreUnavailable, HandleClosed)):
                await backend.get(f"{directory}/key")

        self.on_a_loop(scenario)

    def test_closing_a_watch_ends_it_also_while_it_waits(
        self, store: Store, directory: str
    ) -> None:
        missing = {Capability.KV, Capability.WATCH} - store.capabilities
        if missing:
            pytest.skip(f"the backend does not offer {', '.join(sorted(missing))}")

        async def scenario(backend: Backend) -> None:
            for _ in range(3):
                states = backend.watch_tree(directory)
                assert await anext(states) == []
                waiting = asyncio.ensure_future(_next(states))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                await states.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(states)

        self.on_a_loop(scenario)


class ContenderConformance(RawConformance):
    needs = frozenset({Capability.ELECTION})

    def test_the_claim_is_fresh_and_its_token_and_value_are_told(
        self, store: Store, directory: str
    ) -> None:
        async def scenario(backend: Backend) -> None:
            now = backend.context.clock.now
            async with contextlib.aclosing(backend.observe(f"{directory}/key")) as entries:
                assert await anext(entries) is None
                async with contending(backend, f"{directory}/key", b"value") as contender:
                    lost: list[str] = []
                    claim = await contender.campaign(lost.append)
                    assert now() < claim.valid_until < now() + TTL
                    assert await anext(entries) == Entry(b"value", claim.token)
                    await contender.proclaim(b"new")
                    assert await anext(entries) == Entry(b"new", claim.token)
                    assert lost == []
                assert await anext(entries) is None

        self.on_a_loop(scenario)

    def test_one_that_never_campaigned_leaves_and_closes_without_a_trace(
        self, store: Store, directory: str
    ) -> None:
        async def scenario(backend: Backend) -> None:
            contender = backend.contender(f"{directory}/key", b"", TTL, own_session=False)
            with pytest.raises(NotLeader):
                await contender.proclaim(b"early")
            await contender.leave()
            await contender.close()

        self.on_a_loop(scenario)
        self.nothing_is_left(store, directory)

    def test_leaving_is_idempotent_and_one_may_campaign_again_for_a_greater_token(
        self, store: Store, directory: str
    ) -> None:
        async def scenario(backend: Backend) -> None:
            tokens = []
            async with contending(backend, f"{directory}/key") as contender:
                for _ in range(3):
                    tokens.append((await contender.campaign(_ignored)).token)
                    await contender.leave()
                    await contender.leave()
                    with pytest.raises(NotLeader):
                        await contender.proclaim(b"late")
            assert tokens == sorted(set(tokens))

        self.on_a_loop(scenario)
        self.nothing_is_left(store, directory)

    @pytest.mark.parametrize("own_session", [False, True], ids=["shared", "own"])
    def test_two_of_one_backend_contend_and_the_ones_leaving_does_not_end_the_others_lease(
        self, store: Store, directory: str, own_session: bool
    ) -> None:
        async def scenario(backend: Backend) -> None:
            async with contending(backend, f"{directory}/key", b"1", own_session) as first:
                lost: list[str] = []
                leading = await first.campaign(lost.append)
                async with contending(backend, f"{directory}/key", b"2", own_session) as second:
                    waiting = asyncio.ensure_future(second.campaign(_ignored))
                    await told(backend, f"{directory}/key", Entry(b"1", leading.token))
                    waiting.cancel()
                    await asyncio.wait([waiting])
                assert leading.lease.is_valid()
                async with contending(backend, f"{directory}/key", b"2", own_session) as third:
                    waiting = asyncio.ensure_future(third.campaign(_ignored))
                    await told(backend, f"{directory}/key", Entry(b"1", leading.token))
                    assert not waiting.done()
                    assert lost == []
                    await first.leave()
                    following = await waiting
                    assert following.token > leading.token
                    await first.close()
                    await told(backend, f"{directory}/key", Entry(b"2", following.token))
                    assert following.lease.is_valid()

        self.on_a_loop(scenario)
        self.nothing_is_left(store, directory)

    def test_an_entry_that_is_deleted_is_told_once(self, store: Store, directory: str) -> None:
        if Capability.KV not in store.capabilities:
            pytest.skip("the backend does not offer kv")

        async def scenario(backend: Backend) -> None:
            lost: list[str] = []
            told_so = asyncio.Event()

            def tell(reason: str) -> None:
                lost.append(reason)
                told_so.set()

            async with contending(backend, f"{directory}/key") as contender:
                await contender.campaign(tell)
                await backend.delete_tree(f"{directory}/key")
                await told_so.wait()
                with pytest.raises(NotLeader):
                    await contender.proclaim(b"late")
            assert len(lost) == 1
            assert lost[0]

        self.on_a_loop(scenario)

    def test_a_campaign_cancelled_at_any_moment_leaves_nothing_that_leave_does_not_remove(
        self, store: Store, directory: str
    ) -> None:
        async def scenario(backend: Backend) -> None:
            async with contending(backend, f"{directory}/key") as contender:
                for moment in range(20):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(contender.campaign(_ignored), moment / 2000)
                    await contender.leave()

        self.on_a_loop(scenario)
        self.nothing_is_left(store, directory)

    def nothing_is_left(self, store: Store, directory: str) -> None:
        if Capability.KV in store.capabilities:
            assert [pair.key for pair in store.list(directory)] == []


@contextlib.asynccontextmanager
async def contending(
    backend: Backend, key: str, value: bytes = b"value", own_session: bool = False
) -> AsyncGenerator[Contender, None]:
    """A contender that has left and is closed at the end of the block."""
    contender = backend.contender(key, value, TTL, own_session)
    try:
        yield contender
        await contender.leave()
    finally:
        await contender.close()


async def told(backend: Backend, key: str, wanted: Entry) -> None:
    """Wait until it is the wanted one who leads."""
    async with contextlib.aclosing(backend.observe(key)) as entries:
        async for entry in entries:
            if entry == wanted:
                return


async def _next(states: AsyncGenerator[T, None]) -> T:
    return await anext(states)


def _ignored(reason: str) -> None:
    pass
