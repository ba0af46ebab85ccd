"""For tests of your own: a clock that you move, and the kit that a new backend must pass.

    from leadership import Candidate, new_store
    from leadership.testing import ManualClock

    clock = ManualClock()
    store = new_store("memory://test", clock=clock)
    ...
    clock.advance(20)      # every lease that was not renewed has lapsed

`BackendConformance` needs pytest: pip install 'leadership[testing]'.
"""

from __future__ import annotations

from .clock import ManualClock

try:
    from .conformance import (
        BackendConformance,
        ClosingConformance,
        CompareAndSwapConformance,
        Conformance,
        ElectionConformance,
        KeyValueConformance,
        LockConformance,
        QueueConformance,
        TtlConformance,
        WatchConformance,
        eventually,
    )
except ModuleNotFoundError as error:
    from .errors import MissingExtra

    raise MissingExtra(
        f"the conformance kit needs {error.name}: pip install 'leadership[testing]'"
    ) from error

__all__ = [
    "BackendConformance",
    "ClosingConformance",
    "CompareAndSwapConformance",
    "Conformance",
    "ElectionConformance",
    "KeyValueConformance",
    "LockConformance",
    "ManualClock",
    "QueueConformance",
    "TtlConformance",
    "WatchConformance",
    "eventually",
]
