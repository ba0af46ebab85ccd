"""A command as a child of the guardian, seen from the process that has it run.

As `child.Child`; but what counts as the command is all that descends from it,
in whatever session, and the guardian ends it when our time is over, whether
we can or not. Linux only.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ._guardian import until_next_round
from ._guardian_work import Cgroup, Work, descendants
from .child import CannotRunError
from .guardian import Guardian, Order, group_name

_START = 5.0
"""Seconds for the guardian to start the command."""
_PATIENCE = 0.05
"""Seconds for the guardian to confirm a signal."""


class GuardedChild:
    """A running command.

    Args:
        guardian: one that is ready.
        file: what `find_program` found.
        command: its name and arguments.
        environment: all of its environment.
        until: when the guardian kills it, on the machine's clock, unless that is moved on.

    Raises:
        GuardianDiedError: there is none any more.
        TooLateError: the time was over before it could be started, and nothing ran.
        CannotRunError: it cannot be started.
    """

    def __init__(
        self,
        guardian: Guardian,
        file: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        until: float,
    ) -> None:
        self._guardian = guardian
        self.until = until
        self._changed = threading.Condition()
        self._serials = itertools.count(1)
        self._answers: dict[int, bool] = {}
        self._failure: str | None = None
        self._status: int | None = None
        self._gone = False
        self.pid = 0
        self.clearing = False
        """Whether the guardian has died, and what it had is being ended by us."""
        self.lost_guardian = False
        """Whether the guardian died, and the command with it."""
        self.overdue = False
        """Whether the guardian killed it, because its time was over."""
        guardian.attend(self._told, self._clear)
        if not guardian.start(Order(file, command, environment, until)):
            raise GuardianDiedError
        with self._changed:
            if not self._changed.wait_for(self._is_decided, _START):
                # It stands still: the next one may not.
                guardian.kill()
                self._changed.wait_for(self._is_decided)
        if self._failure is not None:
            raise CannotRunError(f"cannot start {command[0]!r}: {self._failure}", 126)
        if not self.pid:
            raise TooLateError if self.overdue else GuardianDiedError

    def _is_decided(self) -> bool:
        return bool(self.pid or self._failure or self.lost_guardian or self.overdue)

    @property
    def was_killed(self) -> bool:
        """Whether it did not end by itself."""
        return self.lost_guardian or self.overdue

    @property
    def gone(self) -> bool:
        """Whether nothing of the command lives."""
        return self._gone

    def survivors(self) -> list[int]:
        """The processes of the command that live now."""
        guardian = self._guardian.process_id
        return sorted(pid for pid in descendants() if pid != guardian)

    def signal(self, number: signal.Signals) -> bool:
        """Signal all of the command. From any thread.

        Returns:
            False where some of it lives on and we may not signal it.
        """
        if self._gone:
            return True
        serial = next(self._serials)
        self._guardian.signal(int(number), serial)
        with self._changed:
            self._changed.wait_for(lambda: serial in self._answers or self._gone, _PATIENCE)
            permitted = self._answers.pop(serial, None)
        if permitted is None and number == signal.SIGKILL and not self._gone:
            # It stands still. The kernel takes the command with it, and we the rest.
            self._guardian.kill()
        return permitted is not False

    def extend(self, until: float) -> None:
        """Let the command live until then, if that is later than what was said before."""
        if until > self.until:
            self.until = until
            self._guardian.extend(until)

    def wait(self) -> int:
        """Wait for the command itself; its status, negative where a signal ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None)
            assert self._status is not None
            return self._status

    def wait_group(self) -> None:
        """After `wait`: wait for whatever descends from it."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone)

    # --- on the guardian's thread ---

    def _told(self, message: tuple[Any, ...]) -> None:
        with self._changed:
            match message:
                case ("started", pid):
                    self.pid = pid
                case ("failed", why):
                    self._failure, self._gone = why, True
                case ("signalled", serial, permitted):
                    self._answers[serial] = permitted
                case ("late",):
                    self.overdue = self._gone = True
                case ("overdue",):
                    self.overdue = True
                case ("ended", status, gone):
                    self._status, self._gone = status, gone
                case ("gone",):
                    self._gone = True
            self._changed.notify_all()

    def _clear(self) -> None:
        """The guardian has died: what it had comes to us, and ends before another may release."""
        if self._gone:
            return
        self.clearing = True
        rest = Work(0, Cgroup.make(group_name()))
        pause = threading.Event()
        rounds = 0
        while not rest.gone:
            rest.kill()
            rounds += 1
            rest.reap()
            if not rest.gone:
                pause.wait(until_next_round(rounds))
        rest.close()
        with self._changed:
            self.lost_guardian = True
            if self._status is None:
                self._status = -signal.SIGKILL
            self._gone = True
            self._changed.notify_all()


class TooLateError(Exception):
    """The guardian was asked when the command's time was over: we, or it, had stood still."""


class GuardianDiedError(Exception):
    """The guardian died before the command was started: another is being started."""
