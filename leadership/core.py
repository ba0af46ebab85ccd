"""What the sync and the async face of one store share: its backend, its runs, its end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from . import events
from ._engine import Engine, engine
from .backend import Address, Backend, Capability, Context
from .clock import Clock, SystemClock
from .errors import ConfigurationError, ForkedHandle, HandleClosed, NotSupported
from .registry import load_backend, parse_address

if TYPE_CHECKING:
    from .election import Candidacy
    from .inside import Caller
    from .observation import Observation

P = ParamSpec("P")
T = TypeVar("T")


class Core:
    """One open store.

    Args:
        make: makes the backend; does no I/O.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[Address, Context], Backend],
        *,
        clock: Clock | None = None,
        hooks: Iterable[events.Hook] = (),
        max_clock_drift: float = 0.01,
        request_timeout: float = 5.0,
        strict_ttl: bool = False,
    ) -> None:
        if not 0 <= max_clock_drift < 0.5:
            raise ConfigurationError(
                f"max_clock_drift={max_clock_drift}: give the largest difference of two clocks' "
                "rates, from 0 to below 0.5 (0.01 is 1 %)"
            )
        if not request_timeout > 0:
            raise ConfigurationError(f"request_timeout={request_timeout}: give seconds above 0")
        self.hooks: tuple[events.Hook, ...] = (events.log, *hooks)
        self.context = Context(
            clock=clock or SystemClock(),
            random=random.Random(),
            emit=self.emit,
            max_clock_drift=max_clock_drift,
            request_timeout=request_timeout,
            strict_ttl=strict_ttl,
        )
        self.backend = make(address, self.context)
        self.runs: set[Candidacy] = set()
        self.observations: set[Observation[Any]] = set()
        self.closed = False
        self._unguarded: set[str] = set()
        self._guardian_gone: list[Future[None]] = []
        self.starting = threading.Lock()
        self._pid = os.getpid()
        self._engine: Engine | None = None
        self._closing: asyncio.Task[None] | None = None

    def emit(self, event: events.Event) -> None:
        # Most renewals are heard by nobody, and need not wake the hooks' thread.
        heard = len(self.hooks) > 1 or events.is_logged(event)
        if self._engine is not None and heard:
            self._engine.told.tell(self.hooks, event)

    def unguarded(self, reason: str) -> None:
        """There is no guardian, though one was wanted: told once. From any thread."""
        if reason not in self._unguarded:
            self._unguarded.add(reason)
            self.emit(events.Unguarded("", self.context.clock.now(), reason))

    def await_at_close(self, guardian_gone: Future[None]) -> None:
        """A run has left its guardian, whose end is to be ours too."""
        self._guardian_gone = [each for each in self._guardian_gone if not each.done()]
        self._guardian_gone.append(guardian_gone)

    def need(self, what: str, *capabilities: Capability) -> None:
        """Raise `NotSupported` unless the backend has all of them."""
        missing = [c for c in capabilities if c not in self.backend.capabilities]
        if missing:
            has = ", ".join(sorted(self.backend.capabilities)) or "none"
            raise NotSupported(
                f"{what} needs {', '.join(missing)}, and the backend "
                f"{self.backend.address.scheme!r} has only {has}: use another backend"
            )

    # --- the way to the engine ---

    def call(
        self, act: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `act` on the engine and wait, as long as it takes."""
        running = self._running()
        return running.call(partial(act, *args, **kwargs))

    def call_within(
        self, timeout: float | None, act: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> T:
        """As `call`, but `TimeoutError` after `timeout` seconds."""
        running = self._running()
        return running.call(partial(act, *args), timeout)

    def start(
        self, act: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Run `act` on the engine; for an event loop to wait for."""
        running = self._running()
        return running.submit(partial(act, *args, **kwargs))

    def post(self, act: Callable[[], object]) -> None:
        """Have `act` called on the engine, if there is still any use; never raises or blocks."""
        if self._engine is not None and os.getpid() == self._pid:
            self._engine.post(act)

    def check_open(self) -> None:
        """Raise unless the store may be used: not closed, and not in a fork's child."""
        self._check_process()
        if self.closed:
            raise HandleClosed("the store is closed: make a new one")

    def nothing_to_end(self) -> bool:
        """Whether there is nothing that the caller could release or close.

        In a forked child, which holds nothing of ours, and when the
        interpreter is ending, which closes everything itself.
        """
        ending = self._engine is not None and self._engine.closing
        return os.getpid() != self._pid or ending

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedHandle(
                "this store was made before a fork and cannot work in the child: "
                "make a new store here"
            )

    def _running(self) -> Engine:
        self._check_process()
        if self._engine is None:
            self._engine = engine()
            self._engine.open.add(self)
        return self._engine

    # --- the end ---

    async def close(self, callers: Iterable[tuple[Candidacy, Caller]] = ()) -> None:
        """Withdraw all candidates, end all watches, sessions and connections; on the engine.

        Returns when nothing is left; to code that is waited for itself at once.

        Args:
            callers: the caller, as each run has to see it.
        """
        self.closed = True
        waited_for = [run for run, caller in callers if run.called_by(caller)]
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        if not waited_for:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await _all(run.stop(None) for run in list(self.runs))
        for run in list(self.runs):
            run.cancel()
        await _all(run.gone() for run in list(self.runs))
        await _all(observation.stop() for observation in list(self.observations))
        await self.backend.close()
        gone: list[asyncio.Future[None]] = [asyncio.wrap_future(f) for f in self._guardian_gone]
        await _all(gone)
        if self._engine is not None:
            self._engine.open.discard(self)

    def close_soon(self) -> None:
        """For destructors: close without waiting."""

        def begin() -> None:
            if not self.closed:
                self.closed = True
                self._closing = asyncio.ensure_future(self._close())

        self.post(begin)


class _Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options that every store has, in a URL's query or as keywords; seconds."""

    max_clock_drift: float = 0.01
    request_timeout: float = 5.0
    strict_ttl: bool = False


def open_core(
    address: str,
    endpoints: str | Iterable[str] | None,
    *,
    clock: Clock | None,
    hooks: Iterable[events.Hook],
    **options: Any,
) -> Core:
    """What both faces' `new_store` do: find the backend, check what was given, no I/O."""
    where = parse_address(address, endpoints, options)
    names = _Common.__struct_fields__
    own = {name: value for name, value in where.options.items() if name in names}
    try:
        common = msgspec.convert(own, _Common, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"a store's option does not fit: {error}") from error
    rest = {name: value for name, value in where.options.items() if name not in names}
    return Core(
        dataclasses.replace(where, options=rest),
        load_backend(where.scheme),
        clock=clock,
        hooks=hooks,
        **msgspec.structs.asdict(common),
    )


async def _all(work: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*work, return_exceptions=True)
