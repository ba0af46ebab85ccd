"""Ctrl-C, forks, and interpreters that end: each in a process of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from leadership._engine import Dispatcher, Engine
from leadership.events import Event, EventsDropped

from .programs import python

pytestmark = pytest.mark.backend("memory")


PREPARE = """
    import os, sys, threading
    from leadership import *
    from leadership.errors import *
    from leadership.events import *
    seen = []
    store = new_store("memory://x", hooks=[lambda event: seen.append(type(event).__name__)])
    candidate = Candidate(store, "key", "a", ttl=60)
"""


def test_ctrl_c_interrupts_each_blocking_call_and_withdraws() -> None:
    printed = python(
        PREPARE
        + """
    rival = Candidate(store, "key", "b", ttl=60)
    term = rival.campaign()
    import signal
    main = threading.main_thread().ident
    calls = {
        "loop": lambda: list(candidate.run_for_election()),
        "campaign": candidate.campaign,
        "run": lambda: candidate.run(print),
        "wait_lost": term.wait_lost,
        "follow": lambda: list(Follower(store, "key").follow_election()),
        "nobody": Follower(store, "nobody").wait_for_leader,
        "acquire": store.lock("key").acquire,
        "watch": lambda: list(store.watch("key")),
    }
    for name, call in calls.items():
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        try:
            call()
        except KeyboardInterrupt:
            print("interrupted", name)
    rival.stop()
    with candidate.campaign(timeout=5):
        print("won")
    """
    )
    assert printed.count("interrupted") == 8
    assert printed.endswith("won\n")


def test_a_signal_that_comes_before_the_wait_begins_is_not_missed() -> None:
    printed = python(
        PREPARE
        + """
    import signal
    from leadership import _engine
    really = _engine.Engine.submit
    def submit(self, work):
        # Blocked, it is delivered when nobody is there any more to interrupt the wait:
        # another thread takes it, and only the flag for the main thread is set.
        future = really(self, work)
        if armed:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            os.kill(os.getpid(), signal.SIGINT)
        return future
    armed = []
    _engine.Engine.submit = submit
    term = candidate.campaign()
    armed.append(True)
    try:
        term.wait_lost(20)
    except KeyboardInterrupt:
        print("interrupted")
    armed.clear()
    """,
        seconds=10,
    )
    assert printed == "interrupted\n"


def test_a_real_sigint_in_the_loop_withdraws() -> None:
    printed = python(
        PREPARE
        + """
    try:
        for elected in candidate.run_for_election():
            print("leading" if elected else "waiting", flush=True)
    except KeyboardInterrupt:
        pass
    with Candidate(store, "key", "b", ttl=60).campaign(timeout=5):
        print("another leads")
    """,
        interrupt_at="leading",
    )
    assert printed.endswith("another leads\n")


def test_the_end_of_the_interpreter_resigns_and_does_not_hang() -> None:
    printed = python(
        """
    import atexit
    names = []
    # Registered first, so run last: the library has closed by then.
    atexit.register(lambda: print(*names))
    """
        + PREPARE
        + """
    store2 = new_store("memory://x", hooks=[lambda event: names.append(type(event).__name__)])
    Candidate(store2, "key", "b", ttl=60).campaign()
    """,
        seconds=10,
    )
    assert printed.split()[-2:] == ["Released", "Withdrawn"]


def test_threads_that_still_wait_do_not_hold_up_the_end() -> None:
    python(
        PREPARE
        + """
    term = candidate.campaign()
    other = Candidate(store, "key", "b", ttl=60)
    for call in (other.campaign, term.wait_lost, Follower(store, "x").wait_for_leader):
        threading.Thread(target=call, daemon=True).start()
    """,
        seconds=10,
    )


def test_work_that_never_ends_holds_up_the_end_for_two_seconds_at_most() -> None:
    python(
        PREPARE
        + """
    def work(term):
        print("working", flush=True)
        threading.Event().wait()
    threading.Thread(target=candidate.run, args=[work], daemon=True).start()
    while not candidate.is_leader():
        pass
    """,
        seconds=10,
    )


def test_a_forked_child_does_not_lead_and_says_what_to_do() -> None:
    printed = python(
        PREPARE
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
    lock = store.lock("lock", ttl=60)
    lock.acquire()
    iterator = Candidate(store, "other", "c", ttl=60).run_for_election()
    next(iterator), next(iterator)
    with candidate.campaign() as term:
        child = os.fork()
        if child == 0:
            assert not candidate.is_leader()
            assert not term.is_valid()
            assert not lock.is_held()
            for call in (
                term.check, lock.check, candidate.campaign, lambda: store.get("k"),
                lambda: next(iterator), Follower(new_store("memory://y"), "k").leader,
            ):
                try:
                    call()
                except LeadershipLost as error:
                    assert "child" in str(error), error
                except ForkedHandle as error:
                    assert "make a new store here" in str(error), error
            # What only closes does nothing, and hurts nothing.
            candidate.stop(); lock.release(); store.close(); iterator.close()
            assert candidate.resign() is False
            with new_store("memory://x") as fresh:
                with Candidate(fresh, "new", "child", ttl=60).campaign(timeout=5) as mine:
                    assert mine.is_valid()
            print("child is well", flush=True)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert candidate.is_leader() and lock.is_held()
        store.put("k", b"v")
        print("parent leads on")
    """
    )
    assert printed == "child is well\nparent leads on\n"


def test_a_slow_or_broken_hook_delays_nothing_and_the_loss_is_told() -> None:
    heard: list[Event] = []
    let_go = threading.Event()

    def broken(event: Event) -> None:
        if event.key == "0":
            raise ZeroDivisionError

    def slow(event: Event) -> None:
        let_go.wait(20)
        heard.append(event)

    dispatcher = Dispatcher()
    many = Dispatcher.LONGEST + 10
    for number in range(many):
        dispatcher.tell((broken, slow), Event(str(number), 0.0))
    let_go.set()
    dispatcher.drain(60)
    assert heard[-1] == Event(str(many - 1), 0.0)
    assert any(isinstance(event, EventsDropped) for event in heard)


def test_a_blocking_call_on_the_engines_own_thread_is_refused() -> None:
    engine = Engine()

    async def nothing() -> None: ...

    async def wrong() -> str:
        try:
            engine.call(nothing)
        except Exception as error:
            return str(error)
        return "not refused"

    assert "leadership.aio" in engine.call(wrong)


def test_an_interrupt_cannot_come_between_the_making_of_a_coroutine_and_its_handing_over() -> None:
    engine = Engine()
    made_by: list[threading.Thread] = []

    def begin() -> Coroutine[Any, Any, None]:
        made_by.append(threading.current_thread())
        return asyncio.sleep(0)

    engine.call(begin)
    assert made_by != [threading.current_thread()]


def test_what_is_given_up_begins_all_the_same_and_is_cancelled_then() -> None:
    engine = Engine()
    let_go, begun, ended = threading.Event(), threading.Event(), threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    engine.post(lambda: let_go.wait(10))
    given_up = engine.submit(long)
    assert given_up.cancel()
    let_go.set()
    assert begun.wait(10)
    assert ended.wait(10)
    begun.clear()
    ended.clear()
    going = engine.submit(long)
    assert begun.wait(10)
    assert going.cancel()
    assert ended.wait(10)


def test_what_a_call_raises_is_raised_to_the_caller() -> None:
    engine = Engine()

    def no_work() -> Coroutine[Any, Any, None]:
        raise TypeError("not to be made")

    async def breaks() -> None:
        raise ValueError("broke")

    with pytest.raises(TypeError, match="not to be made"):
        engine.call(no_work)
    with pytest.raises(ValueError, match="broke"):
        engine.call(breaks)
