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


@dataclass(slots=True)
class _Gone:
    """What is remembered of a key without a leader, for mail that comes late.

    Attributes:
        least: no earlier term than this is led any more.
        node, over: who gave way last, and the term that it gave up.
    """

    least: int = 0
    node: str = ""
    over: int = 0

    def hides(self, node: str, term: int) -> bool:
        """Whether it is old news that `node` leads in `term`."""
        return term < self.least or (node, term) == (self.node, self.over)


class Leaders:
    """The known leaders.

    Args:
        longest: seconds after which a leader that is not heard of is forgotten, whatever its ttl.
        limit: how many keys; of more it hears nothing.
    """

    def __init__(self, mail: Mail, longest: float, limit: int) -> None:
        self._longest = longest
        self._limit = limit
        self._mail = mail
        self._known: dict[str, _Known] = {}
        self._gone: dict[str, _Gone] = {}
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

    def all(self) -> dict[str, Leader]:
        """Who leads, by key."""
        return {key: _told(known) for key, known in self._known.items()}

    def until(self, key: str) -> float | None:
        """When the leader is forgotten unless it is heard of again; None: there is none."""
        known = self._known.get(key)
        return None if known is None else known.until

    def note(self, node: str, entry: Entry, now: float) -> None:
        """`node` says that it leads."""
        known = self._known.get(entry.key)
        until = now + min(entry.ttl, self._longest)
        if known is not None:
            if known.entry is entry or (known.node == node and known.entry == entry):
                known.entry = entry
                known.seen_at = now
                known.until = max(known.until, until)
                return
            if (entry.term, entry.proclaimed) < (known.entry.term, known.entry.proclaimed):
                return
        elif len(self._known) >= self._limit or self._is_old_news(entry, node):
            return
        known = self._known[entry.key] = _Known(node, entry, now, until)
        self._gone.pop(entry.key, None)
        if entry.key not in self._scheduled:
            self._scheduled.add(entry.key)
            heapq.heappush(self._expiries, (until, entry.key))
        self._mail.emit(LeaderSeen(entry.key, _told(known)))

    def clear(self, key: str, node: str, term: int) -> None:
        """The node no longer leads in that term, or an earlier one."""
        known = self._known.get(key)
        if known is not None:
            if known.node != node or known.entry.term > term:
                return
            self._remove(key)
        gone = self._gone_of(key)
        gone.node, gone.over = node, term

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

    def _remove(self, key: str) -> None:
        self._gone_of(key).least = self._known.pop(key).entry.term
        self._mail.emit(LeaderSeen(key, None))

    def _is_old_news(self, entry: Entry, node: str) -> bool:
        gone = self._gone.get(entry.key)
        return gone is not None and gone.hides(node, entry.term)

    def _gone_of(self, key: str) -> _Gone:
        gone = self._gone.setdefault(key, _Gone())
        if len(self._gone) > self._limit:
            # The oldest: what is late of it would have come by now.
            del self._gone[next(iter(self._gone))]
        return gone


def _told(known: _Known) -> Leader:
    entry = known.entry
    return Leader(known.node, entry.uid, entry.value, entry.term, known.seen_at, entry.proclaimed)
