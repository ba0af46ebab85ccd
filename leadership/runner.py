"""What `leadership run` does: a command that runs only while its candidate leads.

The main thread campaigns, starts the command and reaps it. A thread of its
own, the guard, compares the clock with the term's deadline and ends the
command in time: it needs no answer of the store, no other thread, and no
reader of what we tell.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ._guardian_work import descendants
from .candidate import Candidate, Term
from .child import Child, adopt_orphans, find_program
from .clock import Clock
from .election import told_by_the_store
from .errors import LeadershipError
from .events import (
    Event,
    Released,
    StoreRecovered,
    StoreTrouble,
    TtlGranted,
    Unguarded,
    WorkOverran,
)
from .guarded_child import GuardedChild, GuardianDiedError, TooLateError
from .guardian import Guardian
from .reporting import Reporter
from .signals import telling_signals

LOST = 3
"""The exit status with `once`, when the term was over before the command."""

# A wait is measured on a clock that may stand still in suspend, so after a
# wake-up the guard looks at the right one no later than this.
_LONGEST_NAP = 0.25

# Of our own margin: where we are awake, we kill before the guardian does.
_EARLIER = 0.8
_REMINDER = 1.0
"""Seconds after which it is told what survives; then after twice as long each time."""
_RELEASE = 1.0
"""Seconds that a release may take before a further signal makes us leave without it."""
_GUARDIAN_START = 5.0
"""Seconds for a guardian to start."""

# Not all systems know them all, so they are not looked up at import.
_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


@dataclass(eq=False, slots=True)
class _Job:
    """The command in one term."""

    child: Child | GuardedChild
    term: Term
    stopping_since: float | None = None
    killed: bool = False
    surviving_since: float | None = None
    reminders: int = 0


def default_grace(ttl: float) -> float:
    """Seconds before the deadline at which the command is told, where none are given."""
    return min(10.0, ttl / 3)


def telling(reporter: Reporter) -> Callable[[Event], None]:
    """A hook that reports what only the store's events tell."""

    def hook(event: Event) -> None:
        at, key = event.at, event.key
        match event:
            case Released(token=token):
                reporter.say("released", f"released {key}", key=key, token=token, at=at)
            case StoreTrouble(error=error, attempt=1):
                reporter.say("store-trouble", f"store in trouble: {error}", error=error, at=at)
            case StoreRecovered():
                reporter.say("store-recovered", "the store answers again", at=at)
            case TtlGranted(asked=asked, granted=granted):
                sentence = f"the store granted a ttl of {granted:g} s instead of {asked:g} s"
                reporter.say("ttl-granted", sentence, asked=asked, granted=granted, at=at)
            case Unguarded(reason=reason):
                sentence = f"no guardian, after a crash the key lapses by its ttl: {reason}"
                reporter.say("unguarded", sentence, reason=reason, at=at)
            case WorkOverran(token=token):
                sentence = "the command outlived the deadline: two may be at work now"
                reporter.say("overran", sentence, key=key, token=token, at=at)

    return hook


class Runner:
    """Runs a command in each term of a candidate.

    Args:
        candidate: whose `grace` is the same as ours.
        command: its name and arguments.
        grace: seconds that the command gets to end, between SIGTERM and SIGKILL.
        once: end when the first term does, instead of contending again.
        guardian: starts the command, and ends it where we cannot; None: we do.

    Raises:
        CannotRunError: there is no such command.
    """

    def __init__(
        self,
        candidate: Candidate,
        command: Sequence[str],
        *,
        grace: float,
        once: bool,
        clock: Clock,
        reporter: Reporter,
        guardian: Guardian | None = None,
    ) -> None:
        self._candidate = candidate
        self._command = list(command)
        self._file = find_program(self._command[0])
        self._once = once
        self._guardian = guardian
        self._clock = clock
        self._say = reporter.say
        self._reporter = reporter
        # SIGKILL takes a moment to arrive, so it is sent this long before the deadline.
        self._margin = min(0.5, candidate.ttl / 20)
        self._grace = max(grace, self._margin)
        self._drain = grace
        self._status = 0
        self._asked = 0
        self._releasing_since = 0.0
        self._over = threading.Event()
        self._job: _Job | None = None
        self._mail: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run(self) -> int:
        """Contend until the command has ended by itself or a signal asks us to stop; the status.

        Call it on the main thread.

        Raises:
            StoreError: the store refuses.
            CannotRunError: the command could not be started.
        """
        adopt_orphans()
        guard = threading.Thread(target=self._guard, name="leadership-guard", daemon=True)
        # If it is ignored, the kernel reaps behind our back.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A line of ours must not stop us, where the terminal stops who writes in the background.
        for stopping in (signal.SIGTTOU, signal.SIGTTIN):
            signal.signal(stopping, signal.SIG_IGN)
        guard.start()
        with telling_signals(self._told, *_STOPPING, signal.SIGTSTP) as afterwards:
            try:
                self._say_waiting()
                self._candidate.run(self._work)
            finally:
                self._over.set()
                if self._asked:
                    # We are leaving already, with a status that says why.
                    afterwards.update(dict.fromkeys(afterwards, signal.SIG_IGN))
        self._mail.put(None)
        guard.join()
        return self._status

    # --- on the main thread ---

    def _work(self, term: Term) -> None:
        if self._asked or not term.is_valid():
            return
        self._say(
            "elected",
            f"{term.id} leads {term.key}, token {term.token}",
            key=term.key,
            id=term.id,
            token=term.token,
            valid_until=term.valid_until,
            at=term.elected_at,
        )
        watcher = threading.Thread(
            target=self._tell_loss, args=[term], name="leadership-loss", daemon=True
        )
        # First: where no thread can be started there must be no command either.
        watcher.start()
        while self._run_once(term):
            self._say(
                "again",
                "the command died with its guardian, and is started again",
                at=self._clock.now(),
            )

    def _run_once(self, term: Term) -> bool:
        """Run the command to its end; whether it is to run again in this very term."""
        child = self._start(term)
        if child is None:
            self._say("late", "the term was over before the command could start")
            if self._once:
                self._status = LOST
                self._candidate.stop()
            else:
                self._say_waiting()
            return False
        job = _Job(child, term)
        try:
            self._mail.put(functools.partial(self._begin, job))
            status = job.child.wait()
            by_itself = job.stopping_since is None
            if not job.child.gone:
                left_behind = "the command left processes behind"
                self._mail.put(functools.partial(self._stop, job, left_behind))
                job.child.wait_group()
        except BaseException:
            # The key is released when this is left, so nothing of the command may live on.
            job.child.signal(signal.SIGKILL)
            job.child.wait()
            job.child.wait_group()
            raise
        shown = status if status >= 0 else 128 - status
        how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        if isinstance(job.child, GuardedChild) and job.child.overdue:
            self._say_killed(job, "the guardian killed the command, whose time was over")
        self._releasing_since = self._clock.now()
        self._say("ended", f"the command {how}", status=shown, at=self._releasing_since)
        if self._asked:
            return False
        if by_itself and isinstance(job.child, GuardedChild):
            if job.child.lost_guardian and term.is_valid():
                return True
            by_itself = not job.child.was_killed
        if by_itself or self._once:
            self._status = shown if by_itself else LOST
            # From inside it only requests: the key is released after our return.
            self._candidate.stop()
        else:
            self._say_waiting()
        return False

    def _start(self, term: Term) -> Child | GuardedChild | None:
        """Start the command; None where the term was over by then."""
        environment = self._environment(term)
        while self._guardian is not None:
            if not self._guardian.wait_ready(_GUARDIAN_START):
                # What it might release while nothing of the command's tree hangs on it
                # may be at work still.
                self._guardian.give_up("the guardian does not start")
                self._guardian = None
                break
            # It may have been long in coming.
            if not term.is_valid():
                return None
            with contextlib.suppress(GuardianDiedError, TooLateError):
                return GuardedChild(
                    self._guardian,
                    self._file,
                    self._command,
                    environment,
                    self._last_moment(term),
                )
        return Child(self._file, self._command, environment) if term.is_valid() else None

    def _last_moment(self, term: Term) -> float:
        """When the guardian kills: where we can, we do it before."""
        return term.valid_until - _EARLIER * self._margin

    def _environment(self, term: Term) -> dict[str, str]:
        return {
            **os.environ,
            "LEADERSHIP_KEY": term.key,
            "LEADERSHIP_ID": term.id,
            "LEADERSHIP_TOKEN": str(term.token),
        }

    def _say_waiting(self) -> None:
        key, name = self._candidate.key, self._candidate.id
        sentence = f"{name} waits to lead {key}"
        self._say("waiting", sentence, key=key, id=name, at=self._clock.now())

    def _told(self, number: signal.Signals) -> None:
        """A signal has come; on the thread that hears of signals."""
        act = self._on_suspend if number == signal.SIGTSTP else self._on_signal
        self._mail.put(functools.partial(act, number))

    # --- on the guard's thread ---

    def _guard(self) -> None:
        while True:
            act: Callable[[], None] | None = self._look
            with contextlib.suppress(queue.Empty):
                act = self._mail.get(timeout=self._nap())
            if act is None:
                return
            try:
                act()
                self._look()
                self._reap_strangers()
            except Exception as error:
                # A command that nobody guards must not go on.
                self._say("fault", f"internal error: {error!r}", at=self._clock.now())
                if self._job is not None:
                    self._kill(self._job)

    def _reap_strangers(self) -> None:
        """As process number 1 of a container: all orphans in it come to us, whoever's they were."""
        ours = None if self._guardian is None else self._guardian.process_id
        if os.getpid() != 1 or ours is None:
            return
        for pid in descendants():
            if pid != ours:
                # Most are the guardian's.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _nap(self) -> float:
        job = self._job
        if job is None or job.child.gone:
            return _LONGEST_NAP
        nap = min(max(0.0, self._next_moment(job) - self._clock.now()), _LONGEST_NAP)
        # The guardian has to hear of each renewal in time.
        return nap if self._guardian is None else min(nap, self._candidate.ttl / 10)

    def _next_moment(self, job: _Job) -> float:
        """When the job must be told, or killed."""
        until = job.term.valid_until
        if job.stopping_since is None:
            return until - self._grace
        if job.killed:
            return float("inf")
        if told_by_the_store(job.term):
            # Another may lead already: no more time than a signal needs.
            return job.stopping_since + self._margin
        return min(until - self._margin, job.stopping_since + self._drain)

    def _look(self) -> None:
        job = self._job
        if job is None or job.child.gone:
            return
        if isinstance(job.child, GuardedChild) and job.term.reason is None:
            job.child.extend(self._last_moment(job.term))
        if job.stopping_since is None:
            if job.term.reason is not None:
                self._stop(job, job.term.reason)
            elif self._clock.now() >= self._next_moment(job):
                self._stop(job, "the lease was not renewed in time")
        if job.stopping_since is not None and self._clock.now() >= self._next_moment(job):
            self._kill(job)
        if job.killed or (isinstance(job.child, GuardedChild) and job.child.clearing):
            self._look_after_survivors(job)

    def _look_after_survivors(self, job: _Job) -> None:
        """What we wait for is told, with what is to be done: nobody but its user may end it."""
        now = self._clock.now()
        if job.surviving_since is None:
            job.surviving_since = now
        if now - job.surviving_since < _REMINDER * (2 ** (job.reminders + 1) - 1):
            return
        job.reminders += 1
        pids = job.child.survivors()
        left = job.term.valid_until - now
        if job.term.is_valid():
            meanwhile = f"{job.term.key} is kept until then"
        elif left > 0:
            meanwhile = f"another may lead in {left:.1f} s"
        else:
            meanwhile = "another may lead already"
        sentence = (
            f"some of the command lives on, killed {now - job.surviving_since:.0f} s ago: end it "
            f"as its own user (kill -9 {' '.join(map(str, pids))}); {meanwhile}"
        )
        self._say("surviving", sentence, pids=pids, at=now)

    def _begin(self, job: _Job) -> None:
        self._job = job
        pid = job.child.pid
        self._say("started", f"the command runs as process {pid}", pid=pid, at=self._clock.now())
        if self._asked:
            self._stop(job, "we were asked to stop")

    def _stop(self, job: _Job, reason: str) -> None:
        if job.stopping_since is None:
            job.stopping_since = self._clock.now()
            self._signal(job, signal.SIGTERM)
            left = max(0.0, self._next_moment(job) - job.stopping_since)
            sentence = f"{reason}: the command is stopped, and killed in {left:.1f} s"
            self._say(
                "stopping",
                sentence,
                reason=reason,
                valid_until=job.term.valid_until,
                at=job.stopping_since,
            )

    def _kill(self, job: _Job) -> None:
        job.killed = True
        if self._signal(job, signal.SIGKILL):
            self._say_killed(job, "the command had not ended in time: killed")

    def _say_killed(self, job: _Job, sentence: str) -> None:
        until = job.term.valid_until
        if isinstance(job.child, GuardedChild):
            # What the guardian knew, also where the term's end has been fixed since.
            until = job.child.until + _EARLIER * self._margin
        self._say("killed", sentence, valid_until=until, at=self._clock.now())

    def _signal(self, job: _Job, number: signal.Signals) -> bool:
        delivered = job.child.signal(number)
        if not delivered:
            sentence = (
                f"{number.name} to the command is not permitted, it runs as another user: "
                "let it give up its rights by another way, or run us with the right to end it"
            )
            self._say("not-permitted", sentence, name=number.name, at=self._clock.now())
        return delivered

    def _on_signal(self, number: signal.Signals) -> None:
        self._asked += 1
        job = self._job
        running = job is not None and not job.child.gone
        if self._asked == 1:
            self._status = 128 + number
            self._releasing_since = self._clock.now()
            self._say("signal", f"{number.name}: stopping", name=number.name, at=self._clock.now())
            if job is not None and running:
                self._stop(job, f"we were sent {number.name}")
            threading.Thread(target=self._withdraw, name="leadership-withdraw", daemon=True).start()
        elif job is not None and running:
            self._kill(job)
        elif self._clock.now() >= self._releasing_since + _RELEASE:
            # The store does not answer, and somebody has no patience: the key will lapse.
            self._say("left", "leaving at once; the key lapses by itself", at=self._clock.now())
            self._reporter.close(0.5)
            os._exit(128 + number)

    def _on_suspend(self, number: signal.Signals) -> None:
        sentence = "not suspended: the command could not be stopped in time (send SIGTERM to end)"
        self._say("not-suspended", sentence, at=self._clock.now())

    # --- on threads that may wait for the store ---

    def _withdraw(self) -> None:
        # Again, for the run may not have begun when the signal came.
        while not self._over.is_set():
            with contextlib.suppress(LeadershipError):
                self._candidate.stop()
            self._over.wait(0.1)

    def _tell_loss(self, term: Term) -> None:
        with contextlib.suppress(LeadershipError):
            term.wait_lost()
        self._mail.put(self._look)
