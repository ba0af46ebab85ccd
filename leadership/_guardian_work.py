"""The command that a guardian looks after, and everything that descends from it.

The process in which this runs is the subreaper: whatever the command starts,
in whatever session, has it for an ancestor, and comes to it as an orphan. So
when it has no child left, nothing of the command lives. Linux only, and the
standard library alone, as in `_guardian`.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
from collections.abc import Iterator
from typing import Any

from ._launch import be_watched, start_afresh

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Have the kernel hand orphaned descendants to this process, so that it can reap them."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tell_of_children() -> int:
    """A descriptor that becomes readable when a child has ended."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # A handler must be there, or nothing is written.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reading


class Cgroup:
    """A control group of the command's own: it ends as one, whatever it forks meanwhile."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @classmethod
    def make(cls, name: str) -> Cgroup | None:
        """One below our own, where we may; else None."""
        try:
            own = _own_cgroup()
            _remove_left_over(own, name.rpartition("-")[0])
            folder = f"{own}/{name}"
            os.makedirs(folder, exist_ok=True)
            if os.path.exists(f"{folder}/cgroup.kill"):
                return cls(folder)
            os.rmdir(folder)
        except (OSError, LookupError):
            return None
        return None

    def join(self) -> None:
        self._write("cgroup.procs", b"0")

    def kill(self) -> None:
        self._write("cgroup.kill", b"1")

    @property
    def is_empty(self) -> bool:
        try:
            with open(f"{self._folder}/cgroup.events", "rb") as events:
                return b"populated 0" in events.read()
        except OSError:
            return True

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _write(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{self._folder}/{name}", os.O_WRONLY)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)


def _remove_left_over(folder: str, ours: str) -> None:
    """The groups of those who died together with their guardian, in our numbering of processes."""
    for name in os.listdir(folder):
        prefix, _, pid = name.rpartition("-")
        if prefix == ours and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            # One in which something lives is not removed.
            with contextlib.suppress(OSError):
                os.rmdir(f"{folder}/{name}")


def _own_cgroup() -> str:
    """The folder of this process's group, in the hierarchy of version 2.

    Raises:
        LookupError, OSError: there is none.
    """
    with open("/proc/self/cgroup") as groups:
        path = next((line[3:].strip() for line in groups if line.startswith("0::/")), None)
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            place, _, kind = line.partition(" - ")
            _, _, _, root, mounted_at, *_ = place.split()
            if path is not None and kind.startswith("cgroup2 ") and root == "/":
                return mounted_at + path.rstrip("/")
    raise LookupError("no control groups of version 2")


class Work:
    """The command: child of this process, leader of a session of its own.

    Attributes:
        pid: the command's.
        gone: whether nothing of it lives, as `reap` last saw it.
    """

    def __init__(self, pid: int, cgroup: Cgroup | None) -> None:
        self.pid = pid
        self.gone = False
        self._cgroup = cgroup
        self._reaped = False

    def reap(self) -> int | None:
        """Take note of all that has ended; the command's status once it is among them."""
        status = None
        while True:
            try:
                pid, ended = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.gone = self._cgroup is None or self._cgroup.is_empty
                return status
            if pid == 0:
                return status
            if pid == self.pid:
                self._reaped = True
                status = os.waitstatus_to_exitcode(ended)

    def signal(self, number: int) -> bool:
        """Send it to all of the command; False where we may not."""
        if number == signal.SIGKILL:
            return self.kill()
        permitted = True
        # Its number stands for its group as long as it is not reaped.
        group = None if self._reaped else self.pid
        if group is not None:
            permitted = _send(number, os.killpg, group)
        for pid in list(descendants()):
            if group is None or _group_of(pid) != group:
                permitted = _send(number, os.kill, pid) and permitted
        return permitted

    def kill(self) -> bool:
        """One round, which what is forked meanwhile may survive: until `gone` says that none did.

        Returns:
            False where one may not be signalled.
        """
        if self._cgroup is not None:
            self._cgroup.kill()
        # The command at least, also where /proc tells of nobody.
        permitted = self._reaped or not self.pid or _send(signal.SIGKILL, os.killpg, self.pid)
        return kill_descendants() and permitted

    def close(self) -> None:
        """When it is gone: leave nothing behind."""
        if self._cgroup is not None:
            self._cgroup.remove()


def kill_descendants() -> bool:
    """SIGKILL for all that descends from this process; False where one may not be signalled."""
    permitted = True
    for pid in descendants():
        permitted = _send(signal.SIGKILL, os.kill, pid) and permitted
    return permitted


def _send(number: int, send: Any, to: int) -> bool:
    try:
        send(to, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def descendants() -> Iterator[int]:
    """Children, then their children: who is signalled first forks no more.

    All that are found at once come at once: who waits while others are looked into has
    forked meanwhile, and gone.
    """
    children = _children if os.path.exists(_children_of(os.getpid(), "self")) else _scanned()
    found = children(os.getpid())
    while found:
        yield from found
        found = [child for pid in found for child in children(pid)]


def _children_of(pid: int | str, thread: str) -> str:
    return f"/proc/{pid}/task/{pid if thread == 'self' else thread}/children"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(_children_of(pid, thread), "rb") as children:
                found += map(int, children.read().split())
    except OSError:
        # It ended meanwhile; its children are ours now, and found in the next round.
        pass
    return found


def _scanned() -> Any:
    """As `_children`, where the kernel does not tell: of all processes, as they are now."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b") ")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(name))
    return lambda pid: parents.pop(pid, [])


def _hear_again() -> None:
    """Undo the guardian's deafness; what was ignored before it stays so."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def start(descriptors: list[int]) -> Work:
    """Start the command that the leader asks for.

    Args:
        descriptors: a file with what to run, the working directory, and of stdin,
            stdout and stderr those that are open. They are closed.
    """
    adopt_orphans()
    with open(descriptors[0], "rb", closefd=False) as order:
        order.seek(0)
        file, command, environment, numbers, group = marshal.load(order)
    cgroup = Cgroup.make(group)
    guardian = os.getpid()
    # What is sent to the command before it hears for itself waits for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        try:
            _hear_again()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.setsid()
            be_watched(guardian)
            if cgroup is not None:
                cgroup.join()
            os.fchdir(descriptors[1])
            for number in range(3):
                os.close(number)
            for number, descriptor in zip(numbers, descriptors[2:], strict=True):
                os.dup2(descriptor, number)
            start_afresh(file, command, environment)
        finally:
            os._exit(126)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for descriptor in descriptors:
        os.close(descriptor)
    return Work(pid, cgroup)
