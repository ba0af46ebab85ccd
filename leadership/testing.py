"""For tests of your own: a clock that you move, faults, and the kit that a backend must pass.

    from leadership import Candidate, new_store
    from leadership.testing import ManualClock

    clock = ManualClock()
    store = new_store("memory://test", clock=clock)
    ...
    clock.advance(20)      # every lease that was not renewed meanwhile has lapsed

    faults = FaultyBackend.under(store)
    with faults.cut_off():
        ...                # every call raises StoreUnavailable, every watch breaks

The kit (`BackendConformance` and its groups, `eventually`) needs pytest:
pip install 'leadership[testing]'. The clock and the faults do not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .clock import ManualClock
from .faults import FaultyBackend

if TYPE_CHECKING:
    from .conformance import BackendConformance, Conformance, Cuttable, eventually

__all__ = [
    "BackendConformance",
    "Conformance",
    "Cuttable",
    "FaultyBackend",
    "ManualClock",
    "eventually",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        _show_what_was_compared()
        from . import conformance
    except ModuleNotFoundError as error:
        from .errors import MissingExtra

        raise MissingExtra(
            f"the conformance kit needs {error.name}: pip install 'leadership[testing]'"
        ) from error
    return getattr(conformance, name)


def _show_what_was_compared() -> None:
    """Have pytest rewrite the kit's asserts as it does those of test files."""
    parts = ("", "_store", "_election", "_outage", "_backend")
    names = [f"{__package__}.conformance{part}" for part in parts]
    if not any(name in sys.modules for name in names):
        import pytest

        pytest.register_assert_rewrite(*names)
