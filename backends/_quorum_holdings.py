"""The keys that a node leads, and how one message per peer and heartbeat renews them all.

Each set of keys has a version. A heartbeat bears what changed since the
version that the receiver acknowledged, and a digest of the whole; a receiver
that does not know the base asks for the whole set.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import blake2b

from ._quorum_effects import Renewed
from ._quorum_mail import Mail
from ._quorum_messages import Entry, Heartbeat, HeartbeatAnswer
from ._quorum_timing import Timing
from ._quorum_waiting import Queues

_LOG_LIMIT = 4096


def digest(entry: Entry) -> int:
    """Of one entry; those of a set are combined by exclusive or."""
    text = f"{entry.key}\n{entry.uid}\n{entry.term}\n{entry.ttl!r}\n".encode()
    return int.from_bytes(blake2b(text + entry.value, digest_size=6).digest(), "big")


@dataclass(slots=True)
class Holding:
    """A term of this node that is valid, or was until now.

    Attributes:
        entry: as told to the others.
        since: the version of the key set that it came in with.
        valid_until: on the node's clock.
    """

    entry: Entry
    since: int
    valid_until: float


@dataclass(slots=True)
class _Renewal:
    number: int
    sent_at: float
    target: int
    configuration: str
    refused: dict[str, Collection[str]] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    complete: bool = False


class Holdings:
    """The sender's side."""

    def __init__(self, mail: Mail, timing: Timing, queues: Queues) -> None:
        self.held: dict[str, Holding] = {}
        self.next_at = math.inf
        self._mail = mail
        self._timing = timing
        self._queues = queues
        self._version = 1
        self._digest = 0
        self._log: deque[tuple[int, str]] = deque()
        self._log_start = 1
        self._acknowledged: dict[str, tuple[str, int]] = {}
        self._renewals: deque[_Renewal] = deque()

    def add(self, entry: Entry, valid_until: float, now: float) -> None:
        """A term began."""
        self._change(entry.key)
        self._digest ^= digest(entry)
        self.held[entry.key] = Holding(entry, self._version, valid_until)
        self.next_at = min(self.next_at, now + self._timing.heartbeat)

    def replace(self, entry: Entry) -> None:
        """The value of a term changed."""
        holding = self.held[entry.key]
        self._change(entry.key)
        self._digest ^= digest(holding.entry) ^ digest(entry)
        holding.entry = entry

    def remove(self, key: str) -> None:
        """A term ended. No grant that is still on its way counts for it any more."""
        self._change(key)
        self._digest ^= digest(self.held.pop(key).entry)

    def beat(self, now: float) -> None:
        """Send a heartbeat, and with it a request to renew all that is held."""
        number = self._mail.next_number()
        self._renewals.append(_Renewal(number, now, self._version, self._mail.quorum.configuration))
        while self._renewals[0].sent_at + self._timing.lease_ceiling < now:
            self._renewals.popleft()
        for receiver in self._mail.receivers():
            self._mail.send(self._heartbeat(receiver, number))
        pause = self._timing.heartbeat if self.held else self._timing.idle_heartbeat
        self.next_at = now + pause

    def answered(self, answer: HeartbeatAnswer, now: float, lapse: Callable[[str], None]) -> None:
        """Count one answer; `lapse(key)` is called for a term that ended before it came."""
        sender, incarnation = answer.header.sender, answer.header.incarnation
        before = self._acknowledged.get(sender)
        overtaken = before is not None and before[0] == incarnation and before[1] >= answer.target
        if answer.target == 0 or not overtaken:
            self._acknowledged[sender] = (incarnation, answer.target)
        renewal = self._find(answer.header.number)
        if (
            renewal is None
            or renewal.complete
            or answer.target != renewal.target
            or not answer.ready
        ):
            return
        if renewal.configuration != self._mail.quorum.configuration:
            return
        renewal.ceilings[sender] = answer.ceiling
        if answer.refused:
            renewal.refused[sender] = frozenset(answer.refused)
        self._count(renewal, now, lapse)

    def _count(self, renewal: _Renewal, now: float, lapse: Callable[[str], None]) -> None:
        quorum = self._mail.quorum
        if not quorum.is_quorum(renewal.ceilings):
            return
        unanimous = [node for node in renewal.ceilings if node not in renewal.refused]
        renewal.complete = quorum.is_quorum(unanimous)
        for key, holding in list(self.held.items()):
            if holding.since > renewal.target:
                continue
            granting = unanimous
            if not renewal.complete:
                granting = [
                    node for node in renewal.ceilings if key not in renewal.refused.get(node, ())
                ]
                if not quorum.is_quorum(granting):
                    continue
            self._renew(
                holding, renewal, min(renewal.ceilings[node] for node in granting), now, lapse
            )

    def _renew(
        self,
        holding: Holding,
        renewal: _Renewal,
        ceiling: float,
        now: float,
        lapse: Callable[[str], None],
    ) -> None:
        entry = holding.entry
        if now >= holding.valid_until:
            # Acceptors may have elected another since: a lapsed term stays lapsed.
            lapse(entry.key)
            return
        # From the sending, not the answer: each promise began after it.
        until = renewal.sent_at + self._timing.validity(min(entry.ttl, ceiling))
        if until > holding.valid_until:
            holding.valid_until = until
            self._mail.emit(Renewed(entry.key, entry.uid, entry.term, until, renewal.sent_at))

    def _find(self, number: int) -> _Renewal | None:
        for renewal in reversed(self._renewals):
            if renewal.number == number:
                return renewal
        return None

    def _change(self, key: str) -> None:
        self._version += 1
        self._log.append((self._version, key))
        if len(self._log) > _LOG_LIMIT:
            self._log_start = self._log.popleft()[0]

    def _heartbeat(self, receiver: str, number: int) -> Heartbeat:
        header = self._mail.header(receiver, number)
        incarnation, base = self._acknowledged.get(receiver, ("", 0))
        if incarnation != header.receiver_incarnation or base < self._log_start:
            base = 0
        if base == 0:
            changes = tuple(holding.entry for holding in self.held.values())
            removed: tuple[str, ...] = ()
        elif base == self._version:
            changes = removed = ()
        else:
            changed = set()
            for version, key in reversed(self._log):
                if version <= base:
                    break
                changed.add(key)
            changes = tuple(self.held[key].entry for key in changed if key in self.held)
            removed = tuple(key for key in changed if key not in self.held)
        heard = self._queues.heard(receiver, header.receiver_incarnation)
        return Heartbeat(header, base, self._version, self._digest, changes, removed, heard)


class KeySet:
    """The receiver's side: what one run of another node says that it leads.

    Args:
        limit: how many keys; whoever says more leads none.
    """

    __slots__ = ("_digest", "_limit", "_number", "entries", "incarnation", "version")

    def __init__(self, incarnation: str, limit: int) -> None:
        self.incarnation = incarnation
        self._limit = limit
        self.version = 0
        self.entries: dict[str, Entry] = {}
        self._digest = 0
        self._number = 0

    def is_overtaken(self, number: int) -> bool:
        """Whether a later heartbeat was seen; the present one is noted."""
        overtaken = number <= self._number
        self._number = max(self._number, number)
        return overtaken

    def apply(self, heartbeat: Heartbeat) -> list[Entry] | None:
        """Bring the set up to date; the entries that went, or None: the whole set is needed."""
        if heartbeat.base and not heartbeat.base <= self.version <= heartbeat.target:
            return None
        removed: Collection[str] = heartbeat.removed
        if not heartbeat.base:
            told = {entry.key for entry in heartbeat.changes}
            removed = [key for key in self.entries if key not in told]
        gone = [self.entries.pop(key) for key in removed if key in self.entries]
        for entry in gone:
            self._digest ^= digest(entry)
        for entry in heartbeat.changes:
            before = self.entries.get(entry.key)
            if before is not None:
                self._digest ^= digest(before)
            self.entries[entry.key] = entry
            self._digest ^= digest(entry)
        if self._digest != heartbeat.digest or len(self.entries) > self._limit:
            # Not to be believed: a grant would be given for another term than the sender counts.
            self.version = 0
            self._digest = 0
            self.entries.clear()
            return None
        self.version = heartbeat.target
        return gone
