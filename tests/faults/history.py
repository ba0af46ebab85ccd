"""What happened in a round, as records on one clock: each process writes a file of its own.

Every `at` is CLOCK_BOOTTIME in seconds, which all processes of a machine share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import msgspec


class Record(msgspec.Struct, frozen=True, tag_field="what", tag=str.lower, omit_defaults=True):
    """The root of all records."""

    at: float


class Setting(Record, frozen=True):
    """The first record: what the round is about, and what it may be measured by.

    Attributes:
        ttl: seconds, of every candidate.
        bound: seconds without a fault within which there must be a leader.
        since: from when on that is asked for; before, everything only starts.
    """

    backend: str
    ttl: float
    bound: float
    since: float
    seed: int = 0


class Started(Record, frozen=True):
    """A candidate's process is about to contend."""

    process: str


class Ended(Record, frozen=True):
    """A candidate's process has stopped, closed, and is about to leave."""

    process: str


class Hung(Record, frozen=True):
    """A candidate's process was told to stop, and had not left after so many seconds."""

    process: str
    seconds: float


class Read(Record, frozen=True):
    """What `is_leader()` said, at some instant from `began` to `at`.

    Attributes:
        token: of the term under which it was asked.
        valid_until: of that term, read afterwards.
        forked: it was a fork's child that asked.
    """

    process: str
    token: int
    began: float
    leader: bool
    valid_until: float
    forked: bool = False


class Told(Record, frozen=True):
    """The library told that a term is over, and until when it was valid at most.

    Attributes:
        willing: it was the candidate's own will.
    """

    process: str
    token: int
    valid_until: float
    reason: str
    willing: bool = False


class Stalled(Record, frozen=True):
    """A process could not run from `since` to `at`."""

    process: str
    since: float


class Blocked(Record, frozen=True):
    """The user's thread, or event loop, stood still from `since` to `at`; the rest went on."""

    process: str
    since: float


class Heard(Record, frozen=True):
    """The user's code has come to know that its term is over."""

    process: str
    token: int


class Wrote(Record, frozen=True):
    """A leader wrote to the register, and whether that took it."""

    process: str
    token: int
    began: float
    accepted: bool


class Registered(Record, frozen=True):
    """The register's own word on a write; their order in its file is the order of its acts."""

    process: str
    token: int
    accepted: bool


class Injected(Record, frozen=True):
    """A fault begins.

    Attributes:
        removal: an operator takes a live leader's entry or session away.
        concerns_one: candidate alone: another can lead meanwhile.
    """

    number: int
    kind: str
    target: str
    removal: bool = False
    concerns_one: bool = False


class Removed(Record, frozen=True):
    """What an operator takes away, by the fault that was injected last, is gone by now."""


class Healed(Record, frozen=True):
    """That fault is over."""

    number: int


class Entered(Record, frozen=True):
    """The entries of the election as the store has them, long after the last fault.

    Attributes:
        owners: of the entries, one for each.
        alive: how many candidates contend.
    """

    owners: tuple[str, ...]
    alive: int


class Closing(Record, frozen=True):
    """From now on candidates are told to stop: nobody has to lead any more."""


class Remained(Record, frozen=True):
    """What the store still has of the round, long after everybody stopped."""

    entries: tuple[str, ...]


AnyRecord: TypeAlias = (
    Setting
    | Started
    | Ended
    | Hung
    | Read
    | Told
    | Stalled
    | Blocked
    | Heard
    | Wrote
    | Registered
    | Injected
    | Removed
    | Healed
    | Entered
    | Closing
    | Remained
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyRecord)


class Recorder:
    """Appends records to a file; whoever is killed loses none that was written.

    Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: AnyRecord) -> None:
        """Add one."""
        os.write(self._file, _encoder.encode(record) + b"\n")

    def close(self) -> None:
        """Done."""
        os.close(self._file)


def read(path: Path) -> list[AnyRecord]:
    """The records of a file, but for a last line whose writer was killed over it."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [_decoder.decode(line) for line in whole.splitlines()]


def merged(paths: Iterable[Path]) -> list[AnyRecord]:
    """The records of several files in the order of their stamps."""
    records = [record for path in paths for record in read(path)]
    # Stable: what one process wrote at one instant stays in its order.
    return sorted(records, key=lambda record: record.at)


def write(path: Path, records: Iterable[AnyRecord]) -> None:
    """One file of all."""
    path.write_bytes(b"".join(_encoder.encode(record) + b"\n" for record in records))
