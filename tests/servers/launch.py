"""Become the given program, and die with the process that started it.

``python -I -S launch.py PARENT PROGRAM ARGUMENT...``. A launcher of its own rather than
a ``preexec_fn``: running Python between fork and exec is unsafe beside gRPC's threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the kernel was told to watch it.
        if os.getppid() != parent:
            sys.exit("launch.py: the starting process is gone")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
