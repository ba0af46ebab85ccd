"""Who leads what, as far as this node was told: hints, for followers and for routing."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from ._quorum_effects import Leader, LeaderSeen
from ._quorum_mail import Mail
from ._quorum_messages import Entry


@dataclass(slots=True)
class _Known:
    node: str
    entry: Entry
    seen_at: float
    until: float
    changed_in: int


class Leaders:
    """The known leaders, with a version that rises with each change.

    Attributes:
        version: of the last change.
    """

    def __init__(self, mail: Mail) -> None:
        self.version = 0
        self._mail = mail
        self._known: dict[str, _Known] = {}
        self._gone: dict[str, int] = {}
        self._expiries: list[tuple[float, str]] = []
        self._scheduled: set[str] = set()

    @property
    def next_at(self) -> float:
        """When the first of them expires, or earlier."""
        return self._expiries[0][0] if self._expiries else math.inf

    def leader(self, key: str) -> Leader | None:
        """Who leads at `key`; None: nobody that this node knows of."""
        known = self._known.get(key)
        return None if known is None else _told(known)

    def changed_since(self, version: int) -> dict[str, Leader | None]:
        """The keys whose leader changed after that version, as they are now."""
        changes: dict[str, Leader | None] = {
            key: _told(known) for key, known in self._known.items() if known.changed_in > version
        }
        changes.update({key: None for key, when in self._gone.items() if when > version})
        return changes

    def note(self, node: str, entry: Entry, now: float) -> None:
        """`node` says that it leads."""
        known = self._known.get(entry.key)
        until = now + entry.ttl
        if known is not None:
            if known.entry is entry or (known.node == node and known.entry == entry):
                known.entry = entry
                known.seen_at = now
                known.until = max(known.until, until)
                return
            if entry.term < known.entry.term:
                return
        self.version += 1
        known = self._known[entry.key] = _Known(node, entry, now, until, self.version)
        self._gone.pop(entry.key, None)
        if entry.key not in self._scheduled:
            self._scheduled.add(entry.key)
            heapq.heappush(self._expiries, (until, entry.key))
        self._mail.emit(LeaderSeen(entry.key, _told(known)))

    def clear(self, key: str, node: str, term: int) -> None:
        """The node no longer leads in that term, or an earlier one."""
        known = self._known.get(key)
        if known is not None and known.node == node and known.entry.term <= term:
            self._remove(key)

    def tick(self, now: float) -> None:
        """Forget those not heard of for their ttl."""
        while self._expiries and self._expiries[0][0] <= now:
            key = heapq.heappop(self._expiries)[1]
            known = self._known.get(key)
            if known is not None and now < known.until:
                heapq.heappush(self._expiries, (known.until, key))
                continue
            self._scheduled.discard(key)
            if known is not None:
                self._remove(key)

    def forget_gone(self, limit: int) -> None:
        """Keep no more than `limit` keys that have no leader."""
        while len(self._gone) > limit:
            del self._gone[next(iter(self._gone))]

    def _remove(self, key: str) -> None:
        del self._known[key]
        self.version += 1
        self._gone[key] = self.version
        self._mail.emit(LeaderSeen(key, None))


def _told(known: _Known) -> Leader:
    entry = known.entry
    return Leader(known.node, entry.uid, entry.value, entry.term, known.seen_at)
