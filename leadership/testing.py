"""For tests of your own: a clock that you move, and the kit that a new backend must pass.

    from leadership import Candidate, new_store
    from leadership.testing import ManualClock

    clock = ManualClock()
    store = new_store("memory://test", clock=clock)
    ...
    clock.advance(20)      # every lease that was not renewed meanwhile has lapsed

The kit (`BackendConformance` and its groups, `eventually`) needs pytest:
pip install 'leadership[testing]'. The clock does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clock import ManualClock

if TYPE_CHECKING:
    from .conformance import BackendConformance, Conformance, eventually

__all__ = ["BackendConformance", "Conformance", "ManualClock", "eventually"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import conformance
    except ModuleNotFoundError as error:
        from .errors import MissingExtra

        raise MissingExtra(
            f"the conformance kit needs {error.name}: pip install 'leadership[testing]'"
        ) from error
    return getattr(conformance, name)
