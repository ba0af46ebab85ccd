"""The candidate's ways in and out, for threads, on the memory backend."""

from __future__ import annotations

import contextlib
import gc
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, Capability, Follower, NewCandidate, Store, Term, new_store
from leadership.errors import (
    AlreadyRunning,
    ConfigurationError,
    HandleClosed,
    LeadershipLost,
    NotLeader,
    ValueTooLarge,
)
from leadership.events import Elected, Event, TermEnded, WorkOverran
from leadership.testing import ManualClock

from .waiting import wait_until

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def store(events: list[Event]) -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}", hooks=[events.append]) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def told(events: list[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def free(store: Store) -> bool:
    """Whether nobody's entry stands at the key."""
    return store.get(KEY) is None


class TestTheLoop:
    def test_the_first_standing_is_false_and_then_they_alternate(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=1)
        seen = []
        for elected in candidate.run_for_election():
            seen.append(elected)
            if elected:
                candidate.resign()
            if len(seen) == 7:
                break
        assert seen == [False, True, False, True, False, True, False]

    def test_nothing_happens_before_the_first_next(self, store: Store) -> None:
        first = Candidate(store, KEY, "a", ttl=1)
        first.run_for_election()
        with Candidate(store, KEY, "b", ttl=1).campaign(timeout=5) as term:
            assert term.is_valid()

    def test_the_token_rises_from_term_to_term(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=1)
        tokens = []
        for elected in candidate.run_for_election():
            if elected:
                term = candidate.term
                assert term is not None
                tokens.append(term.token)
                candidate.resign()
            if len(tokens) == 4:
                break
        assert tokens == sorted(set(tokens))

    def test_a_break_releases_the_key(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        for elected in candidate.run_for_election():
            if elected:
                break
        assert not candidate.is_leader() or wait_until(
            lambda: not candidate.is_leader(), 5, "the end of the term"
        )
        wait_until(lambda: free(store), 5, "the release")

    def test_an_exception_in_the_body_releases_the_key(self, store: Store) -> None:
        def loop() -> None:
            for elected in Candidate(store, KEY, "a", ttl=60).run_for_election():
                if elected:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as kept:
            loop()
        assert kept.tb is not None
        wait_until(lambda: free(store), 5, "the release, while the traceback is still kept")

    def test_a_collected_iterator_withdraws(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        iterator = candidate.run_for_election()
        assert [next(iterator), next(iterator)] == [False, True]
        del iterator
        gc.collect()
        wait_until(lambda: free(store), 5, "the release")

    def test_close_returns_when_the_key_is_released_and_may_be_repeated(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        with candidate.run_for_election() as iterator:
            assert [next(iterator), next(iterator)] == [False, True]
            iterator.close()
            assert free(store)
            iterator.close()
        with pytest.raises(StopIteration):
            next(iterator)

    def test_a_second_run_while_one_is_active_is_refused(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        with candidate.run_for_election() as iterator:
            next(iterator)
            with pytest.raises(AlreadyRunning, match="end that run first"):
                next(candidate.run_for_election())
            with pytest.raises(AlreadyRunning):
                candidate.campaign()

    def test_after_stop_it_may_run_again(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        for _ in range(3):
            seen = []
            for elected in candidate.run_for_election():
                seen.append(elected)
                if elected:
                    candidate.stop()
            assert seen == [False, True, False]
            assert free(store)

    def test_the_next_term_waits_until_the_body_has_ended_the_old_one(
        self, store: Store, events: list[Event]
    ) -> None:
        candidate, rival = (Candidate(store, KEY, name, ttl=5) for name in "ab")
        first = rival.campaign()
        iterator = candidate.run_for_election()
        assert next(iterator) is False
        threading.Timer(0.2, first.resign).start()
        # It waits here, and so asks for a term more than once.
        assert next(iterator) is True
        store.delete(KEY)
        wait_until(lambda: len(told(events, TermEnded)) == 2, 5, "the loss")
        with rival.campaign(timeout=5):
            assert not candidate.is_leader()
        # The key is free again, and the body has still not come back.
        wait_until(lambda: free(store), 5, "the rival's release")
        wait_until(lambda: len(told(events, Elected)) >= 3, 5, "the rival's second term is told")
        assert len(told(events, Elected)) == 3
        assert next(iterator) is False
        assert next(iterator) is True
        iterator.close()


class TestResign:
    def test_resign_of_who_does_not_lead_does_nothing_and_says_so(self, store: Store) -> None:
        assert Candidate(store, KEY, "a", ttl=1).resign() is False
        with Candidate(store, KEY, "b", ttl=60).campaign():
            waiting = Candidate(store, KEY, "a", ttl=1)
            with waiting.run_for_election() as iterator:
                next(iterator)
                assert waiting.resign() is False

    def test_resign_from_another_thread_waits_for_the_body(
        self, store: Store, pool: ThreadPoolExecutor, events: list[Event]
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        leading, go_on = threading.Event(), threading.Event()

        def loop() -> list[bool]:
            seen = []
            for elected in candidate.run_for_election():
                seen.append(elected)
                if len(seen) == 3:
                    return seen
                if elected:
                    leading.set()
                    go_on.wait(20)
            return seen

        running = pool.submit(loop)
        assert leading.wait(5)
        resigning = pool.submit(candidate.resign)
        wait_until(lambda: not candidate.is_leader(), 5, "the end of the term")
        assert not free(store), "released while the body was still at work"
        assert not resigning.done()
        go_on.set()
        assert resigning.result(5) is True
        assert running.result(5) == [False, True, False]

    def test_resign_from_inside_the_body_returns_released(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        for elected in candidate.run_for_election():
            if elected:
                assert candidate.resign() is True
                assert not candidate.is_leader()
                assert free(store)
                assert candidate.resign() is False
                break

    def test_resign_hands_over_to_who_waits(self, store: Store, pool: ThreadPoolExecutor) -> None:
        first, second = (Candidate(store, KEY, name, ttl=5) for name in "ab")
        term = first.campaign()
        waiting = pool.submit(second.campaign)
        assert first.resign()
        won = waiting.result(5)
        assert won.token > term.token
        second.stop()

    def test_a_hook_may_resign(self, pool: ThreadPoolExecutor) -> None:
        resigned = []

        def hook(event: Event) -> None:
            if isinstance(event, Elected):
                resigned.append(candidate.resign())

        with new_store(f"memory://{uuid.uuid4()}", hooks=[hook]) as store:
            candidate = Candidate(store, KEY, "a", ttl=60)
            term = candidate.campaign()
            assert term.wait_lost(5)
            wait_until(lambda: resigned == [True], 5, "the hook's return")
            candidate.stop()


class TestStop:
    def test_stop_while_waiting_ends_the_loop(self, store: Store, pool: ThreadPoolExecutor) -> None:
        with Candidate(store, KEY, "b", ttl=60).campaign():
            waiting = Candidate(store, KEY, "a", ttl=60)
            loop = pool.submit(lambda: list(waiting.run_for_election()))
            wait_until(lambda: waiting._candidacy is not None, 5, "the start")
            waiting.stop()
            waiting.stop()
            assert loop.result(5) == [False]

    def test_stop_tells_the_leader_false_before_the_loop_ends(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        seen: list[bool] = []
        loop = pool.submit(seen.extend, candidate.run_for_election())
        wait_until(lambda: seen == [False, True], 5, "the win")
        candidate.stop()
        loop.result(5)
        assert seen == [False, True, False]
        assert free(store)

    def test_stop_before_any_run_is_no_error(self, store: Store) -> None:
        Candidate(store, KEY, "a", ttl=1).stop()

    def test_ten_threads_may_stop_at_once(self, store: Store, pool: ThreadPoolExecutor) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        candidate.campaign()
        for stopping in [pool.submit(candidate.stop) for _ in range(10)]:
            stopping.result(10)
        assert free(store)

    def test_closing_the_store_withdraws_its_candidates(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        seen: list[bool] = []
        loop = pool.submit(seen.extend, candidate.run_for_election())
        wait_until(lambda: seen == [False, True], 5, "the win")
        store.close()
        loop.result(5)
        assert seen == [False, True, False]
        with pytest.raises(HandleClosed):
            Candidate(store, KEY, "a")
        with pytest.raises(HandleClosed):
            candidate.campaign()


class TestCampaign:
    def test_a_campaign_without_success_times_out_and_has_withdrawn(self, store: Store) -> None:
        term = Candidate(store, KEY, "a", ttl=60).campaign()
        second = Candidate(store, KEY, "b", ttl=60)
        with pytest.raises(TimeoutError, match="not won within"):
            second.campaign(timeout=0.05)
        with pytest.raises(TimeoutError):
            second.campaign(timeout=0)
        term.resign()
        assert free(store)

    def test_the_block_releases_also_when_it_raises(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)

        def block() -> None:
            with candidate.campaign() as term:
                assert candidate.is_leader()
                assert candidate.term is term
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            block()
        assert free(store)
        assert not candidate.is_leader()

    def test_without_a_block_it_leads_until_it_resigns(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        term = candidate.campaign()
        assert candidate.is_leader()
        assert candidate.resign() is True
        assert candidate.resign() is False
        assert free(store)
        with pytest.raises(LeadershipLost, match="we resigned"):
            term.check()
        assert candidate.campaign(timeout=5).token > term.token
        candidate.stop()

    def test_stop_from_another_thread_ends_the_wait(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        with Candidate(store, KEY, "a", ttl=60).campaign():
            second = Candidate(store, KEY, "b", ttl=60)
            waiting = pool.submit(second.campaign)
            wait_until(lambda: second._candidacy is not None, 5, "the start")
            second.stop()
            with pytest.raises(NotLeader, match="stopped"):
                waiting.result(5)

    def test_a_loss_is_told_at_once_when_the_entry_is_deleted(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        term = candidate.campaign()
        assert term.wait_lost(0) is False
        store.delete(KEY)
        assert term.wait_lost(5) is True
        assert not candidate.is_leader()
        assert "deleted" in (term.reason or "")


class TestRun:
    def test_the_work_is_joined_before_the_key_is_released(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        working, told, go_on = threading.Event(), threading.Event(), threading.Event()

        def work(term: Term) -> None:
            working.set()
            assert term.wait_lost(20)
            told.set()
            assert go_on.wait(20)

        running = pool.submit(candidate.run, work)
        assert working.wait(5)
        stopping = pool.submit(candidate.stop)
        assert told.wait(5)
        with pytest.raises(TimeoutError):
            Candidate(store, KEY, "b", ttl=60).campaign(timeout=0.2)
        assert not stopping.done()
        go_on.set()
        stopping.result(5)
        running.result(5)
        assert free(store)

    def test_stop_and_resign_from_inside_only_request(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        seen: list[tuple[bool, bool]] = []

        def work(term: Term) -> None:
            if seen:
                candidate.stop()
            else:
                assert candidate.resign() is True
            seen.append((term.is_valid(), free(store)))

        candidate.run(work)
        assert seen == [(False, False), (False, False)]
        assert free(store)

    def test_an_exception_of_the_work_withdraws_and_is_raised(self, store: Store) -> None:
        def work(term: Term) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            Candidate(store, KEY, "a", ttl=60).run(work)
        assert free(store)

    def test_the_check_that_says_lost_may_leave_the_work(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        terms: list[Term] = []

        def work(term: Term) -> None:
            terms.append(term)
            if len(terms) == 2:
                candidate.stop()
                return
            store.delete(KEY)
            term.wait_lost(5)
            term.check()

        candidate.run(work)
        assert terms[1].token > terms[0].token

    def test_work_that_overruns_is_reported_and_keeps_the_key_until_the_deadline(
        self, store: Store, events: list[Event], pool: ThreadPoolExecutor
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=1)
        working, go_on = threading.Event(), threading.Event()

        def work(term: Term) -> None:
            working.set()
            go_on.wait(30)

        running = pool.submit(candidate.run, work)
        assert working.wait(5)
        term = candidate.term
        assert term is not None
        stopping = pool.submit(candidate.stop)
        wait_until(lambda: not term.is_valid(), 5, "the end of the term")
        deadline = term.valid_until
        rival = Candidate(store, KEY, "b", ttl=60)
        with rival.campaign(timeout=10) as won:
            assert won.elected_at >= deadline, "another led before the work's deadline"
            wait_until(lambda: told(events, WorkOverran), 5, "the report")
        go_on.set()
        running.result(5)
        stopping.result(5)


class TestSafety:
    def test_no_longer_leader_before_the_release_is_sent(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        candidate.campaign()
        at_the_send: list[bool] = []
        backend = store.core.backend
        really = backend.atomic_delete

        async def spy(key: str, previous: object) -> None:
            at_the_send.append(candidate.is_leader())
            await really(key, previous)  # type: ignore[arg-type]

        monkeypatch.setattr(backend, "atomic_delete", spy)
        candidate.resign()
        assert at_the_send == [False]

    def test_the_watchdog_resigns_for_code_that_does_not_answer(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60, watchdog=0.2)
        with candidate.campaign() as term:
            assert term.wait_lost(5)
            assert "watchdog" in (term.reason or "")

    def test_checks_keep_the_watchdog_quiet(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60, watchdog=0.3)
        with candidate.campaign() as term:
            began = store.clock.now()
            while store.clock.now() < began + 1:
                term.check()
                term.wait_lost(0.05)
            assert term.is_valid()

    def test_a_loop_that_waits_for_more_is_no_silence(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60, watchdog=0.2)
        with ThreadPoolExecutor() as pool, candidate.run_for_election() as iterator:
            assert [next(iterator), next(iterator)] == [False, True]
            pool.submit(next, iterator)
            term = candidate.term
            assert term is not None
            assert term.wait_lost(1) is False
            candidate.stop()

    def test_one_of_many_threads_leads_at_a_time(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        inside: list[int] = []
        overlaps: list[int] = []
        tokens: list[int] = []

        def contend(name: str) -> None:
            for _ in range(5):
                with Candidate(store, KEY, name, ttl=30).campaign(timeout=60) as term:
                    inside.append(1)
                    overlaps.append(len(inside))
                    tokens.append(term.token)
                    inside.pop()

        for done in [pool.submit(contend, str(n)) for n in range(5)]:
            done.result(100)
        assert set(overlaps) == {1}
        assert tokens == sorted(set(tokens))

    def test_is_leader_costs_no_round_trip(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        candidate.campaign()
        with blocked_engine(store):
            assert candidate.is_leader()
        candidate.stop()

    def test_the_deadline_holds_though_no_other_thread_could_run(self) -> None:
        clock = ManualClock()
        with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
            candidate = Candidate(store, KEY, "a", ttl=10)
            term = candidate.campaign()
            lock = store.lock("lock", ttl=10)
            lock.acquire()
            # As for a process that was stopped, or a machine that slept: nobody
            # has been able to set a flag when the first question is asked.
            with blocked_engine(store):
                clock.advance(9)
                assert candidate.is_leader()
                clock.advance(1)
                assert not candidate.is_leader()
                assert not term.is_valid()
                assert not lock.is_held()
                with pytest.raises(LeadershipLost, match="not renewed in time"):
                    term.check()
            assert term.wait_lost(5)

    def test_who_was_told_false_is_never_told_true_again(self) -> None:
        clock = ManualClock()
        with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
            candidate = Candidate(store, KEY, "a", ttl=10)
            term = candidate.campaign()
            with blocked_engine(store):
                clock.advance(10)
                assert not term.is_valid()
                # A renewal confirmed before the deadline, whose thread was held up until now.
                generation, until = term._lease.state
                term._lease.state = (generation, until + 10)
                assert not term.is_valid()
                assert not candidate.is_leader()
            assert term.wait_lost(5), "the engine must hear of it too"

    def test_a_renewal_after_the_lapse_is_no_news_to_the_term_before_it(self) -> None:
        clock = ManualClock()
        with new_store(f"memory://{uuid.uuid4()}", clock=clock) as store:
            term = Candidate(store, KEY, "a", ttl=10).campaign()
            with blocked_engine(store):
                clock.advance(10)
                # As seen by a thread that asks for the first time just after the session
                # was renewed, and just before anybody was told that the term is over.
                generation, until = term._lease.state
                term._lease.state = (generation + 1, until + 10)
                assert not term.is_valid()

    def test_a_body_that_closes_the_store_is_not_waited_for(self, events: list[Event]) -> None:
        store = new_store(f"memory://{uuid.uuid4()}", hooks=[events.append])
        began = store.clock.now()
        with store:
            kept = Candidate(store, KEY, "a", ttl=60).run_for_election()
            for elected in kept:
                if elected:
                    break
        assert store.clock.now() - began < 4
        assert not told(events, WorkOverran)


@contextlib.contextmanager
def blocked_engine(store: Store) -> Iterator[None]:
    """The library's own thread stands still."""
    blocked, let_go = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        let_go.wait(20)

    store.core.post(block)
    assert blocked.wait(5)
    try:
        yield
    finally:
        let_go.set()


class TestValue:
    def test_followers_are_told_the_value_and_what_is_proclaimed(self, store: Store) -> None:
        candidate = NewCandidate(store, KEY, "a", 60, value="10.0.0.1:80")
        with Follower(store, KEY).follow_election() as leaders:
            assert next(leaders) is None
            term = candidate.campaign()
            assert next(leaders) == "10.0.0.1:80"
            candidate.proclaim("10.0.0.2:80")
            assert next(leaders) == "10.0.0.2:80"
            assert term.is_valid()
            candidate.resign()
            assert next(leaders) is None
            with pytest.raises(NotLeader):
                candidate.proclaim("late")
            candidate.campaign()
            assert next(leaders) == "10.0.0.2:80", "what was proclaimed stays"
            candidate.stop()


BAD: list[tuple[Callable[[Store], object], str]] = [
    (lambda store: Candidate(store, "", "a"), "key is empty"),
    (lambda store: Candidate(store, "/", "a"), "key is empty"),
    (lambda store: Candidate(store, "a//b", "a"), "segment"),
    (lambda store: Candidate(store, "a/../b", "a"), "segment"),
    (lambda store: Candidate(store, "a\nb", "a"), "control"),
    (lambda store: Candidate(store, 7, "a"), "a key is a str"),  # type: ignore[arg-type]
    (lambda store: Candidate(store, KEY, ""), "give the candidate a name"),
    (lambda store: Candidate(store, KEY, "a", ttl=0), "seconds above 0"),
    (lambda store: Candidate(store, KEY, "a", ttl=-1), "seconds above 0"),
    (lambda store: Candidate(store, KEY, "a", ttl=float("nan")), "seconds above 0"),
    (lambda store: Candidate(store, KEY, "a", ttl=True), "seconds above 0"),
    (lambda store: Candidate(store, KEY, "a", ttl="1"), "above 0"),  # type: ignore[arg-type]
    (lambda store: Candidate(store, KEY, "a", ttl=10, grace=6), "half the ttl"),
    (lambda store: Candidate(store, KEY, "a", ttl=10, grace=-1), "half the ttl"),
    (lambda store: Candidate(store, KEY, "a", watchdog=0), "watchdog"),
    (lambda store: Candidate(store, KEY, "a", require=["magic"]), "known"),
    (lambda store: Candidate(store, KEY, "a", retry=3), "Retry"),  # type: ignore[arg-type]
    (lambda store: Candidate("memory://x", KEY, "a"), "new_store"),  # type: ignore[arg-type]
    (lambda store: Candidate(store, KEY, "a", value=5), "bytes or str"),  # type: ignore[arg-type]
    (lambda store: new_store("memori://x"), "did you mean 'memory'"),
    (lambda store: new_store("memory"), "no store address"),
    (lambda store: new_store(""), "address"),
    (lambda store: new_store("memory://x?max_clock_drift=2"), "max_clock_drift"),
    (lambda store: new_store("memory://x?request_timeout=soon"), "request_timeout"),
    (lambda store: new_store("memory://x", request_timeout=0), "request_timeout"),
]


class TestBadInput:
    @pytest.mark.parametrize(("act", "says"), BAD, ids=[says for _, says in BAD])
    def test_it_fails_at_construction_and_says_what_to_do(
        self, store: Store, act: Callable[[Store], object], says: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=says):
            act(store)

    def test_a_value_over_the_limit_is_refused_before_it_is_sent(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(type(store.core.backend), "maximum_value_size", 10)
        with pytest.raises(ValueTooLarge, match="at most 10"):
            Candidate(store, KEY, "a", value="x" * 11)
        with pytest.raises(ValueTooLarge):
            store.put("k", b"x" * 11)

    def test_a_capability_that_is_missing_is_refused_at_start(self, store: Store) -> None:
        from leadership.errors import NotSupported

        with pytest.raises(NotSupported, match="fifo"):
            Candidate(store, KEY, "a", require={Capability.FIFO})

    def test_handles_say_why_they_cannot_be_pickled(self, store: Store) -> None:
        candidate = Candidate(store, KEY, "a", ttl=60)
        term = candidate.campaign()
        for handle in (store, candidate, term, Follower(store, KEY)):
            with pytest.raises(TypeError, match="process"):
                pickle.dumps(handle)
        candidate.stop()
