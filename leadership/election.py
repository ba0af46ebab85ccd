"""The campaign, once for all backends: from the wish to lead to the released key.

A candidacy is one run of one candidate. It is pulled: it contends only while
its consumer wants the next term, so a stale loop body never runs under a
newer term, and a slow consumer delays nothing, for renewals are the
session's matter.

    idle -> contending -> leading -> ended (work is told, and joined) -> released -> idle
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeVar

from .errors import LeadershipError, NotLeader, StoreUnavailable
from .events import (
    Campaigning,
    Elected,
    Released,
    StoreRecovered,
    StoreTrouble,
    TermEnded,
    Withdrawn,
    WorkOverran,
)
from .guarding import Guarding
from .inside import Caller
from .lease import LAPSED, Claim
from .loss import Loss
from .retry import DEFAULT_RETRY, Retry, riding_out
from .small_event import SmallEvent
from .term import TermBase
from .work import Kind, Work, Works

if TYPE_CHECKING:
    from .backend import Contender
    from .clock import Timer
    from .core import Core

T = TypeVar("T")

RESIGNED = "we resigned"
STOPPED = "the candidate was stopped"
UNRESPONSIVE = "the leader's code did not call check() or its iterator for the watchdog's time"


def told_by_the_store(term: TermBase) -> bool:
    """Whether the store said that the term is over: another may lead before its deadline."""
    return term.reason not in (None, LAPSED, RESIGNED, STOPPED, UNRESPONSIVE)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a candidate wants; times in seconds."""

    key: str
    id: str
    value: bytes
    ttl: float
    grace: float
    retry: Retry | None
    watchdog: float | None
    own_session: bool
    guardian: bool = False


class Phase(Enum):
    STARTING = auto()
    IDLE = auto()
    CONTENDING = auto()
    LEADING = auto()
    RELEASING = auto()
    WITHDRAWN = auto()


MakeTerm = Callable[["Candidacy", str, str, str, Claim], TermBase]


class Candidacy:
    """One run of one candidate; lives on the engine's loop.

    Args:
        make_term: makes the face's kind of term.
        single: withdraw after the first term that was handed over (`campaign`).
        after: the candidate's former run, which must be over first.
    """

    def __init__(
        self,
        core: Core,
        wish: Wish,
        make_term: MakeTerm,
        *,
        single: bool,
        after: Candidacy | None = None,
    ) -> None:
        self._core = core
        self._clock = core.context.clock
        self.wish = wish
        self.value = wish.value
        self._make_term = make_term
        self._single = single
        self.term: TermBase | None = None
        self.phase = Phase.STARTING
        self.error: Exception | None = None
        self._handed_over = False
        self._stopping = False
        self.given_up = False
        self._cut_short = False
        self._gone: weakref.ref[object] | None = None
        self._after = after
        self._failures = 0
        self._successor: str | None = None
        self._watchdog: Timer | None = None
        self._works = Works()
        self._iterator_calls = 0
        self._drive_task: asyncio.Task[None] | None = None
        self._contender: Contender | None = None
        self._guarding = Guarding(core, wish)
        self._unwatch: Callable[[], None] = lambda: None
        self._changed = SmallEvent()
        self._wanted = SmallEvent()
        self._withdrawn = SmallEvent()

    @property
    def withdrawn(self) -> bool:
        """Whether the run is over and nothing of it is left."""
        return self._withdrawn.is_set()

    @property
    def active(self) -> bool:
        """Whether the consumer has not ended this run yet."""
        if self.given_up:
            # Who gave up is gone; blocks of others may not be.
            return any(
                work.kind is Kind.BLOCK and work.owner != self._gone for work in self._works.alive
            )
        if self._works.alive:
            # Stopped or not: a stale body must never run under a newer term.
            return True
        if self._stopping:
            return False
        # By the clock, as the candidate itself was told, not by when the engine hears of it.
        term_done = self._handed_over and self.term is not None and not self.term.is_valid()
        return not (self._single and term_done)

    @property
    def overrun(self) -> bool:
        """Whether the leader's code has not ended yet, though its term is over."""
        over = self.term is None or not self.term.is_valid()
        return over and bool(self._works.alive)

    # --- what the faces ask for, always on the engine's loop ---

    async def begin(self) -> None:
        """Start contending, once the candidate's former run is over."""
        self._core.check_open()
        if self._drive_task is None and not self._stopping:
            self._core.runs.add(self)
            self._wanted.set()
            self._drive_task = asyncio.ensure_future(self._drive())

    async def lead(self, caller: Caller | None = None, kind: Kind = Kind.LOOP) -> TermBase | None:
        """The consumer has ended any former term, and wants the next; None: the run is over.

        Args:
            caller: whose code works as leader from the return on, if any does.
            kind: what ends that work.
        """
        self._works.end_kind(Kind.LOOP, Kind.FUNCTION)
        with self._in_iterator():
            while True:
                if self.term is not None and self.term.is_valid():
                    self._handed_over = True
                    # From here on only the consumer's coming back means a wish for more.
                    self._wanted.clear()
                    if caller is not None:
                        self._works.begin(Work.of(kind, caller))
                    return self.term
                if self._stopping:
                    if self.error is not None:
                        raise self.error
                    # Whoever goes on after its loop may count on the key being free.
                    await self.gone()
                    return None
                self._wanted.set()
                await self._next_change()

    async def win(self) -> TermBase | None:
        """Begin, and wait for the term, in one: who contends by the thousand pays for each call."""
        await self.begin()
        return await self.lead()

    @contextlib.contextmanager
    def _in_iterator(self) -> Iterator[None]:
        """The consumer waits here: that is no silence for the watchdog."""
        self._iterator_calls += 1
        try:
            yield
        finally:
            self._iterator_calls -= 1
            self._touch()

    def _touch(self) -> None:
        if self.term is not None:
            self.term.touched_at = self._clock.now()

    async def engage(self, term: TermBase, caller: Caller) -> None:
        """A block begins to work as leader."""
        # A task that is cancelled on its way in may have given up before this is run.
        if term is self.term and not self.given_up:
            self._works.begin(Work.of(Kind.BLOCK, caller))
            self._touch()

    async def leave_block(self, term: TermBase, caller: Caller) -> None:
        """A `with` block as leader has ended: a single term's run ends with it."""
        if term is self.term and not self._works.end_block(caller):
            self._works.end_any_block()
        if self._single:
            await self.stop(caller)
        else:
            await self.resign(caller, term)

    async def wait_over(self, term: TermBase) -> str:
        """Why `term` ended, once it has."""
        return await asyncio.shield(term.over)

    async def wait_in_iterator(self, term: TermBase) -> None:
        """The loop body has come back for more: it does not work as leader while it waits here."""
        ended = self._works.end_kind(Kind.LOOP)
        with self._in_iterator():
            try:
                await self.wait_over(term)
            except asyncio.CancelledError:
                # A time-out around `next`, or an interrupt that the body caught:
                # it goes on as the leader's code, unless it is gone for good.
                if term is self.term and term.reason is None:
                    for work in ended:
                        self._works.begin(work)
                raise

    async def work_returned(self, term: TermBase) -> None:
        """A function under `run` has returned: give way, if it still led, and be released."""
        self._works.end_kind(Kind.FUNCTION)
        await self.resign(None, term)

    async def resign(
        self, caller: Caller | None, term: TermBase | None = None, to: str | None = None
    ) -> bool:
        """Give way; True when we led. Returns when released, or when the deadline has passed.

        Args:
            to: the name of the candidate that is to lead next.

        Raises:
            NoSuccessor: nobody waits under that name; we lead on.
        """
        mine = self.term if term is None else term
        if mine is None or mine is not self.term:
            return False
        if to is not None and mine.is_valid() and self._contender is not None:
            # While we lead: what is not possible is told before anything is given up.
            await self._contender.find_successor(to)
            if mine is not self.term:
                return False
        led = mine.reason is None
        if led:
            self._successor = to
        self._end_term(mine, RESIGNED)
        if self._works.called_by(caller):
            return led
        await self._released_or_late(mine)
        return led

    async def stop(self, caller: Caller | None) -> None:
        """Withdraw. Returns when nothing is left, or when waiting longer is of no use."""
        self._request_stop(STOPPED)
        if self._works.called_by(caller):
            return
        await self.gone()

    def stop_soon(self, caller: Caller) -> None:
        """As `stop`, for who was interrupted in it; from any thread."""

        def request() -> None:
            self._works.called_by(caller)
            self._request_stop(STOPPED)

        self._core.post(request)

    async def gone(self, patience: float = float("inf")) -> None:
        """Wait until nothing is left: as long as our work may go on, and one request takes."""
        deadline = self._clock.now()
        if self.term is not None and self._works:
            deadline = max(deadline, self.term.valid_until)
        deadline += min(patience, self._core.context.request_timeout)
        await self._clock.wait_for(self._withdrawn.wait(), deadline)

    def give_up(self, caller: Caller | None = None) -> None:
        """The consumer is gone: as `stop`, for who cannot wait (a destructor, an interrupt).

        From any thread. At its return the candidate may already run again.

        Args:
            caller: whose block ends with this, if one does.
        """
        self._gone = None if caller is None else caller.owner
        self.given_up = True
        self._core.post(lambda: self._abandon(caller))

    def _abandon(self, caller: Caller | None) -> None:
        self._works.end_kind(Kind.LOOP, Kind.FUNCTION)
        if caller is not None:
            self._works.end_block(caller)
        self._request_stop(STOPPED)

    async def leave(self, patience: float = float("inf")) -> None:
        """The consumer has ended its work and withdraws: as `stop` from inside.

        Args:
            patience: seconds to wait at the most; it withdraws all the same.
        """
        self._abandon(None)
        await self.gone(patience)

    def saw_lapse(self, term: TermBase) -> None:
        """Somebody's question found the term lapsed; from any thread. It stays so."""
        self._core.post(lambda: self._end_term(term, LAPSED))

    def called_by(self, caller: Caller) -> bool:
        """Whether the store's closing would make its own caller wait for itself; see `Works`."""
        return self._works.called_by(caller)

    def cancel(self) -> None:
        """The store is closing and has waited long enough."""
        self._stopping = self._cut_short = True
        self._interrupt(*Phase)

    async def proclaim(self, value: bytes) -> None:
        """Change the value that followers are told.

        Raises:
            NotLeader: we do not lead.
        """
        term, contender = self.term, self._contender
        if term is None or contender is None or not term.is_valid():
            raise NotLeader(f"{self.wish.id!r} does not lead {self.wish.key!r}: campaign first")
        attempt = asyncio.ensure_future(self._ride_out(lambda: contender.proclaim(value)))
        # Trying on after the term would write into another's time.
        done = lambda _: attempt.cancel()  # noqa: E731
        term.over.add_done_callback(done)
        try:
            await attempt
        except asyncio.CancelledError:
            if term.reason is None:
                raise
            raise NotLeader(f"the term ended before the value was written: {term.reason}") from None
        finally:
            term.over.remove_done_callback(done)
        self.value = value

    # --- the run ---

    async def _drive(self) -> None:
        wish = self.wish
        try:
            self._set_phase(Phase.IDLE)
            while self._after is not None:
                # At most one entry per candidate: the former run's must be gone,
                # and that of the one which itself was still waiting for another.
                former = self._after
                if former._drive_task is None:
                    former._request_stop(STOPPED)
                await former._withdrawn.wait()
                self._after = former._after
            self._contender = contender = self._guarding.contender()
            contender.on_answer = self._recovered
            contender.candidate_id = wish.id
            while not self._stopping:
                self._set_phase(Phase.IDLE)
                await self._wanted.wait()
                self._wanted.clear()
                self._set_phase(Phase.CONTENDING)
                self._core.emit(Campaigning(wish.key, self._clock.now(), wish.id))
                term = await self._win(contender)
                if term is None:
                    continue
                self._set_phase(Phase.LEADING)
                while term.reason is None:
                    await self._next_change()
                self._set_phase(Phase.RELEASING)
                await self._join(term)
                await self._let_go(contender, self._successor)
                self._guarding.end()
                self._core.emit(Released(wish.key, self._clock.now(), wish.id, term.token))
                term.released.set()
                if self._single and self._handed_over:
                    break
        except asyncio.CancelledError:
            # `_request_stop` and the closing store cancel, and want the clean-up below.
            if not self._stopping:
                self.error = StoreUnavailable("the campaign was cancelled by the backend")
        except Exception as error:
            # Whatever it is, the consumer gets it: a run must not end in silence.
            self.error = error
        finally:
            await self._withdraw()

    async def _withdraw(self) -> None:
        self._stopping = True
        if self.term is not None:
            self._end_term(self.term, STOPPED)
        # The consumer hears of an error now, not when a store in trouble has answered.
        self._set_phase(Phase.RELEASING)
        if self._works.alive and self.term is not None and self.term.remaining():
            # Cancelled at the interpreter's end, while a thread still works as
            # leader: its key is left to lapse, another may not lead before that.
            self._contender = None
        try:
            if self._contender is not None and not self._cut_short:
                await self._let_go(self._contender)
        except (asyncio.CancelledError, LeadershipError):
            # The store is closing: its sessions end, and the entry with them.
            pass
        finally:
            try:
                if self._contender is not None:
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._contender.close()
            finally:
                guardian_gone = self._guarding.close()
                if guardian_gone is not None:
                    self._core.await_at_close(guardian_gone)
                self._core.runs.discard(self)
                if self.term is not None:
                    self.term.released.set()
                self._withdrawn.set()
                self._set_phase(Phase.WITHDRAWN)
                self._core.emit(Withdrawn(self.wish.key, self._clock.now(), self.wish.id))

    async def _win(self, contender: Contender) -> TermBase | None:
        """Campaign until a term has begun; None if it was over before it could be told."""

        async def attempt() -> tuple[Claim, Loss]:
            # Each has its own: what an earlier one won and lost says nothing of this one.
            loss = Loss(self._end_term)
            claim = await contender.campaign(loss)
            if claim.valid_until - self._clock.now() <= self.wish.grace:
                raise StoreUnavailable(
                    f"{self.wish.key!r} was won, but its lease is not fresh enough to lead on"
                )
            return claim, loss

        claim, loss = await self._ride_out(attempt)
        if loss.early is not None:
            await self._let_go(contender)
            self._wanted.set()
            return None
        value = self.value.decode(errors="replace")
        term = self._make_term(self, self.wish.key, self.wish.id, value, claim)
        self.term = loss.term = term
        self._guarding.begin(contender)
        self._successor = None
        self._core.emit(
            Elected(self.wish.key, self._clock.now(), self.wish.id, term.token, term.valid_until)
        )
        self._unwatch = claim.lease.watch(claim.generation, self.wish.grace, loss)
        if self.wish.watchdog is not None:
            self._watch_work(term, self.wish.watchdog)
        return term

    def _end_term(self, term: TermBase, reason: str) -> None:
        """The one place where a term ends: it is void before anybody is told, or anything sent."""
        if term.reason is not None:
            return
        term.end(reason)
        self._changed.set()
        self._unwatch()
        if self._watchdog is not None:
            # It would keep the term, and all that it holds on to.
            self._watchdog.cancel()
            self._watchdog = None
        self._core.emit(
            TermEnded(self.wish.key, self._clock.now(), self.wish.id, term.token, reason)
        )

    async def _join(self, term: TermBase) -> None:
        """Wait for the leader's code, until the deadline: nobody else leads before it."""
        if not self._works.alive:
            return
        await self._clock.wait_for(self._works.wait_ended(), term.valid_until)
        overrunning = self._works.alive
        if not overrunning:
            return
        # Nobody believes in this term any more, so what follows is no release
        # but what a lapse would do: the session may live on for others.

        def report() -> None:
            if any(work in self._works for work in overrunning):
                self._core.emit(
                    WorkOverran(self.wish.key, self._clock.now(), self.wish.id, term.token)
                )

        # A loss told at the deadline, or by the store just now, needs a moment to be heard.
        moment = min(0.1, self.wish.ttl / 20)
        self._clock.call_at(max(term.valid_until, self._clock.now()) + moment, report)

    async def _let_go(self, contender: Contender, successor: str | None = None) -> None:
        """Remove our entry, however long the store takes to confirm it."""
        await riding_out(
            contender.leave if successor is None else lambda: contender.hand_over(successor),
            retry=self.wish.retry or DEFAULT_RETRY,
            clock=self._clock,
            chance=self._core.context.random,
            trouble=self._trouble,
            recovered=self._recovered,
        )

    async def _ride_out(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await riding_out(
            attempt,
            retry=self.wish.retry,
            clock=self._clock,
            chance=self._core.context.random,
            trouble=self._trouble,
            recovered=self._recovered,
        )

    def _watch_work(self, term: TermBase, limit: float) -> None:
        def look() -> None:
            if term.reason is not None:
                return
            now = self._clock.now()
            idle_since = now if self._iterator_calls else term.touched_at
            if now - idle_since >= limit:
                self._end_term(term, UNRESPONSIVE)
            else:
                self._watchdog = self._clock.call_at(idle_since + limit, look)

        look()

    def _trouble(self, error: StoreUnavailable, attempt: int, retry_in: float) -> None:
        self._failures = attempt
        self._core.emit(
            StoreTrouble(self.wish.key, self._clock.now(), str(error), attempt, retry_in)
        )

    def _recovered(self) -> None:
        """The store answers: told once an outage, by a campaign already while it waits."""
        failures, self._failures = self._failures, 0
        if failures:
            self._core.emit(StoreRecovered(self.wish.key, self._clock.now(), failures))

    # --- small means ---

    def _request_stop(self, reason: str) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._drive_task is None:
            self._withdrawn.set()
            self._set_phase(Phase.WITHDRAWN)
            return
        if self.term is not None:
            self._end_term(self.term, reason)
        self._interrupt(Phase.IDLE, Phase.CONTENDING)
        self._changed.set()

    def _interrupt(self, *phases: Phase) -> None:
        """Cancel the drive where it is in one of these phases.

        Never before its first step: a task that is cancelled then does not
        run at all, not even its clean-up. It sees by itself that it must stop.
        """
        started = self.phase is not Phase.STARTING
        if self._drive_task is not None and started and self.phase in phases:
            self._drive_task.cancel()

    async def _released_or_late(self, term: TermBase) -> None:
        await self._clock.wait_for(term.released.wait(), term.valid_until)

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        # Whoever waits wants a term, or the end: of thousands that enter, each would look in vain.
        if phase not in (Phase.IDLE, Phase.CONTENDING):
            self._changed.set()

    def _next_change(self) -> Awaitable[None]:
        self._changed.clear()
        return self._changed.wait()
