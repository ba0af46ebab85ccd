"""What one run of a candidate has the guardian do: nothing, unless it is wanted."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from .backend import Contender
from .errors import NotSupported

if TYPE_CHECKING:
    from .core import Core
    from .election import Wish
    from .guardian import Guardian

_IN_DOUBT = 5.0
"""Seconds beyond the ttl for which a release is still tried: the server may have granted more."""


class Guarding:
    """One run's part; on the engine's loop."""

    def __init__(self, core: Core, wish: Wish) -> None:
        self._core = core
        self._wish = wish
        self._guardian: Guardian | None = None
        self._use = 0
        self._plan: int | None = None
        self._contender: Contender | None = None

    def contender(self) -> Contender:
        """The run's contender, and the guardian's start, if there is to be one."""
        wish, backend = self._wish, self._core.backend
        given = (wish.key, wish.value, wish.ttl, wish.own_session)
        if not wish.guardian:
            return backend.contender(*given)
        # Not for all: who wants none loads none of it.
        from .guardian import guardian

        if (unable := guardian().unable) is not None:
            self._core.unguarded(unable)
            return backend.contender(*given)
        try:
            contender = backend.guarded_contender(*given)
        except NotSupported as error:
            self._core.unguarded(str(error))
            return backend.contender(*given)
        self._guardian = guardian()
        self._use = self._guardian.use(self._core.unguarded)
        return contender

    def begin(self, contender: Contender) -> None:
        """It leads: what it takes to release that goes to the guardian."""
        if self._guardian is None:
            return
        self._contender = contender
        contender.on_new_plan = lambda: self._tell(contender)
        self._tell(contender)

    def _tell(self, contender: Contender) -> None:
        plan = None if self._guardian is None else contender.release_plan()
        if self._guardian is not None and plan is not None:
            self._plan = self._guardian.guard(plan, self._wish.ttl + _IN_DOUBT, self._plan)

    def end(self) -> None:
        """Released, or left to lapse."""
        if self._contender is not None:
            self._contender.on_new_plan = None
        if self._guardian is not None and self._plan is not None:
            self._guardian.forget(self._plan)
            self._plan = None

    def close(self) -> Future[None] | None:
        """The run is over; done when the guardian is gone, if it was the last one's."""
        self.end()
        guardian, self._guardian = self._guardian, None
        return None if guardian is None else guardian.leave(self._use)
