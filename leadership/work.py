"""The leader's code, between being given a term and coming back: who runs it, and has it ended?

The key is released only when all of it has ended, or at the deadline.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from enum import Enum, auto

from .inside import Caller
from .small_event import SmallEvent


class Kind(Enum):
    """What ends a piece of work."""

    LOOP = auto()
    """The body of a loop: its coming back for more, and its own resign or stop."""
    BLOCK = auto()
    """A `with` block: its end, and its own resign or stop."""
    FUNCTION = auto()
    """A function under `run`: only its return."""


@dataclass(eq=False, frozen=True, slots=True)
class Work:
    """One piece of it.

    Attributes:
        owner: the task or thread that runs it, see `Caller`.
        thread: it ends with that at the latest.
    """

    kind: Kind
    owner: weakref.ref[object]
    thread: threading.Thread

    @classmethod
    def of(cls, kind: Kind, caller: Caller) -> Work:
        return cls(kind, caller.owner, caller.thread)


class Works:
    """What works as leader now, by one candidacy; changed on the engine's loop only."""

    def __init__(self) -> None:
        # Replaced as a whole, so that any thread may read it.
        self._running: tuple[Work, ...] = ()
        # Whose blocks were over, by their own resign or stop, before they were left.
        self._left_early: list[weakref.ref[object]] = []
        self._ended = SmallEvent()

    def __bool__(self) -> bool:
        return bool(self._running)

    def __contains__(self, work: Work) -> bool:
        return work in self._running

    @property
    def alive(self) -> tuple[Work, ...]:
        """What may still be running; any thread may ask.

        At the interpreter's end a thread's code is over with it, though it
        never came back. Before that a block is left only by its end: another
        thread than the one that entered it may be at work in it.
        """
        ending = not threading.main_thread().is_alive()
        return tuple(
            work
            for work in self._running
            if work.thread.is_alive() or (work.kind is Kind.BLOCK and not ending)
        )

    def begin(self, work: Work) -> None:
        self._running = (*self._running, work)
        self._ended.clear()

    def end(self, *ended: Work) -> None:
        self._running = tuple(work for work in self._running if work not in ended)
        if not self._running:
            self._ended.set()

    def end_kind(self, *kinds: Kind) -> tuple[Work, ...]:
        """End all of these kinds, and say which these were."""
        if not self._running:
            # Each of thousands asks this when it enters.
            return ()
        ended = tuple(work for work in self._running if work.kind in kinds)
        self.end(*ended)
        return ended

    def end_block(self, caller: Caller) -> bool:
        """The caller leaves its innermost block; False: it has none."""
        if caller.owner in self._left_early:
            self._left_early.remove(caller.owner)
            return True
        blocks = [work for work in self._running if work.kind is Kind.BLOCK]
        own = [work for work in blocks if work.owner == caller.owner]
        self.end(*own[-1:])
        return bool(own)

    def end_any_block(self) -> None:
        """A block is left by another task than entered it, as a fixture's may be."""
        blocks = [work for work in self._running if work.kind is Kind.BLOCK]
        self.end(*blocks[-1:])

    def called_by(self, caller: Caller | None) -> bool:
        """Whether the caller may not be made to wait, because it would be for itself.

        A loop's body or a block that gives way itself is done with leading by
        that; what it has started is not in a position to say so.
        """
        if caller is None:
            return False
        own = [work for work in self._running if work.owner == caller.owner]
        if own and (caller.interrupting or any(work.kind is Kind.FUNCTION for work in own)):
            return True
        self._left_early += [work.owner for work in own if work.kind is Kind.BLOCK]
        self.end(*own)
        return not own and caller.within and bool(self._running)

    async def wait_ended(self) -> None:
        """Wait until nothing works as leader any more."""
        if self._running:
            await self._ended.wait()
