"""`leadership.candidate` for asyncio: the same arguments, the same guarantees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Self

from .. import inside
from ..candidate import PATIENCE, CandidateBase
from ..checks import checked_timeout, checked_value
from ..election import Candidacy
from ..errors import LeadershipLost, NotLeader
from ..lease import Claim
from ..term import TermBase
from ..work import Kind
from .calls import on_engine
from .store import Store


class Term(TermBase):
    """One time in office; as an async context manager it resigns at the end of the block."""

    __slots__ = ("_candidate",)

    _candidate: Campaigner

    async def wait_lost(self, timeout: float | None = None) -> bool:
        """Return True once the term is over; False when `timeout` seconds passed first."""
        limit = checked_timeout(timeout)
        if self.reason is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await on_engine(self._candidate.core, self.candidacy.wait_over, self)
        return self.reason is not None

    async def resign(self, to: str | None = None) -> bool:
        """As `Candidate.resign`, but only ever this term; False when it was over already."""
        successor = self._candidate._checked_successor(to)
        core, caller = self._candidate.core, inside.caller(self.candidacy)
        return await on_engine(core, self.candidacy.resign, caller, self, successor)

    async def __aenter__(self) -> Self:
        try:
            inside.enter(self.candidacy, block=True)
            caller = inside.caller(self.candidacy)
            await on_engine(self._candidate.core, self.candidacy.engage, self, caller)
            return self
        except BaseException:
            # The block is not entered, so nobody would leave it.
            self.candidacy.give_up(inside.caller(self.candidacy))
            raise

    async def __aexit__(self, *exception: object) -> None:
        try:
            inside.leave(self.candidacy)
            caller = inside.caller(self.candidacy)
            if not self._candidate.core.nothing_to_end():
                await on_engine(self._candidate.core, self.candidacy.leave_block, self, caller)
        except BaseException:
            # Cancelled or interrupted: the block is over all the same.
            self.candidacy.give_up(inside.caller(self.candidacy))
            raise


class Campaigning:
    """A campaign under way: `await` it for the term, or `async with` it for a block as leader."""

    def __init__(self, campaign: Callable[[], Coroutine[Any, Any, Term]]) -> None:
        self._campaign = campaign
        self._term: Term | None = None

    def __await__(self) -> Generator[Any, Any, Term]:
        return self._campaign().__await__()

    async def __aenter__(self) -> Term:
        self._term = await self._campaign()
        return await self._term.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._term is not None
        await self._term.__aexit__(kind, error, trace)


class Campaigner(CandidateBase[Term]):
    """What `Candidate` and `Lock` have in common for asyncio: to win, and to withdraw."""

    def _make_term(self, candidacy: Candidacy, key: str, id: str, value: str, claim: Claim) -> Term:
        term = Term(candidacy, key, id, value, claim, self.core.context.clock)
        term._candidate = self
        return term

    async def _campaign(self, timeout: float | None) -> Term:
        limit = checked_timeout(timeout)
        made: list[Candidacy] = []
        try:
            candidacy = self._new_candidacy(made, single=True)
            try:
                async with asyncio.timeout(limit):
                    term = await on_engine(self.core, candidacy.win)
            except TimeoutError:
                await on_engine(self.core, candidacy.leave, PATIENCE)
                raise TimeoutError(f"{self.key!r} was not won within {timeout} s") from None
            if term is None:
                raise NotLeader(f"the {self._what} was stopped while it waited for {self.key!r}")
            assert isinstance(term, Term)
            return term
        except BaseException:
            # Cancelled or interrupted at whatever step: nobody would hear that we lead.
            for each in made:
                each.give_up()
            raise

    async def stop(self) -> None:
        """As `leadership.Candidate.stop`: idempotent, at any moment.

        In a task of its own (that of `create_task`, `gather` and, in Python
        3.11, `wait_for`) inside the leader's code it only requests, and
        returns: limit the time by `asyncio.timeout`.
        """
        candidacy = self._candidacy
        if candidacy is not None:
            await self._stop(candidacy, inside.caller(candidacy))

    close = stop

    async def _stop(self, candidacy: Candidacy, caller: inside.Caller) -> None:
        try:
            if not self.core.nothing_to_end():
                await on_engine(self.core, candidacy.stop, caller)
        except BaseException:
            # Cancelled or interrupted: it withdraws all the same.
            candidacy.stop_soon(caller)
            raise

    async def _leave(self, candidacy: Candidacy) -> None:
        """Withdraw, also when cancelled meanwhile."""
        try:
            if not self.core.nothing_to_end():
                await on_engine(self.core, candidacy.leave)
        except BaseException:
            candidacy.give_up()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()


class Candidate(Campaigner):
    """`leadership.Candidate` for asyncio: the same arguments, the same guarantees."""

    def run_for_election(self) -> Elections:
        """An async iterator of our standing: False first, then True and False in turn.

        Leaving the loop in any way, or cancelling its task, withdraws.
        """
        return Elections(self)

    def campaign(self, timeout: float | None = None) -> Campaigning:
        """Lead: `term = await candidate.campaign()` or `async with candidate.campaign() as term`.

        Raises:
            TimeoutError: we did not win within `timeout` seconds, and have withdrawn.
            NotLeader: the candidate was stopped meanwhile.
            StoreError: the store refuses, or with `retry=None` could not be reached.
        """
        checked_timeout(timeout)
        return Campaigning(lambda: self._campaign(timeout))

    async def run(self, work: Callable[[Term], Awaitable[object]]) -> None:
        """Await `work(term)` in each of our terms, until `stop`.

        When the term is over the task of `work` is cancelled, and joined
        before the key is released. When `work` returns while we lead, we give
        way and contend again. Any exception of it but `LeadershipLost`
        withdraws us, and is raised.
        """
        made: list[Candidacy] = []
        try:
            candidacy = self._new_candidacy(made, single=False)
            inside.enter(candidacy)
            caller = inside.caller(candidacy)
            await on_engine(self.core, candidacy.begin)
            while True:
                term = await on_engine(self.core, candidacy.lead, caller, Kind.FUNCTION)
                if term is None:
                    return
                assert isinstance(term, Term)
                await self._work(work, term)
                await on_engine(self.core, candidacy.work_returned, term)
        except GeneratorExit:
            # The event loop was closed under us: nothing can be awaited any more.
            for each in made:
                each.give_up()
            raise
        finally:
            for each in made:
                if not each.given_up:
                    await self._leave(each)

    async def _work(self, work: Callable[[Term], Awaitable[object]], term: Term) -> None:
        """Run `work` until it ends or is cancelled at the end of the term; always joined."""
        working = asyncio.ensure_future(work(term))
        losing = asyncio.ensure_future(term.wait_lost())
        ours = joinable = True
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        except GeneratorExit:
            joinable = False
            raise
        finally:
            if joinable:
                losing.cancel()
                ours = not working.done()
                if ours:
                    working.cancel()
                # Until it has ended we are not done, whoever cancels us.
                await _joined(working)
        if ours and working.cancelled():
            return
        try:
            working.result()
        except LeadershipLost:
            # Of this term; the loss of something else is the work's own error.
            if term.is_valid():
                raise

    async def proclaim(self, value: str | bytes) -> None:
        """Change what followers are told; raises `NotLeader` when we do not lead."""
        data = checked_value(value, self.core.backend)
        candidacy = self._candidacy
        if candidacy is None:
            raise NotLeader(f"{self.id!r} does not lead {self.key!r}: campaign first")
        await on_engine(self.core, candidacy.proclaim, data)

    async def resign(self, to: str | None = None) -> bool:
        """Give way but stay a candidate; see `leadership.Candidate.resign`.

        In a task of its own inside the leader's code it only requests, see `stop`.
        """
        successor = self._checked_successor(to)
        candidacy = self._candidacy
        if candidacy is None or self.core.nothing_to_end():
            return False
        caller = inside.caller(candidacy)
        return await on_engine(self.core, candidacy.resign, caller, None, successor)


async def _joined(task: asyncio.Future[Any]) -> None:
    interrupted = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            interrupted = True
    if interrupted:
        raise asyncio.CancelledError


class _Progress:
    """How far a loop has come. Apart from the iterator, which nothing but the loop may hold."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.made: list[Candidacy] = []
        self.begun = False
        # What the loop was really given, so that a cancelled call loses nothing.
        self.term: TermBase | None = None
        self.closed = False

    @property
    def candidacy(self) -> Candidacy | None:
        return self.made[0] if self.made else None

    async def step(self, caller: inside.Caller | None) -> bool:
        core, candidacy = self.candidate.core, self.candidacy
        if candidacy is None:
            raise StopAsyncIteration
        if self.closed:
            # Closed by another task, which waits for the body that is over now.
            await self.candidate._leave(candidacy)
            raise StopAsyncIteration
        if not self.begun:
            # Again, if an earlier call was cancelled before it came to it.
            await on_engine(core, candidacy.begin)
            self.begun = True
            if self.closed:
                # By another task, before there was anything that it could withdraw.
                await on_engine(core, candidacy.leave)
                raise StopAsyncIteration
            return False
        if self.term is not None:
            await on_engine(core, candidacy.wait_in_iterator, self.term)
            self.term = None
            return False
        self.term = await on_engine(core, candidacy.lead, caller)
        if self.term is None:
            raise StopAsyncIteration
        return True

    async def close(self, caller: inside.Caller | None) -> None:
        if self.candidacy is not None and caller is not None:
            await self.candidate._stop(self.candidacy, caller)


class Elections:
    """What `run_for_election` returns: an async iterator, a context manager, with `close()`."""

    def __init__(self, candidate: Candidate) -> None:
        self._progress = _Progress(candidate)

    def __aiter__(self) -> Elections:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bool]:
        """Our next standing, as soon as it changes.

        Raises:
            StopAsyncIteration: the candidate was stopped, or the iterator closed.
            StoreError: the store refuses, or with `retry=None` could not be reached.
        """
        # Here, not in the coroutine: `wait_for` would run that in a task of its
        # own, and the loop body must be known as the leader's code. And the
        # coroutine does not hold the iterator: a cancelled task keeps its
        # traceback, and the iterator must be collected all the same.
        progress = self._progress
        if progress.candidacy is None and not progress.closed:
            progress.candidate._new_candidacy(progress.made, single=False)
        if progress.candidacy is None:
            return progress.step(None)
        inside.enter(progress.candidacy)
        return progress.step(inside.caller(progress.candidacy))

    def close(self) -> Coroutine[Any, Any, None]:
        """Withdraw and release; at any moment, any number of times.

        By the task that runs the loop: its body is over with this call. By
        any other: returns when the body has ended and the key is released,
        or at the deadline.
        """
        progress = self._progress
        progress.closed = True
        # Here, not in the coroutine, as above: it says who has done with the loop.
        caller = None if progress.candidacy is None else inside.caller(progress.candidacy)
        return progress.close(caller)

    async def __aenter__(self) -> Elections:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __del__(self) -> None:
        progress = self._progress
        if progress.candidacy is not None:
            progress.candidacy.give_up()


def NewCandidate(  # noqa: N802
    store: Store, key: str, id: str, ttl: float = 15.0, **options: Any
) -> Candidate:
    """`Candidate`, under the name that people who come from Go look for."""
    return Candidate(store, key, id, ttl, **options)
