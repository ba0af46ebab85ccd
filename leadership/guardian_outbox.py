"""What the guardian is still to be told: no more than it takes to know what holds now.

One that stands still takes nothing, for however long, while plans come and go
and deadlines are moved on. So nothing is queued that something newer made void.
Without input or output but the two that are handed in.
"""

from __future__ import annotations

import itertools
import marshal
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Send = Callable[[bytes, Sequence[int]], bool]
"""Sends a message with descriptors; False where it is not taken for now."""

_INLINE = 2048
"""Bytes of a plan that go in a message: as long as the smallest buffer of a socket takes."""


@dataclass(eq=False, slots=True)
class _Plan:
    """What is carried out once, for however many it was asked."""

    number: int
    key: tuple[bytes, float]
    uses: int = 0


class Outbox:
    """Plans, and words about the command; for callers that hold a lock.

    Args:
        on_lost: is told why a plan could not be written down, and so is not with the guardian.
    """

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._plans: dict[tuple[bytes, float], _Plan] = {}
        self._uses: dict[int, _Plan] = {}
        # What this guardian is to learn, or to forget, and what it knows; each by its number,
        # which never stands for another plan.
        self._to_learn: dict[int, _Plan] = {}
        self._to_forget: dict[int, None] = {}
        self._known: set[int] = set()
        self._words: dict[object, tuple[bytes, Sequence[int]]] = {}

    # --- what is to be told ---

    def hold(self, content: bytes, seconds: float, former: int | None = None) -> int:
        """Have this plan with the guardian; equal ones are there once.

        Args:
            former: what this one takes the place of.

        Returns:
            what `drop` takes.
        """
        key = (content, seconds)
        if former is not None:
            if former in self._uses and self._uses[former].key == key:
                return former
            # First, so that it is void also where the new one cannot be had.
            self.drop(former)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(next(self._numbers), key)
        if plan.number not in self._known:
            # Also where it could not be written down before: there may be room by now.
            self._to_learn[plan.number] = plan
        plan.uses += 1
        use = next(self._numbers) if former is None else former
        self._uses[use] = plan
        return use

    def drop(self, use: int) -> None:
        """That plan is not needed any more, by this user of it. Idempotent."""
        plan = self._uses.pop(use, None)
        if plan is None:
            return
        plan.uses -= 1
        if plan.uses:
            return
        del self._plans[plan.key]
        self._to_learn.pop(plan.number, None)
        if plan.number in self._known:
            self._to_forget[plan.number] = None

    def drop_all(self) -> None:
        for use in list(self._uses):
            self.drop(use)

    def say(self, kind: object, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Tell this; what of the same kind has not been told yet never is.

        Args:
            descriptors: that go with it; they are closed.
        """
        self._unsay(kind)
        self._words[kind] = (marshal.dumps(message), descriptors)

    # --- telling it ---

    def begin_anew(self) -> None:
        """Another guardian, which knows nothing; what was to be said to the former is void."""
        for kind in list(self._words):
            self._unsay(kind)
        self._known.clear()
        self._to_forget.clear()
        self._to_learn = {plan.number: plan for plan in self._plans.values()}

    def flush(self, send: Send) -> bool:
        """Tell all; False where not all of it was taken."""
        while self._to_forget:
            number = next(iter(self._to_forget))
            if not send(marshal.dumps(("forget", number)), ()):
                return False
            del self._to_forget[number]
            self._known.discard(number)
        while self._to_learn:
            number, plan = next(iter(self._to_learn.items()))
            if not self._teach(number, plan, send):
                return False
            del self._to_learn[number]
        while self._words:
            kind, (message, descriptors) = next(iter(self._words.items()))
            if not send(message, descriptors):
                return False
            self._unsay(kind)
        return True

    def _teach(self, number: int, plan: _Plan, send: Send) -> bool:
        content, seconds = plan.key
        if len(content) <= _INLINE:
            taken = send(marshal.dumps(("guard", number, seconds, content)), ())
        else:
            try:
                written = _written(content)
            except OSError as error:
                self._on_lost(f"it could not be told how to release: {error.strerror}")
                return True
            try:
                taken = send(marshal.dumps(("guard", number, seconds)), [written])
            finally:
                os.close(written)
        if taken:
            self._known.add(number)
        return taken

    def _unsay(self, kind: object) -> None:
        _, descriptors = self._words.pop(kind, (b"", ()))
        for each in descriptors:
            os.close(each)


def _written(content: bytes) -> int:
    """A file in memory that holds it.

    Raises:
        OSError: there is no room.
    """
    descriptor = os.memfd_create("leadership-plan")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
