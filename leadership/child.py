"""A command as a child process: its process group is signalled, joined and reaped as one.

POSIX only. On Linux the command dies with this process (`_launch`), and
orphans of its group come to us to be reaped; elsewhere both are left to the
system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("_launch.py")
_PR_SET_CHILD_SUBREAPER = 36

# Leftovers of a group tell nobody when they end, so they are looked after.
_LOOK_AGAIN = 0.01


class CannotRunError(Exception):
    """The command cannot be started; `status` is what a shell would exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def find_program(name: str) -> str:
    """The file that `name` stands for, as a shell finds it.

    Raises:
        CannotRunError: there is none (127), or it may not be executed (126).
    """
    found = shutil.which(name)
    if found is not None:
        return os.path.abspath(found)
    if os.path.exists(name) and os.sep in name:
        raise CannotRunError(f"{name!r} is not an executable file", 126)
    if os.sep not in name:
        for directory in os.get_exec_path():
            if os.path.isfile(os.path.join(directory, name)):
                raise CannotRunError(f"{name!r} was found in {directory}, not executable", 126)
    raise CannotRunError(f"{name!r} was not found: check the name and PATH", 127)


def adopt_orphans() -> None:
    """Have the kernel hand orphaned descendants to this process, so that it can reap them."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child:
    """A running command, leader of a session and process group of its own.

    Make it on the main thread: on Linux it is killed when the *thread* that
    started it ends.

    Args:
        file: what `find_program` found.
        command: its name and arguments.
        environment: all of its environment.
    """

    def __init__(self, file: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), file]
        try:
            self._process = subprocess.Popen(
                [*launcher, *command], env=environment, start_new_session=True
            )
        except OSError as error:
            raise CannotRunError(f"cannot start {command[0]!r}: {error.strerror}", 126) from error
        self.pid = self._process.pid
        # While it is held nothing is reaped, so the group's number is still its own.
        self._reaping = threading.Lock()
        self._gone = False

    @property
    def gone(self) -> bool:
        """Whether the command, and all that it left in its process group, has ended."""
        return self._gone

    def survivors(self) -> list[int]:
        """The leader of the processes that live now: the group, as `kill` takes it."""
        return [] if self._gone else [-self.pid]

    def signal(self, number: signal.Signals) -> bool:
        """Signal the whole group, if there is any of it left. From any thread.

        Returns:
            False where it lives on and we may not signal it: it runs as another user.
        """
        with self._reaping:
            if not self._gone:
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:
                    pass
                except PermissionError:
                    # macOS says so of a group of zombies too.
                    return sys.platform == "darwin"
        return True

    def wait(self) -> int:
        """Wait for the command itself; its status, negative where a signal ended it."""
        if sys.platform == "linux":
            self._wait_without_reaping()
        else:
            self._process.wait()
        with self._reaping:
            status = self._process.wait()
            self._gone = self._is_group_empty()
        return status

    def _wait_without_reaping(self) -> None:
        """Until it is reaped, under the lock, its number cannot become another's."""
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            if ended.si_pid == self.pid:
                return
            # An orphan of the command's, which came to us.
            with self._reaping:
                os.waitpid(ended.si_pid, 0)

    def wait_group(self) -> None:
        """After `wait`: wait for whatever the command left behind in its group."""
        pause = threading.Event()
        while not self._gone:
            pause.wait(_LOOK_AGAIN)
            with self._reaping:
                self._gone = self._is_group_empty()

    def _is_group_empty(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return sys.platform == "darwin"
        # What is dead does nothing any more, though its parent, who has left
        # the group, may never reap it.
        return sys.platform == "linux" and not _has_living_member(self.pid)


def _has_living_member(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # It may end while we look.
        with contextlib.suppress(OSError):
            state, _, its_group, *_ = stat.read_text().rpartition(") ")[2].split()
            if int(its_group) == group and state not in "ZX":
                return True
    return False
