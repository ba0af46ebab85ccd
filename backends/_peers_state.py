"""What a node must still know after a restart, durable before anything rests on it.

Each line of the file is one change with its checksum, and one fsync makes it
durable. A last line that is torn was never confirmed to anybody, so it is
dropped. A file that is damaged elsewhere is refused: taken for none, it would
have the node vote a second time, or by a list of members that has passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigurationError, StoreError

_NAME = "peers.log"
_ROOM = 1 << 18
"""Bytes of outdated lines that are kept before the file is written anew."""


class StateUnwritableError(StoreError):
    """The state could not be made durable: nothing may rest on it."""


class StateDirectory:
    """One node's durable values, by name; one process at a time.

    Not thread-safe: one call at a time.

    Args:
        path: the directory, made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._directory = Path(path)
        self._path = self._directory / _NAME
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        self._values: dict[str, Any] = {}
        self._outdated = 0

    def open(self) -> Mapping[str, Any]:
        """Take the directory for this process, and return the last value of each name.

        Raises:
            ConfigurationError: another process has it, it cannot be used, or it is damaged.
        """
        try:
            self._make()
            self._take()
            self._read()
            self._rewrite()
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"state_dir={str(self._directory)!r} cannot be used: {error.strerror or error}; "
                "give a directory of this node's own that it may write to"
            ) from error
        except ConfigurationError:
            self.close()
            raise
        return dict(self._values)

    def _make(self) -> None:
        missing = [each for each in self._directory.parents if not each.exists()]
        if not self._directory.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            for each in reversed([self._directory, *missing]):
                _sync_directory(each.parent)

    def _take(self) -> None:
        self._lock = (self._directory / "lock").open("ab")
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(self._lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError("another process has it") from error

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        # What follows the last line break was never confirmed.
        for line in lines[:-1]:
            changes = _decoded(line)
            if changes is None:
                raise ConfigurationError(
                    f"{str(self._path)!r} is damaged, and what this node promised is lost: remove "
                    "it from the members, and add it at another address; or, where no member was "
                    "ever added or removed, empty its state_dir, and start it without bootstrap=1"
                )
            self._values.update(changes)

    def write(self, changes: Mapping[str, Any]) -> None:
        """Make the new values durable: with the return they will survive.

        Raises:
            StateUnwritableError: they may not. The next write tries from the beginning.
        """
        self._values.update(changes)
        try:
            if self._file is None or self._outdated > _ROOM:
                self._rewrite()
                return
            line = _encoded(changes)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._outdated += len(line)
        except OSError as error:
            # How much of it reached the disk is not known, so no line may follow.
            self._shut()
            raise StateUnwritableError(
                f"cannot write to {str(self._directory)!r}: {error.strerror or error}; "
                "this node does not vote until it can"
            ) from error

    def _rewrite(self) -> None:
        """Put a file with only the last values in the place of the old one, in one step."""
        self._shut()
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            if self._values:
                file.write(_encoded(self._values))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        _sync_directory(self._directory)
        self._file = self._path.open("ab")
        self._outdated = 0

    def _shut(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Let another process have the directory. Idempotent."""
        self._shut()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


def _encoded(changes: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(changes), separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decoded(line: bytes) -> dict[str, Any] | None:
    checksum, separator, text = line.partition(b" ")
    try:
        if not separator or int(checksum, 16) != zlib.crc32(text):
            return None
        changes = json.loads(text)
    except ValueError:
        return None
    return changes if isinstance(changes, dict) else None


def _sync_directory(directory: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
