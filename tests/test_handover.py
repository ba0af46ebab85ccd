"""`resign(to=...)`: who is named leads next, and what is not possible costs nothing."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, Store, Term, aio, new_store
from leadership.backend import Address, Backend, Capability
from leadership.backends.memory import MemoryBackend
from leadership.core import Core
from leadership.errors import ConfigurationError, NoSuccessor, NotSupported
from leadership.testing import FaultyBackend

from .waiting import async_wait_until, wait_until

KEY = "service/leader"

pytestmark = pytest.mark.backend("memory")


@pytest.fixture
def store() -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}") as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


class Waiting:
    """Candidates that wait for the key, each in a thread of its own."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor, *names: str) -> None:
        self.candidates = {name: Candidate(store, KEY, name) for name in names}
        self.terms = {
            name: pool.submit(candidate.campaign, 20) for name, candidate in self.candidates.items()
        }
        for name in names:
            wait_until(lambda name=name: waits(store, name), what=f"{name} to wait")  # type: ignore[misc]

    def stop(self) -> None:
        for candidate in self.candidates.values():
            candidate.stop()


def waits(store: Store, name: str) -> bool:
    room = store.core.backend.waiting_room
    return room is not None and room.first(KEY, name) is not None


def test_a_terms_own_resign_hands_over_too(store: Store, pool: ThreadPoolExecutor) -> None:
    term = Candidate(store, KEY, "a").campaign(timeout=10)
    others = Waiting(store, pool, "b", "c", "d")
    assert term.resign(to="d") is True
    assert others.terms["d"].result(10).token > term.token
    assert term.resign(to="c") is False
    others.stop()


def test_it_works_the_same_on_an_event_loop(store: Store) -> None:
    async def main() -> None:
        async with aio.new_store(f"memory://{store.core.backend.name}") as opened:  # type: ignore[attr-defined]
            leader, *others = (aio.Candidate(opened, KEY, name) for name in "abc")
            term = await leader.campaign(timeout=10)
            campaigns = [asyncio.ensure_future(other._campaign(20)) for other in others]
            await async_wait_until(lambda: waits(store, "b") and waits(store, "c"))
            with pytest.raises(NoSuccessor):
                await leader.resign(to="z")
            assert term.is_valid()
            assert await leader.resign(to="c") is True
            assert (await campaigns[1]).token > term.token
            assert not campaigns[0].done()
            assert await (await campaigns[1]).resign(to="b") is True
            await campaigns[0]

    asyncio.run(main())


def test_a_function_is_joined_before_the_named_one_leads(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    leader = Candidate(store, KEY, "a")
    asked, may_end = threading.Event(), threading.Event()

    def work(term: Term) -> None:
        assert leader.resign(to="c") is True
        assert not term.is_valid()
        asked.set()
        assert may_end.wait(10)
        leader.stop()

    others_wait = threading.Event()

    def first_wait(term: Term) -> None:
        assert others_wait.wait(10)
        work(term)

    running = pool.submit(leader.run, first_wait)
    wait_until(leader.is_leader, what="a to lead")
    others = Waiting(store, pool, "b", "c")
    others_wait.set()
    assert asked.wait(10)
    assert not others.terms["c"].done()
    may_end.set()
    assert others.terms["c"].result(10).is_valid()
    assert not others.terms["b"].done()
    others.stop()
    running.result(10)


def test_of_two_with_the_name_the_one_that_came_first_leads(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    leader = Candidate(store, KEY, "a")
    leader.campaign(timeout=10)
    first = Waiting(store, pool, "b", "c")
    second = Waiting(store, pool, "c")
    leader.resign(to="c")
    assert first.terms["c"].result(10).is_valid()
    assert not second.terms["c"].done()
    second.stop()
    first.stop()


def test_a_named_one_that_is_gone_is_no_obstacle(store: Store, pool: ThreadPoolExecutor) -> None:
    leader = Candidate(store, KEY, "a")
    gone = threading.Event()

    def work(term: Term) -> None:
        assert gone.wait(10)
        leader.stop()

    running = pool.submit(leader.run, work)
    wait_until(leader.is_leader, what="a to lead")
    others = Waiting(store, pool, "b", "c")
    resigned = pool.submit(leader.resign, to="c")
    wait_until(lambda: not leader.is_leader(), what="the end of the term")
    # Between the end of the term and the release the named one withdraws.
    others.candidates["c"].stop()
    gone.set()
    assert resigned.result(10) is True
    assert others.terms["b"].result(10).is_valid()
    others.stop()
    running.result(10)


def test_a_lost_reply_hands_over_once(store: Store, pool: ThreadPoolExecutor) -> None:
    faults = FaultyBackend.under(store)
    leader = Candidate(store, KEY, "a")
    term = leader.campaign(timeout=10)
    others = Waiting(store, pool, "b", "c")
    faults.lose_reply("atomic_put")
    leader.resign(to="c")
    won = others.terms["c"].result(10)
    assert won.token > term.token
    assert won.is_valid()
    assert not others.terms["b"].done()
    others.stop()


def test_no_later_term_is_handed_over_to_who_was_named_before(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    leader = Candidate(store, KEY, "a")
    leader.campaign(timeout=10)
    others = Waiting(store, pool, "b", "c")
    leader.resign(to="c")
    others.terms["c"].result(10)
    again = Waiting(store, pool, "a")
    others.candidates["c"].resign(to="b")
    others.terms["b"].result(10)
    assert not again.terms["a"].done()
    again.stop()
    others.stop()


class Unable(MemoryBackend):
    """As memory, but for the capability."""

    capabilities = MemoryBackend.capabilities - {Capability.HANDOVER}


def test_where_the_backend_cannot_the_leader_leads_on() -> None:
    with Store(Core(Address("unable", ("x",)), Unable)) as store:
        candidate = Candidate(store, KEY, "a")
        with candidate.campaign(timeout=10) as term:
            for resign in (candidate.resign, term.resign):
                with pytest.raises(NotSupported, match="handover"):
                    resign(to="b")
            assert term.is_valid()


def test_a_contender_without_it_says_so() -> None:
    class WithoutRoom(MemoryBackend):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            self.waiting_room = None

    def make(*arguments: object) -> Backend:
        return WithoutRoom(*arguments)

    with Store(Core(Address("without", ("x",)), make)) as store:
        with Candidate(store, KEY, "a").campaign(timeout=10) as term:
            with pytest.raises(NotSupported, match="resign to anybody"):
                term.resign(to="b")
            assert term.is_valid()


@pytest.mark.parametrize("name", ["", " ", 7])
def test_what_can_be_no_id_is_refused(store: Store, name: str) -> None:
    with Candidate(store, KEY, "a").campaign(timeout=10) as term:
        with pytest.raises(ConfigurationError, match="id="):
            term.resign(to=name)
        assert term.is_valid()


def test_who_does_not_lead_hands_nothing_over(store: Store) -> None:
    candidate = Candidate(store, KEY, "a")
    assert candidate.resign(to="b") is False
