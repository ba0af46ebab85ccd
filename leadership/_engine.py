"""The engine: one daemon thread with one event loop, where all input, output and timers live.

So a user who blocks their own thread or event loop does not lose the lease,
and many elections cost tasks, not threads. The faces only post to it.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from .clock import SystemClock
from .errors import ForkedHandle, HandleClosed, LeadershipError
from .events import Event, EventsDropped, Hook

T = TypeVar("T")

EXIT_SECONDS = 2.0
"""How long the interpreter's exit may be held up to resign and close."""


class Closeable(Protocol):
    async def close(self) -> None: ...


class Engine:
    """The thread, its loop, and who must be closed before the interpreter ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Not the user's loop policy: the engine must not change with it.
        self.loop = asyncio.SelectorEventLoop()
        self.told = Dispatcher()
        self.open: set[Closeable] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="leadership-engine", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)
        # A child process of multiprocessing ends without the interpreter's own end.
        processes: Any = sys.modules.get("multiprocessing.util")
        if processes is not None:
            processes.Finalize(None, self._at_exit, exitpriority=0)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Run what `begin` makes on the loop; never blocks.

        It is made there: a Ctrl-C between its making and its handing over would leave behind
        a coroutine that nobody awaits, with a warning.
        """
        self._check()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.loop.call_soon_threadsafe(self._begin, begin, future)
        return future

    def _begin(
        self,
        begin: Callable[[], Coroutine[Any, Any, T]],
        future: concurrent.futures.Future[T],
    ) -> None:
        # Also where it was given up meanwhile: what closes or withdraws has to begin, and to
        # find out by the cancellation, or something would be left behind.
        try:
            work = begin()
        except Exception as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        task = self.loop.create_task(work)
        task.add_done_callback(functools.partial(_hand_over, future))
        future.add_done_callback(functools.partial(self._cancel_too, task))

    def _cancel_too(self, task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
        if future.cancelled() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)

    def call(self, begin: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run what `begin` makes on the loop and wait for it; interruptible by Ctrl-C.

        Raises:
            TimeoutError: `timeout` seconds have passed; the work was cancelled.
        """
        if threading.current_thread() is self._thread:
            raise LeadershipError(
                "a blocking call was made on the library's own thread; "
                "call from a thread of yours, or use leadership.aio"
            )
        future: concurrent.futures.Future[T] | None = None
        try:
            future = self.submit(begin)
            return _result(future, timeout)
        except BaseException:
            # Interrupted or timed out; done already when the work itself raised.
            if future is not None:
                future.cancel()
            raise
        finally:
            if self._closing and threading.current_thread().daemon:
                # The interpreter is ending, and this thread with it. Nobody is
                # left to hear how the call went; a traceback would be noise.
                threading.Event().wait()

    def post(self, act: Callable[[], object]) -> None:
        """Have `act` called on the loop; for destructors: never blocks, never raises."""
        with contextlib.suppress(LeadershipError, RuntimeError):
            self._check()
            self.loop.call_soon_threadsafe(act)

    @property
    def closing(self) -> bool:
        """Whether the interpreter is ending: everything is closed, or will be at once."""
        return self._closing

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _check(self) -> None:
        if os.getpid() != self.pid:
            raise ForkedHandle(
                "this handle was made before a fork and cannot work in the child: "
                "make a new store here"
            )
        if self._closing:
            raise HandleClosed("the interpreter is about to end: nothing new can be started")

    def _at_exit(self) -> None:
        if os.getpid() != self.pid or not self._thread.is_alive() or self._closing:
            return
        clock = SystemClock()
        deadline = clock.now() + EXIT_SECONDS
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._close_all(), self.loop)
        self._thread.join(EXIT_SECONDS)
        self.told.drain(max(0.0, deadline - clock.now()))

    async def _close_all(self) -> None:
        closing = [asyncio.ensure_future(each.close()) for each in list(self.open)]
        try:
            if closing:
                await asyncio.wait(closing, timeout=EXIT_SECONDS * 0.8)
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            if rest:
                # A task that is only dropped complains about it.
                await asyncio.wait(rest, timeout=EXIT_SECONDS * 0.1)
        finally:
            self.loop.stop()


def _hand_over(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.cancel()
    # Whoever gave up waiting may do so while this runs.
    if not future.set_running_or_notify_cancel():
        # It was given up: nobody else takes its exception.
        _ = task.cancelled() or task.exception()
        return
    error = task.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


_SLICE = 1.0
"""Seconds after which the main thread looks up from a wait."""


def _result(future: concurrent.futures.Future[T], timeout: float | None) -> T:
    """The future's result; on the main thread no signal waits for longer than a slice.

    Python runs signal handlers between two steps of the main thread. A signal
    that comes just before the thread begins to wait for a lock does not
    interrupt that wait, and its handler would run only at the end of it.
    """
    if threading.current_thread() is not threading.main_thread():
        return future.result(timeout)
    clock = SystemClock()
    deadline = None if timeout is None else clock.now() + timeout
    while True:
        remaining = _SLICE if deadline is None else min(_SLICE, deadline - clock.now())
        try:
            return future.result(max(0.0, remaining))
        except TimeoutError:
            # Done after all, in the moment since: what counts is its own outcome.
            if future.done():
                return future.result()
            if deadline is not None and clock.now() >= deadline:
                raise


class Dispatcher:
    """Tells events to hooks, in order, on one thread of its own, so that no hook delays a lease."""

    LONGEST = 65_536

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[tuple[Hook, ...], Event]] = collections.deque()
        self._dropped = 0
        self._some = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    def tell(self, hooks: tuple[Hook, ...], event: Event) -> None:
        with self._some:
            if len(self._queue) >= self.LONGEST:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append((hooks, event))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="leadership-hooks", daemon=True
                )
                self._thread.start()
            self._some.notify_all()

    def drain(self, timeout: float) -> None:
        """Wait until all is told, at most `timeout` seconds."""
        with self._some:
            self._some.wait_for(lambda: not self._queue and not self._busy, timeout)

    def _run(self) -> None:
        while True:
            with self._some:
                self._busy = False
                self._some.notify_all()
                self._some.wait_for(lambda: self._queue)
                hooks, event = self._queue.popleft()
                dropped, self._dropped = self._dropped, 0
                self._busy = True
            if dropped:
                _tell(hooks, EventsDropped("", event.at, dropped))
            _tell(hooks, event)


def _tell(hooks: tuple[Hook, ...], event: Event) -> None:
    for hook in hooks:
        try:
            hook(event)
        except BaseException:
            # Whatever it is: the other hooks, of all stores, are on this thread too.
            import logging

            logging.getLogger("leadership").exception("the hook %r failed on %s", hook, event)


_engine: Engine | None = None
_abandoned: list[Engine] = []
# A signal handler may come here while its own thread is in the middle of it.
_making = threading.RLock()


def engine() -> Engine:
    """This process's engine, started on first use."""
    global _engine
    with _making:
        if _engine is None:
            made = Engine()
            _engine = _engine or made
        return _engine


def _after_fork_in_child() -> None:
    global _engine, _making
    _making = threading.RLock()
    if _engine is not None:
        # Kept, never collected: destructors of its sockets and channels would
        # act on what the parent still uses.
        _abandoned.append(_engine)
        _engine = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
