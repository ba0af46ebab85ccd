"""Watching, once for all backends: the latest state, kept current through outages.

An observation keeps one state, not a queue: a consumer that is slow, or never
comes, costs nothing and misses only states that were replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import StoreUnavailable
from .events import StoreRecovered, StoreTrouble
from .retry import Retry, riding_out

if TYPE_CHECKING:
    from .core import Core

T = TypeVar("T")


class Observation(Generic[T]):
    """Follows one stream of states of a backend; lives on the engine's loop.

    Args:
        key: for the events.
        open_stream: opens the backend's stream, whose first state is the present one.
        retry: how to ride out outages; None: the first one is raised to the consumer.
    """

    def __init__(
        self,
        core: Core,
        key: str,
        open_stream: Callable[[], AsyncGenerator[T, None]],
        retry: Retry | None,
    ) -> None:
        self._core = core
        self.clock = core.context.clock
        self._key = key
        self._open = open_stream
        self._retry = retry
        self._task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        """Set once something is different from now. Each change has an event of its own,

        taken in the same step in which its waiter looked: nobody clears it for another.
        """
        self._failures = 0
        self.leaving: set[asyncio.Future[None]] = set()
        self.users = 0
        self.version = 0
        """How many different states were told; 0: none yet."""
        self.state: T | None = None
        self.since = 0.0
        self.confirmed_at = 0.0
        self.cut_since: float | None = None
        """Since when the store does not tell us of changes; None while it does."""
        self.stopped = False
        self.error: Exception | None = None

    def join(self) -> None:
        """One more consumer: start following with the first."""
        self._core.check_open()
        self.users += 1
        if self._task is None and not self.stopped:
            self._core.observations.add(self)
            self._task = asyncio.ensure_future(self._follow())
            self._task.add_done_callback(lambda _: self._core.observations.discard(self))

    async def part(self) -> None:
        """One consumer less: stop with the last."""
        self.users -= 1
        await self.rest()

    async def rest(self) -> None:
        """Stop, if no consumer is left."""
        if self.users <= 0:
            await self.stop()

    async def stop(self) -> None:
        """End the watch at the store; consumers that wait come to the end of their iteration.

        Returns, to each of several callers, when the watch has ended.
        """
        if not self.stopped:
            self.stopped = True
            self.wake()
            # Once: cancelled again it would not finish ending the watch.
            if self._task is not None:
                self._task.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    def wake(self) -> None:
        """Have every consumer look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def _follow(self) -> None:
        try:
            await riding_out(
                self._read_stream,
                retry=self._retry,
                clock=self.clock,
                chance=self._core.context.random,
                trouble=self._trouble,
            )
        except Exception as error:
            self.error = error
            self.wake()

    async def _read_stream(self) -> None:
        try:
            async with contextlib.aclosing(self._open()) as states:
                async for state in states:
                    self._take(state)
            raise StoreUnavailable(f"the watch on {self._key!r} ended; it is opened again")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The backend's own: taken for ours it would end this in silence.
            self._cut()
            raise StoreUnavailable(f"the backend cancelled the watch on {self._key!r}") from None
        except Exception:
            self._cut()
            raise

    def _cut(self) -> None:
        if self.cut_since is None:
            self.cut_since = self.clock.now()

    def _take(self, state: T) -> None:
        now = self.clock.now()
        self.confirmed_at = now
        if self.cut_since is not None:
            self.cut_since = None
            self.wake()
        if self._failures:
            self._core.emit(StoreRecovered(self._key, now, self._failures))
            self._failures = 0
        # After a reconnect the present state is told again: that is no change.
        if self.version == 0 or state != self.state:
            self.state = state
            self.since = now
            self.version += 1
            self.wake()

    def _trouble(self, error: StoreUnavailable, attempt: int, retry_in: float) -> None:
        self._failures = attempt
        self._core.emit(StoreTrouble(self._key, self.clock.now(), str(error), attempt, retry_in))
        self.wake()


V = TypeVar("V")

View = Callable[[Observation[T]], "tuple[object, V] | None"]
"""What a consumer is told of an observation: an identity and a value; None: nothing yet.

The consumer hears of it again only when the identity has changed.
"""


def states(observation: Observation[T]) -> tuple[object, T] | None:
    """The view of who wants each state as it is."""
    if observation.version == 0:
        return None
    return observation.version, observation.state  # type: ignore[return-value]


class Cursor(Generic[T, V]):
    """One consumer of an observation.

    What was told last is kept by the consumer and handed in, so that a call
    that was cancelled on its way back has lost nothing.

    Args:
        source: the observation to join, asked at the first `next`.
        patience: seconds that a cut may last before the view is asked again.
        store: what must not be collected, and so closed, before this is closed.
            No observation may hold it: those are held by the store's core.
    """

    def __init__(
        self,
        source: Callable[[], Observation[T]],
        view: View[T, V],
        patience: float | None = None,
        *,
        store: object,
    ) -> None:
        self._source = source
        self._view = view
        self._patience = patience
        self._store: object = store
        self._observation: Observation[T] | None = None
        self._closed = False
        self.told: object = None
        """What the consumer really got last: its own to write."""

    async def next(self, told: object) -> tuple[object, V] | None:
        """What differs from `told`, as soon as something does; None: the end."""
        if self._closed:
            return None
        observation = self._observation
        if observation is None:
            # Taken and joined in one step: nobody's leaving can stop it in between.
            observation = self._source()
            observation.join()
            self._observation = observation
        while True:
            if self._closed or observation.stopped:
                return None
            if observation.error is not None:
                raise observation.error
            seen = self._view(observation)
            if seen is not None and seen[0] != told:
                return seen
            await self._change(observation)

    async def _change(self, observation: Observation[T]) -> None:
        changed = observation.changed
        if self._patience is not None and observation.cut_since is not None:
            clock = observation.clock
            over = observation.cut_since + self._patience
            if clock.now() < over:
                await clock.wait_for(changed.wait(), over)
                return
        await changed.wait()

    async def close(self) -> None:
        """Stop following; a waiting `next` comes to its end.

        Returns, to each of several callers, when a watch that was only for this has ended.
        """
        closed, self._closed = self._closed, True
        # Whoever keeps a traceback of this keeps no store open.
        self._store = None
        if self._observation is None:
            return
        if closed:
            await self._observation.rest()
        else:
            self._observation.wake()
            await self._observation.part()

    def close_soon(self) -> None:
        """For destructors."""
        if not self._closed and self._observation is not None:
            # The set keeps the task from being collected before it has run.
            closing = asyncio.ensure_future(self.close())
            self._observation.leaving.add(closing)
            closing.add_done_callback(self._observation.leaving.discard)
