"""Signals, told on a thread of their own.

Python runs its handlers on the main thread, between two steps of it. A signal
that comes just as the main thread begins to wait is thus noticed only when
that wait ends, which for a leader or a follower may be never. The number is
written to a pipe at once, whatever any thread does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler must be there, so that the default action is not taken."""


@contextmanager
def telling_signals(
    act: Callable[[signal.Signals], None], *numbers: int
) -> Iterator[dict[int, Any]]:
    """Call `act` with each of these signals that comes while the block runs.

    On the main thread only. What was ignored, as under nohup, stays so.

    Yields:
        by number, how each is handled after the block: as before, unless that is changed.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def tell() -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                if received[0] in before:
                    act(signal.Signals(received[0]))

    before: dict[int, Any] = {
        number: signal.signal(number, _nothing)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=tell, name="leadership-signals", daemon=True)
    thread.start()
    try:
        yield before
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        thread.join()
