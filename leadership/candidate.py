"""The candidate and its term, for threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

from . import inside
from .backend import Capability
from .checks import (
    checked_id,
    checked_key,
    checked_seconds,
    checked_timeout,
    checked_ttl,
    checked_value,
)
from .election import Candidacy, Wish
from .errors import AlreadyRunning, ConfigurationError, LeadershipLost, NotLeader
from .lease import Claim
from .retry import DEFAULT_RETRY, Retry
from .store import Store, StoreBase
from .term import TermBase
from .work import Kind

TermT = TypeVar("TermT", bound=TermBase)


class Term(TermBase):
    """One time in office: from a win until it is lost, resigned or stopped.

    As a context manager it resigns at the end of the block.
    """

    __slots__ = ("_candidate",)

    _candidate: Campaigner

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Block until the term is over, and say so; False when `timeout` seconds passed first.

        Told at `valid_until - grace` if no renewal was confirmed by then, at
        once when the store says that the term is over, or when we give way.
        """
        limit = checked_timeout(timeout)
        if self.reason is None:
            with contextlib.suppress(TimeoutError):
                self._candidate.core.call_within(limit, self.candidacy.wait_over, self)
        return self.reason is not None

    def resign(self, to: str | None = None) -> bool:
        """As `Candidate.resign`, but only ever this term; False when it was over already."""
        successor = self._candidate._checked_successor(to)
        core = self._candidate.core
        return core.call(self.candidacy.resign, inside.caller(self.candidacy), self, successor)

    def __enter__(self) -> Term:
        try:
            inside.enter(self.candidacy, block=True)
            caller = inside.caller(self.candidacy)
            self._candidate.core.call(self.candidacy.engage, self, caller)
            return self
        except BaseException:
            # The block is not entered, so nobody would leave it.
            self.candidacy.give_up(inside.caller(self.candidacy))
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            inside.leave(self.candidacy)
            caller = inside.caller(self.candidacy)
            if not self._candidate.core.nothing_to_end():
                self._candidate.core.call(self.candidacy.leave_block, self, caller)
        except BaseException:
            # Interrupted: the block is over all the same.
            self.candidacy.give_up(inside.caller(self.candidacy))
            raise


class CandidateBase(Generic[TermT]):
    """What the sync and the async candidate have in common; it never blocks."""

    _what: ClassVar[str] = "candidate"
    _needs: ClassVar[Capability] = Capability.ELECTION

    def __init__(
        self,
        store: StoreBase,
        key: str,
        id: str,
        ttl: float = 15.0,
        *,
        value: str | bytes | None = None,
        grace: float = 0.0,
        retry: Retry | None = DEFAULT_RETRY,
        watchdog: float | None = None,
        require: Iterable[Capability | str] = (),
        own_session: bool = False,
        guardian: bool = False,
    ) -> None:
        if not isinstance(store, StoreBase):
            raise ConfigurationError(
                f"store={store!r}: make one with new_store('etcd://127.0.0.1:2379')"
            )
        self._store = store
        self.core = core = store.core
        core.check_open()
        core.need(f"a {self._what}", self._needs)
        try:
            needed = [Capability(each) for each in require]
        except ValueError as error:
            known = ", ".join(Capability)
            raise ConfigurationError(f"require: {error}; known: {known}") from error
        core.need(f"this {self._what}", *needed)
        self.key = checked_key(key)
        self.id = checked_id(id)
        self.ttl = checked_ttl(ttl, core.backend)
        if isinstance(grace, bool) or not 0 <= grace <= self.ttl / 2:
            raise ConfigurationError(
                f"grace={grace!r}: give seconds from 0 to half the ttl ({self.ttl / 2:g}); the "
                "lease is renewed every third of the ttl, so more would end terms early"
            )
        if watchdog is not None:
            checked_seconds("watchdog", watchdog)
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigurationError(f"retry={retry!r}: give a Retry, or None to raise at once")
        data = checked_value(id if value is None else value, core.backend)
        self._wish = Wish(
            self.key,
            self.id,
            data,
            self.ttl,
            float(grace),
            retry,
            watchdog,
            bool(own_session),
            bool(guardian),
        )
        self._candidacy: Candidacy | None = None

    def is_leader(self) -> bool:
        """Whether we lead now: compares the clock with the deadline at this very call.

        Under a microsecond, no I/O, from any thread. False in a fork's child.
        A True says nothing about the next instant: hand `term.token` to what
        you write to.
        """
        candidacy = self._candidacy
        if candidacy is None:
            return False
        term = candidacy.term
        return term is not None and term.is_valid()

    @property
    def value(self) -> str:
        """What followers are told while we lead, as it was given or proclaimed."""
        candidacy = self._candidacy
        data = self._wish.value if candidacy is None else candidacy.value
        return data.decode(errors="replace")

    @property
    def term(self) -> TermT | None:
        """The term that we lead by, or the last one; None before the first."""
        candidacy = self._candidacy
        return None if candidacy is None else candidacy.term  # type: ignore[return-value]

    def _checked_successor(self, to: str | None) -> str | None:
        if to is None:
            return None
        self.core.need("resign(to=...)", Capability.HANDOVER)
        return checked_id(to)

    def _make_term(
        self, candidacy: Candidacy, key: str, id: str, value: str, claim: Claim
    ) -> TermBase:
        raise NotImplementedError

    def _new_candidacy(self, made: list[Candidacy], *, single: bool) -> Candidacy:
        """A new run.

        Args:
            made: gets it before anybody else: an interrupt may come before the return.
        """
        self.core.check_open()
        with self.core.starting:
            former = self._candidacy
            if former is not None and former.active:
                if former.overrun:
                    raise AlreadyRunning(
                        f"{self.id!r} leads {self.key!r} no more, but the code that led still "
                        "runs: let its loop body, block or function end first, "
                        f"or make another {self._what}"
                    )
                raise AlreadyRunning(
                    f"{self.id!r} is already a {self._what} for {self.key!r}: "
                    "end that run first (leave its loop or block, or call stop), "
                    f"or make another {self._what}"
                )
            # What was proclaimed stays the value of later terms.
            wish = self._wish if former is None else replace(self._wish, value=former.value)
            candidacy = Candidacy(self.core, wish, self._make_term, single=single, after=former)
            made.append(candidacy)
            self._candidacy = candidacy
        return candidacy

    def __repr__(self) -> str:
        role = "leader" if self.is_leader() else "not leader"
        return f"<{type(self).__name__} {self.key!r} id={self.id!r} ({role})>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {self._what} cannot be pickled: leadership belongs to one process; "
            f"make a {self._what} there"
        )


PATIENCE = 0.2
"""Seconds beyond its time-out that a campaign may take to withdraw; then it does so behind."""


def _give_up(made: list[Candidacy]) -> None:
    for candidacy in made:
        candidacy.give_up()


class Campaigner(CandidateBase[Term]):
    """What `Candidate` and `Lock` have in common for threads: to win, and to withdraw."""

    def _make_term(self, candidacy: Candidacy, key: str, id: str, value: str, claim: Claim) -> Term:
        term = Term(candidacy, key, id, value, claim, self.core.context.clock)
        term._candidate = self
        return term

    def _campaign(self, timeout: float | None) -> Term:
        limit = checked_timeout(timeout)
        made: list[Candidacy] = []
        try:
            candidacy = self._new_candidacy(made, single=True)
            try:
                term = self.core.call_within(limit, candidacy.win)
            except TimeoutError:
                self.core.call(candidacy.leave, PATIENCE)
                raise TimeoutError(f"{self.key!r} was not won within {timeout} s") from None
            if term is None:
                raise NotLeader(f"the {self._what} was stopped while it waited for {self.key!r}")
            assert isinstance(term, Term)
            return term
        except BaseException:
            # Interrupted at whatever step: nobody would hear that we lead.
            _give_up(made)
            raise

    def stop(self) -> None:
        """Withdraw: idempotent, from any thread, also while waiting; then we may run again.

        A run that has not begun yet (its first `next` is still to come) is not stopped.

        Returns when nothing is left of the run, or when waiting longer is of
        no use. Called by a function under `run`, by a signal's handler that
        interrupts the leader's code, or by a child task (or `asyncio.to_thread`)
        of that, it only requests, and returns. If the leader's code outlasts it,
        we may run again only once that has ended.
        """
        candidacy = self._candidacy
        if candidacy is not None:
            self._stop(candidacy)

    close = stop

    def _stop(self, candidacy: Candidacy) -> None:
        try:
            if not self.core.nothing_to_end():
                self.core.call(candidacy.stop, inside.caller(candidacy))
        except BaseException:
            # Interrupted: it withdraws all the same.
            candidacy.stop_soon(inside.caller(candidacy))
            raise

    def _leave(self, candidacy: Candidacy) -> None:
        try:
            if not self.core.nothing_to_end():
                self.core.call(candidacy.leave)
        except BaseException:
            # Interrupted: it withdraws all the same.
            candidacy.give_up()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class Candidate(Campaigner):
    """Contends for the leadership of `key`, in one of three ways, one at a time.

    What is *not* promised: no lock service can stop a paused process's late
    write by itself. Hand `term.token` to the resource that you write to, and
    let it refuse a smaller one.

    Args:
        store: from `new_store`.
        key: the election, such as `service/swarm/leader`.
        id: our name in logs; may repeat, ownership never rests on it.
        ttl: seconds after our death until another may lead.
        value: what followers are told, `id` if not given: usually the address
            that requests are routed to.
        grace: seconds before the deadline at which the loss is told, for work
            that needs time to end.
        retry: how to ride out the store's outages; None raises the first one.
        watchdog: resign when the leader's code has not called `term.check()`
            or its iterator for so many seconds.
        require: capabilities without which this candidate must not start.
        own_session: share no lease or session with other candidates.
        guardian: a tiny child process releases the key at once when this process is dead
            (killed, crashed), instead of after the ttl. Only for work that is dead
            then too: in this process, or in forked children, which it waits for. A
            program that this one starts is not seen: run it by `leadership run`, or
            leave this off. Linux; elsewhere `Unguarded` is told once, and the ttl holds.

    Raises:
        ConfigurationError: what was given can never work.
        NotSupported: the store lacks what is required.
    """

    def run_for_election(self) -> Elections:
        """An iterator of our standing: False first, then True and False in turn.

        Nothing happens before the first `next`. Leaving the loop in any way
        withdraws the candidate and releases the key; who keeps the iterator in
        a variable has to close it, best by `with`. After a term ends we contend
        again only when the loop comes back for more. The thread that takes
        True is the one whose body is known as the leader's code.

        Raises:
            AlreadyRunning: another run of this candidate is active (at the first `next`).
        """
        return Elections(self)

    def campaign(self, timeout: float | None = None) -> Term:
        """Block until we lead; the term is a context manager that resigns.

        Without a `with` block the candidate leads until it resigns, stops or
        loses: nobody's code is joined.

        Args:
            timeout: seconds to wait, None for ever.

        Raises:
            TimeoutError: we did not win in time, and have withdrawn (from a
                store that does not answer: withdraw behind).
            NotLeader: the candidate was stopped meanwhile.
            StoreError: the store refuses, or with `retry=None` could not be reached.
        """
        return self._campaign(timeout)

    def run(self, work: Callable[[Term], object]) -> None:
        """Call `work(term)` in each of our terms, in this thread, until `stop`.

        The term is over for `work` when `term.is_valid()` is False or
        `term.wait_lost()` returns; then it must return. `term.check()` raises
        `LeadershipLost`, which may leave `work`. The key is released only
        when `work` has returned. When it returns while we lead, we give way and
        contend again. Any other exception of it withdraws us, and is raised.
        """
        made: list[Candidacy] = []
        try:
            candidacy = self._new_candidacy(made, single=False)
            inside.enter(candidacy)
            caller = inside.caller(candidacy)
            self.core.call(candidacy.begin)
            while True:
                term = self.core.call(candidacy.lead, caller, Kind.FUNCTION)
                if term is None:
                    return
                assert isinstance(term, Term)
                try:
                    work(term)
                except LeadershipLost:
                    # Of this term; the loss of something else is the work's own error.
                    if term.is_valid():
                        raise
                self.core.call(candidacy.work_returned, term)
        finally:
            for candidacy in made:
                self._leave(candidacy)

    def proclaim(self, value: str | bytes) -> None:
        """Change what followers are told, now and in later terms.

        Raises:
            NotLeader: we do not lead, or no longer.
            ValueTooLarge: over the store's limit.
        """
        data = checked_value(value, self.core.backend)
        candidacy = self._candidacy
        if candidacy is None:
            raise NotLeader(f"{self.id!r} does not lead {self.key!r}: campaign first")
        self.core.call(candidacy.proclaim, data)

    def resign(self, to: str | None = None) -> bool:
        """Give way but stay a candidate; False, and nothing is done, when we do not lead.

        From any thread. `is_leader()` is False before the request is sent.
        Returns when the key is released (the leader's code has ended first),
        or, if it does not end or the store does not answer, at the deadline.
        A loop body or block that calls it is done with leading by that. Called
        by a function under `run`, by a signal's handler that interrupts the
        leader's code, or by a child task (or `asyncio.to_thread`) of that, it
        only requests, and returns.

        Args:
            to: the `id` of the candidate that is to lead next; of several with that
                id, the one that waits longest as far as is known. If it is gone when
                the key is released, any other may lead. None: whoever comes next.

        Raises:
            NotSupported: the backend cannot hand over to a named one; we lead on.
            NoSuccessor: no candidate is known to wait under that id; we lead on.
        """
        successor = self._checked_successor(to)
        candidacy = self._candidacy
        if candidacy is None or self.core.nothing_to_end():
            return False
        return self.core.call(candidacy.resign, inside.caller(candidacy), None, successor)


class _Progress:
    """How far a loop has come. Apart from the iterator, which nothing but the loop may hold."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.made: list[Candidacy] = []
        self.begun = False
        # What the loop was really given, so that an interrupted call loses nothing.
        self.term: TermBase | None = None
        self.closed = False

    @property
    def candidacy(self) -> Candidacy | None:
        return self.made[0] if self.made else None

    def step(self) -> bool:
        core = self.candidate.core
        candidacy = self.candidacy
        if self.closed:
            if candidacy is not None:
                # Closed by another thread, which waits for the body that is over now.
                self.candidate._leave(candidacy)
            raise StopIteration
        if candidacy is None:
            candidacy = self.candidate._new_candidacy(self.made, single=False)
        inside.enter(candidacy)
        if not self.begun:
            # Again, if an earlier call was interrupted before it came to it.
            core.call(candidacy.begin)
            self.begun = True
            if self.closed:
                # By another thread, before there was anything that it could withdraw.
                core.call(candidacy.leave)
                raise StopIteration
            return False
        if self.term is not None:
            core.call(candidacy.wait_in_iterator, self.term)
            self.term = None
            return False
        self.term = core.call(candidacy.lead, inside.caller(candidacy))
        if self.term is None:
            raise StopIteration
        return True


class Elections:
    """What `run_for_election` returns: an iterator, a context manager, with `close()`."""

    def __init__(self, candidate: Candidate) -> None:
        self._progress = _Progress(candidate)

    def __iter__(self) -> Elections:
        return self

    def __next__(self) -> bool:
        """Our next standing; blocks until it changes, interruptible by Ctrl-C.

        Raises:
            StopIteration: the candidate was stopped, or the iterator closed.
            StoreError: the store refuses, or with `retry=None` could not be reached.
        """
        progress = self._progress
        # An exception that passes through here keeps this frame in its traceback,
        # which somebody may keep. The iterator must be collected all the same.
        del self
        return progress.step()

    def close(self) -> None:
        """Withdraw and release; from any thread, at any moment, any number of times.

        By the thread that runs the loop: its body is over with this call. By
        any other: returns when the body has ended and the key is released,
        or at the deadline.
        """
        progress = self._progress
        progress.closed = True
        if progress.candidacy is not None:
            progress.candidate._stop(progress.candidacy)

    def __enter__(self) -> Elections:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that was left lets go of its iterator. There is no waiting
        # here: a destructor may run in any thread, under any lock.
        progress = self._progress
        if progress.candidacy is not None:
            progress.candidacy.give_up()


def NewCandidate(  # noqa: N802
    store: Store, key: str, id: str, ttl: float = 15.0, **options: Any
) -> Candidate:
    """`Candidate`, under the name that people who come from Go look for."""
    return Candidate(store, key, id, ttl, **options)
