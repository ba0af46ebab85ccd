"""The parts that requests to Consul are made of, and what its answers mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

# What Consul's own clients set on a key that is a lock, and expect to find there.
LOCK_FLAGS = 0x2DDCCBC058A50C18

Operation = dict[str, Any]
"""One operation of a transaction; a value in it is bytes."""

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|h|m|s)")
_SECONDS_OF = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConsulEntry(msgspec.Struct, frozen=True, rename="pascal"):
    """One key as Consul has it.

    Attributes:
        session: the id of the session that holds it; None: nobody.
    """

    key: str
    create_index: int
    modify_index: int
    lock_index: int = 0
    flags: int = 0
    value: bytes | None = None
    session: str | None = None

    @property
    def data(self) -> bytes:
        """The value; Consul has an empty one as none."""
        return self.value or b""

    @property
    def token(self) -> int:
        """The index of the write by which the present holder acquired it.

        Who acquires here makes the key anew, so that this stands in it also
        when its value is changed later. Other clients acquire a key that
        stays: from the second time on its last write is the best known.
        """
        return self.create_index if self.lock_index <= 1 else self.modify_index


class Waiting(msgspec.Struct, frozen=True):
    """What stands under a waiter's place: all that a hand-over to it needs.

    Attributes:
        refreshed: counts the refreshments; Consul drops a write that changes nothing.
    """

    session: str
    value: bytes
    refreshed: int = 0


class RefusedOperation(msgspec.Struct, frozen=True, rename="pascal"):
    """Why a transaction was not done."""

    op_index: int
    what: str


class TransactionAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    """What a transaction gave: entries, or why it was refused."""

    class Result(msgspec.Struct, frozen=True):
        KV: ConsulEntry

    results: list[Result] | None = None
    errors: list[RefusedOperation] | None = None


def places_of(key: str) -> str:
    """Where the places of those who wait for `key` are: beside it, not below it.

    A rule that grants rights by prefix on the key, or on its directory, covers them.
    """
    return f"{key}.waiting/"


def unchanged(key: str, index: int) -> Operation:
    """The condition that `key` was last written at `index`; 0: that there is none."""
    if index == 0:
        return {"Verb": "check-not-exists", "Key": key}
    return {"Verb": "check-index", "Key": key, "Index": index}


def setting(key: str, value: bytes) -> Operation:
    return {"Verb": "set", "Key": key, "Value": value}


def swapping(key: str, value: bytes, index: int) -> Operation:
    """Write if `key` was last written at `index`; 0: only create."""
    return {"Verb": "cas", "Key": key, "Value": value, "Index": index}


def locking(key: str, session: str, value: bytes, flags: int = LOCK_FLAGS) -> Operation:
    """Write and have the session hold `key`, if no other session does."""
    return {"Verb": "lock", "Key": key, "Session": session, "Value": value, "Flags": flags}


def unlocking(key: str, session: str, value: bytes) -> Operation:
    """Write and have nobody hold `key`, if the session does."""
    return {"Verb": "unlock", "Key": key, "Session": session, "Value": value}


def reading(key: str) -> Operation:
    """Read `key`; refused where there is none."""
    return {"Verb": "get", "Key": key}


def reading_tree(prefix: str) -> Operation:
    return {"Verb": "get-tree", "Key": prefix}


def deleting(key: str) -> Operation:
    return {"Verb": "delete", "Key": key}


def deleting_tree(prefix: str) -> Operation:
    return {"Verb": "delete-tree", "Key": prefix}


def making_anew(
    key: str, index: int, session: str, value: bytes, flags: int = LOCK_FLAGS
) -> list[Operation]:
    """Have the session hold `key`, which was last written at `index` (0: is not there).

    Made anew, so that the index of its creation is that of the acquisition.
    """
    removal = [deleting(key)] if index else []
    return [unchanged(key, index), *removal, locking(key, session, value, flags)]


def speaks_of(refused: Iterable[RefusedOperation], words: str) -> bool:
    return any(words in each.what for each in refused)


def seconds_of(duration: str) -> float:
    """Seconds of a duration as Consul writes it: `15s`, `1m30s`, `1.5s`."""
    parts = _DURATION_PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is no duration")
    return sum(float(number) * _SECONDS_OF[unit] for number, unit in parts)


def duration_of(seconds: float) -> str:
    """The duration as Consul reads it."""
    return f"{round(seconds * 1000)}ms"
