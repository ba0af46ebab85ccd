"""Iterators over what an observation tells, for threads."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .core import Core
from .observation import Cursor

V = TypeVar("V")


class Stream(Generic[V]):
    """An iterator that is also a context manager with `close()`.

    Nothing happens before the first `next`, which tells the present state.
    Later states may be coalesced; the last is never missed. Leaving the loop
    in any way ends the watch at the store. Until then it keeps the store open.
    """

    def __init__(self, core: Core, cursor: Cursor[Any, V]) -> None:
        self._core = core
        self._cursor = cursor

    def __iter__(self) -> Stream[V]:
        return self

    def __next__(self) -> V:
        """The next state; blocks until there is one, interruptible by Ctrl-C.

        Raises:
            StopIteration: the stream was closed, or its follower stopped.
            StoreError: as the store refused, or with `retry=None` could not be reached.
        """
        core, cursor = self._core, self._cursor
        # An exception that passes through here keeps this frame in its traceback,
        # which somebody may keep. The stream must be collected all the same.
        del self
        seen = core.call(cursor.next, cursor.told)
        if seen is None:
            raise StopIteration
        cursor.told, value = seen
        return value

    def close(self) -> None:
        """End the watch; from any thread, at any moment, any number of times."""
        if not self._core.nothing_to_end():
            self._core.call(self._cursor.close)

    def __enter__(self) -> Stream[V]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.post(self._cursor.close_soon)
