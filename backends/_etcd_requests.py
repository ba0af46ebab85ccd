"""The parts that requests to etcd are made of, and how an election's keys are named."""

from __future__ import annotations

import re
from typing import Any

from ._grpc import etcdrpc

EVENT_DELETE = 1

_CONTENDER_NAME = re.compile(rb"[0-9a-f]+")


def prefix_of(key: str) -> bytes:
    return key.encode() + b"/"


def end_of(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix, which ends in a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def is_contender(key: bytes, prefix: bytes) -> bool:
    """Whether a key is a contender's: a direct child whose name is a lease id.

    Whatever else somebody keeps below the election's key must not block it.
    """
    return _CONTENDER_NAME.fullmatch(key, len(prefix)) is not None


def leased_election(key: bytes, lease: int) -> bytes | None:
    """The election that an entry is in, by its name and lease; None: it is no contender's.

    Where the election is not known beforehand, the lease in the name tells: a
    key that only looks like one hangs on another lease, or on none.
    """
    election, _, name = key.rpartition(b"/")
    return election if election and lease and name == f"{lease:x}".encode() else None


def created(key: bytes, revision: int) -> Any:
    """The condition that `key` is still the one created at `revision`; 0: that there is none."""
    return etcdrpc.Compare(
        result=etcdrpc.Compare.EQUAL,
        target=etcdrpc.Compare.CREATE,
        key=key,
        create_revision=revision,
    )


def reading(request: Any) -> Any:
    return etcdrpc.RequestOp(request_range=request)


def putting(request: Any) -> Any:
    return etcdrpc.RequestOp(request_put=request)


def deleting(key: bytes) -> Any:
    return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))


def unchanged(key: bytes, revision: int) -> Any:
    """The condition that `key` was last written at `revision`."""
    return etcdrpc.Compare(
        result=etcdrpc.Compare.EQUAL,
        target=etcdrpc.Compare.MOD,
        key=key,
        mod_revision=revision,
    )
