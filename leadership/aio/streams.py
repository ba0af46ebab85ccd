"""`leadership.streams` for asyncio."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from ..core import Core
from ..observation import Cursor
from .calls import on_engine

V = TypeVar("V")


async def _next_state(core: Core, cursor: Cursor[Any, V]) -> V:
    seen = await on_engine(core, cursor.next, cursor.told)
    if seen is None:
        raise StopAsyncIteration
    cursor.told, value = seen
    return value


class Stream(Generic[V]):
    """`leadership.streams.Stream` for asyncio: an async iterator and context manager."""

    def __init__(self, core: Core, cursor: Cursor[Any, V]) -> None:
        self._core = core
        self._cursor = cursor

    def __aiter__(self) -> Stream[V]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, V]:
        """The next state; raises `StopAsyncIteration` once closed."""
        # The coroutine does not hold the stream, see `Elections`.
        return _next_state(self._core, self._cursor)

    async def close(self) -> None:
        """End the watch; at any moment, any number of times."""
        if not self._core.nothing_to_end():
            await on_engine(self._core, self._cursor.close)

    async def __aenter__(self) -> Stream[V]:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.post(self._cursor.close_soon)
