"""What this process holds: the count must be the same after the 3rd cycle and the 100th."""

import gc
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")


def thread_names() -> Counter[str]:
    """The living Python threads by name."""
    return Counter(thread.name for thread in threading.enumerate())


def count_threads() -> int:
    return threading.active_count()


def descriptors() -> Counter[str]:
    """The open descriptors by kind: ``socket``, ``pipe``, ``anon_inode``, or a file's path."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(_DESCRIPTORS):
        try:
            target = os.readlink(_DESCRIPTORS / name)
        except OSError:
            continue  # the listing's own descriptor, closed by now
        kinds[target if target.startswith("/") else target.partition(":")[0]] += 1
    return kinds


def count_descriptors() -> int:
    return descriptors().total()


def count_sockets() -> int:
    return descriptors()["socket"]


@dataclass(frozen=True)
class Footprint:
    """Comparable: equal footprints hold equally much, differing ones print what differs."""

    threads: dict[str, int]
    descriptors: dict[str, int]


def footprint() -> Footprint:
    # An object in a reference cycle closes its socket only when it is collected.
    gc.collect()
    return Footprint(threads=dict(thread_names()), descriptors=dict(descriptors()))


def no_more(now: Footprint, before: Footprint) -> bool:
    """Whether `now` holds at most what `before` does, of each kind."""

    def within(new: dict[str, int], old: dict[str, int]) -> bool:
        return all(count <= old.get(kind, 0) for kind, count in new.items())

    return within(now.threads, before.threads) and within(now.descriptors, before.descriptors)
