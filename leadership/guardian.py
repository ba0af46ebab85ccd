"""The leader's side of the guardian: one tiny process for all that this process leads.

It is started with the first use, started again when it dies, and ended with
the last use. What it is told goes out on a thread of its own, so that nobody
who renews a lease ever waits for it. What it does, and when, stands in
`_guardian`.
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._guardian import DESCRIPTORS, Channel
from .backend import ReleasePlan
from .guardian_outbox import Outbox

# Modules of ours are found without the package's own start, which imports nearly everything.
_PROGRAM = """\
import sys, types
package = types.ModuleType("leadership")
package.__path__ = [sys.argv[1]]
sys.modules["leadership"] = package
from leadership._guardian import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
# No secret that may be in the environment goes with it; this is for the linker, and for TLS.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_USELESS = 5
"""So many that were never ready, one after the other, are enough."""
_PATIENCE = 1.0
"""Seconds for one that is not wanted any more to end by itself."""
_LOOK_AGAIN = 1.0
"""Seconds after which it is noticed that our end of the channel was closed under us."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command for the guardian to run.

    Attributes:
        file: the program.
        command: its name and arguments.
        environment: all of its environment.
        until: when all of it is killed, on the machine's clock, unless that is moved on.
    """

    file: str
    command: Sequence[str]
    environment: Mapping[str, str]
    until: float


def group_name() -> str:
    """Of the control group of what is run for this process.

    Two containers may see one control group, and number their processes alike.
    """
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"leadership-{space}-{os.getpid()}"


Told = Callable[[tuple[Any, ...]], None]


def trouble() -> str | None:
    """Why there cannot be a guardian here, or None."""
    if not hasattr(os, "pidfd_open"):
        return "this system cannot tell for sure that a process is dead (it has no pidfd)"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this kernel cannot tell for sure that a process is dead (pidfd: {error.strerror})"
    if not sys.executable or getattr(sys, "frozen", False):
        return "this program brings no Python of its own that could run the guardian"
    return None


class _Process:
    """One run of the guardian: the process, and our end of its channel."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as passed:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            failed.callback(ours.close)
            passed.callback(theirs.close)
            pidfd = os.pidfd_open(os.getpid())
            passed.callback(os.close, pidfd)
            numbers = [_beyond_standard(each, passed) for each in (theirs.fileno(), pidfd)]
            folder = str(Path(__file__).parent)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, folder, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=numbers,
                start_new_session=True,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
            failed.pop_all()
        self.pid = self._process.pid
        self._socket = ours
        self.channel = Channel(ours)
        self._is = os.fstat(ours.fileno())

    @property
    def is_ours(self) -> bool:
        """Whether our end is still what it was: daemonizing code closes whatever is open."""
        try:
            now = os.fstat(self._socket.fileno())
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (self._is.st_dev, self._is.st_ino)

    def send(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Whether it was taken; False where the guardian does not read.

        Raises:
            OSError: it has died.
        """
        try:
            socket.send_fds(self._socket, [message], descriptors, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True

    def end(self, patience: float) -> None:
        """See that it is dead and reaped: at once, or after so many seconds by force."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.is_ours:
            self._socket.close()
        else:
            # The number may be another's by now.
            self._socket.detach()

    def kill(self) -> None:
        self._process.kill()


class Guardian:
    """Keeps one guardian alive while there is use for it; its methods are for any thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.unable = trouble()
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._outbox = Outbox(self._tell_trouble)
        self._thread: threading.Thread | None = None
        self._process: _Process | None = None
        self._ready = False
        self._useless = 0
        self._ended = _uncancelled()
        self._ended.set_result(None)
        self._told: Told = lambda message: None
        self._died: Callable[[], None] = lambda: None
        self._hearers: dict[int, Callable[[str], None]] = {}

    # --- for whoever leads ---

    def use(self, on_trouble: Callable[[str], None]) -> int:
        """Have a guardian from now on, until `leave`. Never blocks.

        Args:
            on_trouble: is told, on whatever thread, why there is none after all, or why
                it could not release something.

        Returns:
            what `leave` takes.
        """
        with self._changed:
            number = next(self._numbers)
            if self.unable is None:
                self._begin()
            self._hearers[number] = on_trouble
            unable = self.unable
        if unable is not None:
            on_trouble(unable)
        return number

    def leave(self, use: int) -> Future[None]:
        """The use is over. Done when the guardian is gone, if that was the last."""
        with self._changed:
            self._hearers.pop(use, None)
            if not self._hearers:
                # Its end is what our thread wakes up from.
                self._say("end")
                self._changed.notify_all()
                return self._ended
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def guard(self, plan: ReleasePlan, seconds: float, former: int | None = None) -> int:
        """Have this carried out when this process is dead, until `forget`.

        Args:
            seconds: after our death, in which it lapses by itself.
            former: what this one takes the place of.

        Returns:
            what `forget` takes.
        """
        function: Any = plan.release
        code = function.__code__.co_filename
        where = (function.__module__, code, function.__name__)
        # Version 2: what is equal is written alike, whoever else holds parts of it.
        content = marshal.dumps((*where, dict(plan.arguments)), 2)
        with self._changed:
            number = self._outbox.hold(content, seconds, former)
            self._flush()
        return number

    def forget(self, number: int) -> None:
        """It is released, or nobody's any more."""
        with self._changed:
            self._outbox.drop(number)
            self._flush()

    def give_up(self, reason: str) -> None:
        """For good, in this process: end it, so that it releases nothing, and tell why."""
        with self._changed:
            self.unable = self.unable or reason
            self._outbox.drop_all()
            hearers = list(self._hearers.values())
            process = self._process
            if process is not None:
                process.kill()
            self._changed.notify_all()
        for hear in hearers:
            hear(reason)

    # --- for whoever has a command run ---

    def attend(self, told: Told, died: Callable[[], None]) -> None:
        """Who is told of the command, on our thread, and of the guardian's death before the next.

        It must see that nothing of the command lives at its return.
        """
        self._told, self._died = told, died

    def wait_ready(self, timeout: float) -> bool:
        """Wait until a guardian runs, at most `timeout` seconds; whether one does."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.unable is not None, timeout)
            return self._ready and self.unable is None

    def start(self, order: Order) -> bool:
        """Have the command run, with our own input and output; False where no guardian is ready."""
        content = (
            os.fsencode(order.file),
            [os.fsencode(each) for each in order.command],
            {os.fsencode(k): os.fsencode(v) for k, v in order.environment.items()},
            # What Python opened since is closed for other programs: it was not there.
            tuple(number for number in range(3) if _is_handed_on(number)),
            group_name(),
        )
        written = os.memfd_create("leadership-order")
        descriptors = [written]
        try:
            with open(written, "wb", closefd=False) as file:
                marshal.dump(content, file)
            descriptors.append(os.open(".", os.O_PATH | os.O_CLOEXEC))
            descriptors += [os.dup(number) for number in content[3]]
            assert len(descriptors) <= DESCRIPTORS
        except BaseException:
            _close(descriptors)
            raise
        with self._changed:
            return self._say("start", order.until, descriptors=descriptors)

    def extend(self, until: float) -> None:
        """Have the command killed then, and not before."""
        with self._changed:
            self._say("until", until)

    def signal(self, number: int, serial: int) -> None:
        """Have all of the command signalled; `signalled`, with this serial, is the answer."""
        with self._changed:
            self._say("signal", number, serial)

    def kill(self) -> None:
        """End this guardian, and with it the command that it started, by the kernel's hand."""
        with self._changed:
            if self._process is not None:
                self._process.kill()

    @property
    def process_id(self) -> int | None:
        """Of the guardian that runs."""
        with self._changed:
            return None if self._process is None else self._process.pid

    # --- under the lock ---

    @property
    def _wanted(self) -> bool:
        return bool(self._hearers) and self.unable is None

    def _begin(self) -> None:
        if self._thread is not None:
            if not self._hearers:
                # It goes on, or is started again, but not for whom the last one left.
                self._ended.set_result(None)
                self._ended = _uncancelled()
            return
        thread = threading.Thread(target=self._run, name="leadership-guardian", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.unable = f"no thread can be started to look after it: {error}"
        else:
            self._ended = _uncancelled()
            self._thread = thread

    def _say(self, word: str, *rest: Any, descriptors: Sequence[int] = ()) -> bool:
        """Whether it goes to a guardian that is ready."""
        if self._process is None or not self._ready:
            _close(descriptors)
            return False
        kind = (word, *rest[:1]) if word == "signal" else word
        self._outbox.say(kind, (word, *rest), descriptors)
        self._flush()
        return True

    def _flush(self) -> bool:
        """Send what there is; False where the guardian does not read. Never blocks."""
        process = self._process
        if process is None or not self._ready or not process.is_ours:
            return True
        try:
            return self._outbox.flush(process.send)
        except OSError:
            # It has died, which our thread sees too; or there is no room for now, and our
            # thread tries it again.
            return True

    # --- on our thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._wanted:
                    self._thread = None
                    self._ended.set_result(None)
                    return
            self._attend_one()

    def _attend_one(self) -> None:
        """Start one, and look after it until it is gone."""
        try:
            process = _Process()
        except OSError as error:
            self._useless += 1
            if self._useless == _USELESS:
                # There may be room again: it is tried on.
                why = error.strerror or str(error)
                self._tell_trouble(f"the guardian cannot be started now: {why}")
        else:
            with self._changed:
                self._process = process
            self._listen(process)
            with self._changed:
                self._process = None
                was_ready, self._ready = self._ready, False
                wanted = self._wanted
                self._outbox.begin_anew()
            process.end(0.0 if wanted else _PATIENCE)
            if not wanted:
                return
            self._useless = 0 if was_ready else self._useless + 1
            if was_ready:
                self._died()
            elif self._useless >= _USELESS:
                self.give_up("the guardian cannot be started: it ends at once")
                return
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._useless, _USELESS + 3))
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted, pause)

    def _listen(self, process: _Process) -> None:
        """Until it has died, or is not wanted any more and knows it."""
        while process.is_ours and not process.channel.ended:
            with self._changed:
                if not self._wanted:
                    return
                blocked = not self._flush()
            poll = select.poll()
            poll.register(process.channel, select.POLLIN | (select.POLLOUT if blocked else 0))
            poll.poll(1000 * _LOOK_AGAIN)
            if process.is_ours:
                for message, _ in process.channel.receive():
                    self._hear(message)

    def _hear(self, message: tuple[Any, ...]) -> None:
        if message[0] == "ready":
            with self._changed:
                self._ready = True
                self._flush()
                if not self._wanted:
                    self._say("end")
                self._changed.notify_all()
        elif message[0] == "cannot":
            self._tell_trouble(f"the guardian cannot release: {message[1]}")
        else:
            self._told(message)

    def _tell_trouble(self, reason: str) -> None:
        with self._changed:
            hearers = list(self._hearers.values())
        for hear in hearers:
            hear(reason)


def _uncancelled() -> Future[None]:
    """For several who wait: one of them who gives up ends it for nobody."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


def _beyond_standard(descriptor: int, passed: contextlib.ExitStack) -> int:
    """A copy whose number is not that of an input or output, which the guardian has of its own."""
    # Not on all systems that load this module.
    import fcntl

    copy: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    passed.callback(os.close, copy)
    return copy


def _is_handed_on(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_guardian: Guardian | None = None
_abandoned: list[Guardian] = []
_making = threading.Lock()


def guardian() -> Guardian:
    """This process's guardian, which is started with its first use."""
    global _guardian
    with _making:
        if _guardian is None:
            _guardian = Guardian()
        return _guardian


def _after_fork_in_child() -> None:
    global _guardian, _making
    _making = threading.Lock()
    if _guardian is not None:
        # Our end stays open here, on purpose: a forked child may go on with the
        # leader's work, and while it lives the guardian releases nothing.
        _abandoned.append(_guardian)
        _guardian = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
