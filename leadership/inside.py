"""Who is calling: the leader's own code, something it has started, or somebody else?

`resign` from somebody else waits for the leader's code; from that code itself
it must not wait, for it would wait for its caller. And only that code itself
may say that it is done with leading: what it has started (child tasks,
`asyncio.to_thread`), to which a context variable carries the answer, may only
request, because the code that started it may still be working.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .election import Candidacy

# What `signal.getsignal` asks. That makes enum members of what it is told, or tries to: a
# quarter of a millisecond for all signals, and each hand-over would wait for it.
_handler_of: Callable[[int], Any] = importlib.import_module("_signal").getsignal
_SIGNALS = tuple(map(int, signal.valid_signals()))

# One entry for each loop, function and block that the present code is inside of.
_candidacies: ContextVar[tuple[weakref.ref[Candidacy], ...]] = ContextVar(
    "leadership_inside", default=()
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as seen from one candidacy.

    Attributes:
        owner: the task, or the thread where there is no task. Weak: a task that
            was cancelled keeps its traceback, and with it the iterator, which
            must be collected all the same.
        thread: what it ends with at the latest.
        within: whether it is the leader's code, or was started by it.
        interrupting: whether it is a signal's handler, under which the code of
            its thread stands still, to go on afterwards.
    """

    owner: weakref.ref[object]
    thread: threading.Thread
    within: bool
    interrupting: bool = False


def caller(candidacy: Candidacy) -> Caller:
    """The present task or thread, as `candidacy` has to see it."""
    thread = threading.current_thread()
    within = any(known() is candidacy for known in _candidacies.get())
    interrupting = thread is threading.main_thread() and _in_signal_handler()
    return Caller(owner(), thread, within, interrupting)


def owner() -> weakref.ref[object]:
    """The present task, or the thread where there is none."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return weakref.ref(threading.current_thread() if task is None else task)


def _in_signal_handler() -> bool:
    """Whether a handler that was set by `signal.signal` is being run.

    Python keeps no record of it. But a handler is a function, and while it
    runs it is on the stack.
    """
    codes = set()
    for number in _SIGNALS:
        handler = _handler_of(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        if not callable(handler):
            # Ignored, or left to the system.
            continue
        if not inspect.isroutine(handler):
            handler = type(handler).__call__
        codes.add(getattr(handler, "__code__", None))
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def enter(candidacy: Candidacy, *, block: bool = False) -> None:
    """From here on the present thread or task is the code that leads by `candidacy`.

    Args:
        block: until `leave`, rather than for as long as the candidacy lives.
    """
    living = tuple(
        known
        for known in _candidacies.get()
        if (seen := known()) is not None and not seen.withdrawn
    )
    entered = weakref.ref(candidacy)
    if block or entered not in living:
        living = (*living, entered)
    _candidacies.set(living)


def leave(candidacy: Candidacy) -> None:
    """The present code has left a block; it may be inside of the code that has started it."""
    known = list(_candidacies.get())
    left = weakref.ref(candidacy)
    if left in known:
        known.remove(left)
    _candidacies.set(tuple(known))
