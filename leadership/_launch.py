"""Become the given program, and die with the process that started it.

`python -I -S _launch.py PARENT FILE NAME ARGUMENT...`, in a process of its own:
code between fork and exec would run beside the threads of whoever forked. The
guardian has no threads, and calls the same functions after its own fork.
Python is imported here only as far as it must be: this delays every start.
"""

import os
import signal
import sys
from collections.abc import Mapping

PR_SET_PDEATHSIG = 1


def be_watched(parent: int) -> None:
    """Be killed when the parent dies, where the kernel can do that."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have died before the kernel was told to watch it.
        if os.getppid() != parent:
            os._exit(1)


def start_afresh(
    file: str | bytes,
    command: list[str] | list[bytes],
    environment: Mapping[str, str] | Mapping[bytes, bytes],
) -> None:
    """Become the program, with the signals as a program expects them; never returns."""
    # Python ignores the first two, `leadership run` the others, and what is
    # ignored stays so for the next program.
    for name in ("SIGPIPE", "SIGXFSZ", "SIGTTOU", "SIGTTIN"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execve(file, command, environment)
    except OSError as error:
        name = os.fsdecode(command[0])
        message = f"leadership: cannot run {name!r}: {error.strerror}\n"
        os.write(2, message.encode(errors="backslashreplace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def main() -> None:
    parent, file, *command = sys.argv[1:]
    be_watched(int(parent))
    start_afresh(file, command, os.environ)


if __name__ == "__main__":
    main()
