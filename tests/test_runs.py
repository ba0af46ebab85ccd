"""A candidate's runs follow each other: one at a time, each found again after an interrupt."""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from leadership import Candidate, Store, Term, aio, events, new_store
from leadership.contention import CompareAndSwapContender
from leadership.election import Phase
from leadership.errors import LeadershipLost
from leadership.lease import Claim, Lease
from leadership.lease import claim as claim_on
from leadership.testing import FaultyBackend

from .programs import python
from .waiting import wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"


@pytest.fixture
def store() -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}", request_timeout=0.5) as opened:
        yield opened


class InterruptedAfter:
    """A lock whose release is followed by Ctrl-C: Python looks for signals where a call ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupted = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
        if not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt


WAYS_IN: dict[str, Callable[[Candidate], object]] = {
    "loop": lambda candidate: next(candidate.run_for_election()),
    "campaign": lambda candidate: candidate.campaign(timeout=10),
    "run": lambda candidate: candidate.run(lambda term: candidate.stop()),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_who_was_interrupted_on_the_way_in_may_go_in_again(store: Store, way: str) -> None:
    candidate = Candidate(store, KEY, "a", ttl=60)
    store.core.starting = InterruptedAfter()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        WAYS_IN[way](candidate)
    candidate.campaign(timeout=10)
    candidate.stop()


def test_a_run_that_never_began_does_not_hide_the_one_before() -> None:
    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}", request_timeout=0.2) as store:
            faults = FaultyBackend.under(store)
            candidate = aio.Candidate(store, KEY, "a", ttl=5)
            await candidate.campaign(timeout=10)
            first = candidate._candidacy
            assert first is not None
            with faults.cut_off():
                await candidate.stop()
                assert not first.withdrawn, "it could not release, and tries on"
                elections = candidate.run_for_election()
                elections.__anext__().close()
                del elections
                gc.collect()

                async def campaign() -> None:
                    await candidate.campaign()

                running = asyncio.ensure_future(campaign())
                phases = set()
                for _ in range(30):
                    await asyncio.sleep(0.01)
                    third = candidate._candidacy
                    assert third is not None
                    phases.add(third.phase)
                assert not first.withdrawn
                assert Phase.CONTENDING not in phases
                running.cancel()
                await asyncio.wait([running])

    asyncio.run(scenario())


def test_what_an_earlier_attempt_lost_is_not_lost_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = CompareAndSwapContender.campaign
    attempts = 0

    async def campaign_late_once(
        contender: CompareAndSwapContender, lost: Callable[[str], None]
    ) -> Claim:
        nonlocal attempts
        attempts += 1
        claim = await campaign(contender, lost)
        if attempts > 1:
            return claim
        lost("it lapsed before anybody was told")
        return claim_on(claim.token, Lease(contender._clock, 0.0))

    monkeypatch.setattr(CompareAndSwapContender, "campaign", campaign_late_once)
    assert Candidate(store, KEY, "a", ttl=60).campaign(timeout=10).is_valid()
    assert attempts == 2


def test_who_was_told_that_its_term_is_over_may_campaign_again(store: Store) -> None:
    faults = FaultyBackend.under(store)
    candidate = Candidate(store, KEY, "a", ttl=0.3)
    for _ in range(5):
        term = candidate.campaign(timeout=10)
        with faults.cut_off():
            while term.is_valid():
                pass
    candidate.stop()


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_the_loss_of_something_else_is_an_error_of_the_work(store: Store, face: str) -> None:
    lock = store.lock("other", ttl=60)
    lock.acquire(timeout=10)
    lock.release()

    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as own:

            async def work(term: aio.Term) -> None:
                lock.check()

            await aio.Candidate(own, KEY, "a", ttl=60).run(work)

    def run() -> None:
        if face == "aio":
            asyncio.run(scenario())
        else:
            Candidate(store, KEY, "a", ttl=60).run(lambda term: lock.check())

    with pytest.raises(LeadershipLost, match="'other'"):
        run()


def test_a_term_that_is_over_is_let_go_of_by_its_watchdog(store: Store) -> None:
    def terms() -> int:
        gc.collect()
        return sum(isinstance(each, Term) for each in gc.get_objects())

    def cycle() -> None:
        with Candidate(store, KEY, "a", ttl=60, watchdog=3600).campaign(timeout=10):
            pass

    for _ in range(3):
        cycle()
    third = terms()
    for _ in range(30):
        cycle()
    wait_until(lambda: terms() <= third, 10, "the terms' end")


def test_a_cancelled_proclaim_has_no_effect_that_stays() -> None:
    async def scenario() -> None:
        async with aio.new_store(f"memory://{uuid.uuid4()}") as store:
            faults = FaultyBackend.under(store)
            candidate = aio.Candidate(store, KEY, "a", ttl=1, value="old")
            async with candidate.campaign(timeout=10) as term:
                with faults.cut_off(), pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await candidate.proclaim("new")
                before = term.valid_until
                while term.valid_until == before:
                    assert not await term.wait_lost(0.05)
                assert await aio.Follower(store, KEY).leader() == "old"

    asyncio.run(scenario())


def test_a_campaign_tells_that_the_store_has_recovered() -> None:
    told: list[events.Event] = []
    with new_store(f"memory://{uuid.uuid4()}", hooks=[told.append]) as store:
        faults = FaultyBackend.under(store)

        def trouble() -> list[events.Event]:
            kinds = (events.StoreTrouble, events.StoreRecovered)
            return [event for event in told if isinstance(event, kinds) and event.key == KEY]

        with Candidate(store, KEY, "a", ttl=60).run_for_election() as elections:
            with faults.cut_off():
                assert next(elections) is False
                wait_until(trouble, 10, "the outage")
            assert next(elections) is True
            wait_until(lambda: isinstance(trouble()[-1], events.StoreRecovered), 10, "its end")
        recovered = [event for event in told if isinstance(event, events.StoreRecovered)]
        assert [event.attempts >= 1 for event in recovered] == [True]


def test_a_hook_that_leaves_by_system_exit_silences_nobody(store: Store) -> None:
    told: list[events.Event] = []

    def leaves(event: events.Event) -> None:
        raise SystemExit(1)

    with new_store(f"memory://{uuid.uuid4()}", hooks=[leaves, told.append]) as own:
        with Candidate(own, KEY, "a", ttl=60).campaign(timeout=10):
            pass
        kinds = (events.Withdrawn,)
        wait_until(lambda: any(isinstance(event, kinds) for event in told), 10, "the last event")


def test_ending_everything_once_more_at_the_interpreters_end_is_no_error() -> None:
    python(
        """
    import atexit
    from leadership import Candidate, Follower, new_store
    store = new_store("memory://x")
    candidate = Candidate(store, "k", "a")
    follower = Follower(store, "k")
    for end in (store.close, candidate.stop, candidate.resign, follower.stop):
        atexit.register(end)
    candidate.campaign()
    next(follower.follow_election())
    """
    )
