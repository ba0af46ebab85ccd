"""The guardian: a tiny process that outlives its leader, to release what that led.

    python -I -S -c ... FOLDER CHANNEL LEADER

Started by `guardian`, it gets all that it is told over CHANNEL, a socket whose
other end only the leader's process has; LEADER is that process's pidfd.
While the leader lives, it does nothing but to look after the leader's command,
if there is one (`_guardian_work`). It releases only when the pidfd says
that the whole thread group is gone, when no other process holds the leader's
end (a forked child, which may go on with the leader's work), and when nothing
of the command lives. All else is left to the ttl.

It imports the standard library alone, and of that as little as can be.
"""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._guardian_work import Work

LONGEST = 1 << 12
"""Bytes of a message; what is longer comes as a file."""
DESCRIPTORS = 8
_LONGEST_REASON = 1000

# A wait is measured on a clock that stands still in suspend.
_LONGEST_NAP = 0.25
_TRY_AGAIN = 0.1
# What ends wakes us up; what does not must not keep us busy.
_NEXT_ROUND = 0.005
# What survived so many may do so for long, and there may be many of them.
QUICK_ROUNDS = 200
_SLOW_ROUND = 0.05
# A leader that lives has started another guardian long before: it was cut off from
# this one, or has become another program.
_FORGOTTEN = 30.0

Clock = Callable[[], float]
Release = Callable[[Mapping[str, Any]], None]


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Channel:
    """Messages to and from the leader, each a tuple of plain data."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """What has come until now, and the descriptors that came with it."""
        size = array.array("i").itemsize
        while not self.ended:
            try:
                data, extra, _, _ = self._socket.recvmsg(
                    LONGEST, socket.CMSG_SPACE(DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:
                # The other end was closed before it had read all; said once, and before
                # what it had sent.
                continue
            if not data:
                self.ended = True
                return
            descriptors = array.array("i")
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(content[: len(content) - len(content) % size])
            yield marshal.loads(data), list(descriptors)

    def send(self, *message: Any) -> None:
        """Tell the leader, if it is there to hear it."""
        with contextlib.suppress(OSError):
            self._socket.send(marshal.dumps(message))


class Plan:
    """How to release one thing.

    Args:
        content: the module, its file, the function's name and its arguments, as marshal writes
            them: there may be thousands, so they are kept packed.
        seconds: after which, without its leader, it has lapsed by itself.
    """

    def __init__(self, content: bytes, seconds: float) -> None:
        module, path, name, _ = marshal.loads(content)
        self.content = content
        self._release = _load(module, path, name)
        self.seconds = seconds

    def carry_out(self) -> bool:
        """Whether it is released."""
        try:
            self._release(marshal.loads(self.content)[3])
        except Exception:
            # Whatever it is, there is nobody to tell it to.
            return False
        return True


def _load(module: str, path: str, name: str) -> Release:
    """A function of a module of its own: none of the packages that it is in are imported."""
    loaded = sys.modules.get(module)
    if loaded is None:
        from importlib.machinery import SourceFileLoader
        from importlib.util import module_from_spec, spec_from_loader

        loader = SourceFileLoader(module, path)
        spec = spec_from_loader(module, loader)
        assert spec is not None
        loaded = module_from_spec(spec)
        sys.modules[module] = loaded
        loader.exec_module(loaded)
    release: Release = getattr(loaded, name)
    return release


class Guardian:
    """The process's one object.

    Args:
        leader: a pidfd.
        clock: seconds, suspend included.
    """

    def __init__(self, channel: Channel, leader: int, clock: Clock) -> None:
        self._channel = channel
        self._leader = leader
        self._clock = clock
        self._plans: dict[int, Plan] = {}
        self._work: Work | None = None
        self._until: float | None = None
        self._told_overdue = False
        self._is_killing = False
        self._rounds = 0
        self._dismissed = False
        self._wake: int | None = None
        self._cut_at: float | None = None

    def run(self) -> None:
        """Until it is dismissed, or all is done after the leader's death."""
        self._channel.send("ready")
        while not self._dismissed:
            poll = select.poll()
            poll.register(self._leader, select.POLLIN)
            if not self._channel.ended:
                poll.register(self._channel, select.POLLIN)
            if self._wake is not None:
                poll.register(self._wake, select.POLLIN)
            happened = dict(poll.poll(self._nap()))
            # The death first: what was asked for just before it is not begun any more.
            if self._leader in happened:
                self._after_the_leader()
                return
            for message, descriptors in self._channel.receive():
                self._take(message, descriptors)
            self._look()
            if self._is_forgotten():
                return

    def _nap(self) -> float | None:
        """Milliseconds."""
        if self._is_killing and self._work is not None:
            return 1000 * until_next_round(self._rounds)
        if self._until is not None and self._work is not None:
            return 1000 * min(max(0.0, self._until - self._clock()), _LONGEST_NAP)
        return 1000 * _FORGOTTEN / 10 if self._channel.ended else None

    def _is_forgotten(self) -> bool:
        if not self._channel.ended or self._work is not None:
            return False
        if self._cut_at is None:
            self._cut_at = self._clock()
        longest = max((plan.seconds for plan in self._plans.values()), default=0.0)
        return self._clock() - self._cut_at > _FORGOTTEN + 3 * longest

    # --- while the leader lives ---

    def _take(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        match message:
            case ("guard", number, seconds, content):
                self._guard(number, seconds, content)
            case ("guard", number, seconds):
                self._guard(number, seconds, _content_of(descriptors))
            case ("forget", number):
                self._plans.pop(number, None)
            case ("start", until):
                self._until, self._told_overdue, self._is_killing = until, False, False
                self._rounds = 0
                # One of us may have stood still since it was asked for.
                if self._clock() < until:
                    self._start(descriptors)
                else:
                    _close(descriptors)
                    self._channel.send("late")
            case ("until", until):
                self._until = until
            case ("signal", number, serial):
                self._is_killing = self._is_killing or number == signal.SIGKILL
                permitted = self._work is None or self._work.signal(number)
                self._channel.send("signalled", serial, permitted)
            case ("end",):
                self._dismissed = True

    def _guard(self, number: int, seconds: float, content: bytes) -> None:
        # An older one of this number is void, also where the new one cannot be had.
        self._plans.pop(number, None)
        try:
            self._plans[number] = Plan(content, seconds)
        except Exception as error:
            self._channel.send("cannot", f"{type(error).__name__}: {error}"[:_LONGEST_REASON])

    def _start(self, descriptors: list[int]) -> None:
        from . import _guardian_work

        if self._wake is None:
            self._wake = _guardian_work.tell_of_children()
        try:
            self._work = _guardian_work.start(descriptors)
        except OSError as error:
            self._channel.send("failed", error.strerror or str(error))
        else:
            self._channel.send("started", self._work.pid)

    def _look(self) -> None:
        """After the command: what ended, and whether its time is over."""
        # Also what is told late, or of another signal: it would wake us up for ever.
        if self._wake is not None:
            _drain(self._wake)
        work = self._work
        if work is None:
            return
        status = work.reap()
        if work.gone:
            self._work = None
            work.close()
        # In one message, so that a command that left nothing is not taken for one that did.
        if status is not None:
            self._channel.send("ended", status, work.gone)
        elif work.gone:
            self._channel.send("gone")
        if work.gone:
            return
        is_overdue = self._until is not None and self._clock() >= self._until
        if is_overdue and not self._told_overdue:
            self._told_overdue = self._is_killing = True
            self._channel.send("overdue")
        if self._is_killing:
            # Round by round, for what is forked meanwhile.
            work.kill()
            self._rounds += 1

    # --- after the leader's death ---

    def _after_the_leader(self) -> None:
        died_at = self._clock()
        for message, descriptors in self._channel.receive():
            if message[0] in ("guard", "forget"):
                self._take(message, descriptors)
            else:
                _close(descriptors)
        longest = max((plan.seconds for plan in self._plans.values()), default=0.0)
        lapsed = died_at + longest
        # What has lapsed is another's: it needs no release, but the command an end all the same.
        if not self._is_work_gone(max(lapsed, died_at + _FORGOTTEN)):
            return
        if not self._is_let_go(lapsed):
            return
        # Many may hang on one session: that is released once.
        waiting = list({plan.content: plan for plan in self._plans.values()}.values())
        while True:
            waiting = [plan for plan in waiting if not plan.carry_out()]
            if not waiting or self._clock() >= lapsed:
                return
            select.poll().poll(1000 * _TRY_AGAIN)

    def _is_work_gone(self, until: float) -> bool:
        """Kill all of the command, until nothing of it is left."""
        work = self._work
        if work is None:
            return True
        self._rounds = 0
        while True:
            work.kill()
            self._rounds += 1
            work.reap()
            if work.gone:
                work.close()
                return True
            if self._clock() >= until:
                return False
            assert self._wake is not None
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            poll.poll(1000 * until_next_round(self._rounds))
            _drain(self._wake)

    def _is_let_go(self, until: float) -> bool:
        """Whether nobody holds the leader's end of the channel any more."""
        while not self._channel.ended:
            left = until - self._clock()
            if left <= 0:
                return False
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            poll.poll(1000 * min(left, _LONGEST_NAP))
            for _, descriptors in self._channel.receive():
                _close(descriptors)
        return True


def until_next_round(rounds: int) -> float:
    """Seconds until what survived so many rounds is killed again."""
    return _NEXT_ROUND if rounds < QUICK_ROUNDS else _SLOW_ROUND


def _content_of(descriptors: list[int]) -> bytes:
    """What the file among them holds; they are closed."""
    try:
        with open(descriptors[0], "rb", closefd=False) as file:
            file.seek(0)
            return file.read()
    except (OSError, IndexError):
        # It did not get through: none is found in it, and that is told.
        return b""
    finally:
        _close(descriptors)


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        pass


def _be_deaf() -> None:
    """What a terminal or a supervisor sends to all is meant for the leader."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM"):
        number = getattr(signal, name)
        # A handler is not handed on to the command, as being ignored would be.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def main(channel: int, leader: int, clock: Clock = _boottime) -> None:
    _be_deaf()
    # No folder of the leader's is kept busy.
    os.chdir("/")
    for descriptor in (channel, leader):
        os.set_inheritable(descriptor, False)
    Guardian(Channel(socket.socket(fileno=channel)), leader, clock).run()
