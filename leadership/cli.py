"""The command `leadership`: whatever goes wrong is one line on stderr, and an exit status."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, cast

BAD = 2
"""The exit status for bad input, and for a store that does not answer or refuses."""

INTERNAL = 70
"""The exit status for what should not have happened (EX_SOFTWARE)."""

SHORT = 71
"""The exit status where the system gives no more descriptors, threads or memory (EX_OSERR)."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; the process's own if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _occupy_what_is_closed()
    try:
        status = _run(given)
    except KeyboardInterrupt:
        status = 130
    try:
        # Whoever started us may have closed it, and then there is none.
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    sys.exit(status)


def _occupy_what_is_closed() -> None:
    """Nothing that we open may be taken for our input or output; what we start does not get it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, so just this one.
            os.open(os.devnull, os.O_RDWR)


def discard_output() -> None:
    """Nobody reads our stdout any more: let the interpreter's last flush have somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(given: list[str]) -> int:
    try:
        import typer
    except ImportError:
        return _fail("the command line needs typer: pip install 'leadership[cli]'")
    from .child import CannotRunError
    from .errors import LeadershipError
    from .proxy_command import app

    # typer has no public name for the root of its usage errors.
    mro = typer.BadParameter.__mro__
    usage_error = cast(
        "type[typer.BadParameter]", next(c for c in mro if c.__name__ == "ClickException")
    )
    # The commands report themselves; the library's own log is for programs.
    logging.getLogger("leadership").addHandler(logging.NullHandler())
    try:
        status = typer.main.get_command(app).main(
            args=given or ["--help"], prog_name="leadership", standalone_mode=False
        )
    except usage_error as error:
        return _fail(f"{error.format_message()} (see 'leadership --help')")
    except CannotRunError as error:
        return _fail(str(error), error.status)
    except LeadershipError as error:
        return _fail(str(error))
    except typer.Abort:
        return 130
    except Exception as error:
        if _is_shortage(error):
            return _fail(f"the system gives this process no more: {error}; raise its limits", SHORT)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _fail(f"internal error: {error!r} at {where.filename}:{where.lineno}", INTERNAL)
    return int(status or 0)


def _is_shortage(error: Exception) -> bool:
    """Of descriptors, memory, processes or threads: nothing is wrong with the program."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, RuntimeError) and "start new thread" in str(error)


def _fail(message: str, status: int = BAD) -> int:
    from .reporting import printable

    if sys.stderr is not None:
        print("leadership:", printable(" ".join(message.split())), file=sys.stderr)
    return status
