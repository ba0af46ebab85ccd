"""Become the given program, and die with the process that started it.

`python -I -S _launch.py PARENT FILE NAME ARGUMENT...`, in a process of its own:
code between fork and exec would run beside the threads of whoever forked.
Python is imported here only as far as it must be: this delays every start.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, file, *command = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have died before the kernel was told to watch it.
        if os.getppid() != int(parent):
            sys.exit(1)
    # Python ignores the first two, `leadership run` the others, and what is
    # ignored stays so for the next program.
    for name in ("SIGPIPE", "SIGXFSZ", "SIGTTOU", "SIGTTIN"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execv(file, command)
    except OSError as error:
        sys.stderr.write(f"leadership: cannot run {command[0]!r}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
