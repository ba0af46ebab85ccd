"""Requests that a leader answers: counted by term, so that a term can end after its last one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from typing import Self

from .aio import Term as AsyncTerm
from .candidate import CandidateBase, Term
from .term import TermBase


class _InFlight:
    """How many requests of one term are being answered."""

    def __init__(self) -> None:
        self.count = 0
        self.ended: list[concurrent.futures.Future[None]] = []


_lock = threading.Lock()
_in_flight: weakref.WeakKeyDictionary[TermBase, _InFlight] = weakref.WeakKeyDictionary()


class Serving:
    """One request that is answered here, under `term`; as a context manager until its end."""

    def __init__(self, term: TermBase) -> None:
        self.term = term
        self._over = False
        with _lock:
            _in_flight.setdefault(term, _InFlight()).count += 1

    def end(self) -> None:
        """The request is answered; idempotent."""
        with _lock:
            if self._over:
                return
            self._over = True
            known = _in_flight[self.term]
            known.count -= 1
            ended: list[concurrent.futures.Future[None]] = []
            if known.count == 0:
                ended, known.ended = known.ended, []
        for each in ended:
            if each.set_running_or_notify_cancel():
                each.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


def begin(candidate: CandidateBase[Term] | CandidateBase[AsyncTerm] | None) -> Serving | None:
    """A request to be answered here; None where `candidate` does not lead."""
    term = None if candidate is None else candidate.term
    if term is None or not term.is_valid():
        return None
    serving = Serving(term)
    # Asked again now that it counts: whoever ends the term either waits for
    # this request, or has ended it before.
    if term.is_valid():
        return serving
    serving.end()
    return None


def _all_ended(term: TermBase) -> concurrent.futures.Future[None]:
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()
    with _lock:
        known = _in_flight.get(term)
        if known is not None and known.count:
            known.ended.append(ended)
            return ended
    ended.set_result(None)
    return ended


def drain(term: Term) -> bool:
    """Wait until the requests that are answered under `term` have ended, at most until its end.

    Called by the leader's code when the term is over, it keeps the key until
    then, so that the next leader's requests come after these.

    Returns:
        False where the term's deadline came first.
    """
    try:
        _all_ended(term).result(term.remaining())
    except TimeoutError:
        return False
    return True


async def drain_async(term: AsyncTerm) -> bool:
    """As `drain`, for asyncio."""
    try:
        async with asyncio.timeout(term.remaining()):
            await asyncio.wrap_future(_all_ended(term))
    except TimeoutError:
        return False
    return True


def lead(term: Term) -> None:
    """The work of a leader that only answers requests: `candidate.run(lead)`.

    Returns when the term is over and its requests have ended, so that a
    `resign` or `stop` fails none of them.
    """
    term.wait_lost()
    drain(term)


async def lead_async(term: AsyncTerm) -> None:
    """As `lead`, for `leadership.aio`: `await candidate.run(lead_async)`."""
    try:
        await term.wait_lost()
    except asyncio.CancelledError:
        # Over by now, or we are to end: no more requests may begin.
        await term.resign()
    draining = asyncio.ensure_future(drain_async(term))
    while not draining.done():
        # The end of the term cancels us, also where we have seen it ourselves already.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({draining})
