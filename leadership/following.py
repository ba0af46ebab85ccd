"""Who leads, once for all backends: what a follower knows, and what it does not know."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from dataclasses import dataclass
from enum import StrEnum

from .backend import Entry
from .core import Core
from .errors import LeaderUnknown, StoreUnavailable
from .events import LeaderChanged
from .observation import Cursor, Observation
from .retry import Retry


class LeaderState(StrEnum):
    """What is known of an election's leader."""

    KNOWN = "known"
    """The store says who leads."""
    NONE = "none"
    """The store says that nobody leads."""
    UNKNOWN = "unknown"
    """We are cut off from the store: there may be a leader, the last one or another."""


@dataclass(frozen=True, slots=True)
class Leader:
    """What a follower knows at one moment.

    Attributes:
        value: what the leader campaigns with; None unless `state` is known.
        token: its term's fencing token; None unless `state` is known.
        since: when this was first known, in seconds on the store's clock.
        state: known, none, or unknown (cut off from the store).
        confirmed_at: when the store last confirmed it, in seconds on the store's clock.
    """

    value: str | None
    token: int | None
    since: float
    state: LeaderState
    confirmed_at: float


class Following:
    """One follower's observation of one election; lives on the engine's loop.

    Args:
        patience: seconds that a cut may last before the leader counts as unknown.
        store: what each cursor keeps, until it is closed, from being collected and so closed.
    """

    def __init__(
        self, core: Core, key: str, retry: Retry | None, patience: float, store: object
    ) -> None:
        self._core = core
        # Weakly, for the cursors hold this also when they are closed.
        self._store = weakref.ref(store)
        self._clock = core.context.clock
        self.key = key
        self._retry = retry
        self.patience = patience
        self._observation = self._new_observation()
        self._told: Leader | None = None

    def _new_observation(self) -> Observation[Entry | None]:
        # Without `self`: a running observation is held by the core, and must not hold the store.
        backend, key = self._core.backend, self.key
        return Observation(self._core, key, lambda: backend.observe(key), self._retry)

    def cursor_of_leaders(self) -> Cursor[Entry | None, Leader]:
        return Cursor(self._current, self._view_leader, self.patience, store=self._store())

    def cursor_of_values(self) -> Cursor[Entry | None, str | None]:
        return Cursor(self._current, self._view_value, self.patience, store=self._store())

    def _current(self) -> Observation[Entry | None]:
        """The observation to join: one that was stopped, or died of an error, tells nothing."""
        if self._observation.stopped or self._observation.error is not None:
            self._observation = self._new_observation()
        return self._observation

    def _view_leader(self, seen: Observation[Entry | None]) -> tuple[object, Leader] | None:
        cut = seen.cut_since
        if cut is not None and self._clock.now() >= cut + self.patience:
            leader = Leader(None, None, cut, LeaderState.UNKNOWN, seen.confirmed_at)
        elif seen.version == 0:
            return None
        elif seen.state is None:
            leader = Leader(None, None, seen.since, LeaderState.NONE, seen.confirmed_at)
        else:
            value = seen.state.value.decode(errors="replace")
            leader = Leader(
                value, seen.state.token, seen.since, LeaderState.KNOWN, seen.confirmed_at
            )
        identity = (leader.state, leader.value, leader.token)
        self._tell(leader)
        return identity, leader

    def _tell(self, leader: Leader) -> None:
        before, self._told = self._told, leader
        if before is None or (before.value, before.token) != (leader.value, leader.token):
            self._core.emit(LeaderChanged(self.key, self._clock.now(), leader.value, leader.token))

    def _view_value(self, seen: Observation[Entry | None]) -> tuple[object, str | None] | None:
        told = self._view_leader(seen)
        if told is None:
            return None
        # A tuple, so that None as a value differs from "nothing was told yet".
        return (told[1].value,), told[1].value

    async def leader(self, max_age: float | None) -> str | None:
        """The leader's value, from what is known, or else from the store.

        Raises:
            LeaderUnknown: nothing known is recent enough, and the store does not answer.
        """
        seen = self._observation
        fresh = max_age is None or self._clock.now() - seen.confirmed_at <= max_age
        following = seen.users > 0 and not seen.stopped
        if following and seen.version > 0 and seen.cut_since is None and fresh:
            entry = seen.state
        else:
            entry = await self._ask()
        return None if entry is None else entry.value.decode(errors="replace")

    async def _ask(self) -> Entry | None:
        limit = self._core.context.request_timeout
        try:
            async with (
                asyncio.timeout(limit),
                contextlib.aclosing(self._core.backend.observe(self.key)) as states,
            ):
                async for entry in states:
                    return entry
            raise StoreUnavailable("the store told nothing")
        except (StoreUnavailable, TimeoutError) as error:
            raise LeaderUnknown(
                f"who leads {self.key!r} is not known: the store did not answer within "
                f"{limit} s ({error}); try again, or accept an older answer"
            ) from error

    async def wait_for_leader(self) -> str | None:
        """The next known leader's value; None when stopped."""
        cursor = self.cursor_of_values()
        told: object = None
        try:
            while (seen := await cursor.next(told)) is not None:
                told, value = seen
                if value is not None:
                    return value
            return None
        finally:
            await cursor.close()

    async def stop(self) -> None:
        await self._observation.stop()
