"""The conformance kit: what every backend must do, ours and a stranger's.

Subclass `BackendConformance`, say how to open a store, and run pytest:

    class TestMine(BackendConformance):
        def make_store(self) -> Store:
            return new_store("mine://127.0.0.1:1234")

The tests are grouped by capability; a group that the backend does not offer
shows as skipped. All keys are below one fresh directory a test, which is
removed afterwards.
"""

from __future__ import annotations

from .conformance_backend import ContenderConformance, RawConformance
from .conformance_election import (
    ClosingConformance,
    ElectionConformance,
    HandoverConformance,
    LockConformance,
    QueueConformance,
)
from .conformance_outage import Cuttable, OutageConformance
from .conformance_store import (
    CompareAndSwapConformance,
    Conformance,
    KeyValueConformance,
    TtlConformance,
    WatchConformance,
    eventually,
)


class BackendConformance(
    KeyValueConformance,
    TtlConformance,
    CompareAndSwapConformance,
    WatchConformance,
    LockConformance,
    ElectionConformance,
    QueueConformance,
    HandoverConformance,
    ClosingConformance,
    OutageConformance,
    ContenderConformance,
    RawConformance,
):
    """All groups; subclass this and give `make_store`."""


__all__ = ["BackendConformance", "Conformance", "Cuttable", "eventually"]
