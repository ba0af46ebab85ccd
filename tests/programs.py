"""Running a small program in an interpreter of its own, to see how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap


def python(
    code: str, *, interrupt_at: str | None = None, seconds: float = 30, **environment: str
) -> str:
    """What a program prints; it must end by itself with status 0, in time and in silence.

    Args:
        interrupt_at: send SIGINT once this was printed.
        environment: variables for the program.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        printed = ""
        if interrupt_at is not None:
            assert process.stdout is not None
            while interrupt_at not in printed:
                line = process.stdout.readline()
                assert line, process.communicate()
                printed += line
            process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
        with process:
            pass
    assert not errors, errors
    assert process.returncode == 0, process.returncode
    return printed + rest
