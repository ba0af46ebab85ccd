"""One contender on etcd: its entry, its place in the queue, and the proof that it leads.

The entry is `<key>/<lease id in hex>`. The one with the lowest create revision
leads, and each other watches only the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backend import ReleasePlan
from ..errors import (
    AccessDenied,
    LeadershipError,
    NotLeader,
    StoreError,
    StoreUnavailable,
)
from ..lease import Claim, claim
from ._entry_contender import DELETED, EntryContender, raise_if
from ._etcd_release import release
from ._etcd_requests import (
    EVENT_DELETE,
    created,
    end_of,
    is_contender,
    prefix_of,
    putting,
    reading,
    unchanged,
)
from ._etcd_session import EtcdSession
from ._etcd_watch import Compacted, Watch
from ._grpc import etcdrpc

if TYPE_CHECKING:
    from ._etcd_election import Election


@dataclass(frozen=True, slots=True)
class _View:
    """Who is next before us, or None where we are first, at one revision of the store."""

    predecessor: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """Our entry as the store had it: the revisions of its creation, its last write, and then."""

    created: int
    written: int
    revision: int
    view: _View | None = None


class EtcdContender(EntryContender[EtcdSession]):
    """One candidate's entry in one election."""

    def __init__(
        self,
        backend: Election,
        key: str,
        value: bytes,
        ttl: float,
        own_session: bool,
        guarded: bool,
    ) -> None:
        super().__init__(key, value, backend.sessions.reserve(key, ttl, own_session, guarded))
        self._backend = backend
        self._prefix = prefix_of(key)
        # Our entry's key and create revision; the revision is 0 while none is known to stand.
        self.name = b""
        self.revision = 0
        # The revision of the last write to it that we know of.
        self._written = 0
        # Whether a write may have made an entry that we have not seen.
        self._unsure = False
        self._entering: asyncio.Future[_Entry] | None = None
        self._guard: Watch | None = None

    # --- to win ---

    async def _campaign_on(self, session: EtcdSession) -> Claim | None:
        if session is not self._session:
            # What hung on the old lease went with it, and so does what may still
            # be under way: nothing can be put on a lease that is gone.
            self._forget()
            self._unsure = False
            self._entering = None
            self._session = session
            self.name = self._prefix + f"{session.id:x}".encode()
        view = None if self.revision else await self._enter(session)
        before: Watch | None = None
        try:
            while True:
                # Before the read, so that what happens after it is not missed.
                woken = self._listen()
                if self._told is not None or session.lease.ended is not None:
                    break
                if view is None:
                    view = await self._look()
                if self._told is not None or not self.revision:
                    break
                if self.on_answer is not None:
                    self.on_answer()
                if view.predecessor is None:
                    if session.lease.is_valid():
                        # The proof: our own entry, made just now or read after
                        # the wait, stands and is the first.
                        return claim(self.revision, session.lease)
                    view = None
                    await session.until_confirmed(woken)
                    continue
                # Not before the look: nothing is to delay that.
                if before is not None:
                    self._backend.watches.cancel(before)
                before = self._backend.watches.watch(
                    view.predecessor,
                    b"",
                    view.revision + 1,
                    self._predecessor_changed,
                    self._predecessor_unknown,
                )
                view = None
                raise_if(await woken)
        finally:
            if before is not None:
                self._backend.watches.cancel(before)
        self._forget()
        return None

    async def _enter(self, session: EtcdSession) -> _View | None:
        """Put our entry, unless an earlier attempt of unknown outcome already did.

        Returns who is before us, if it shows.
        """
        removal = session.removals.get(self.name)
        if removal is not None:
            done, _ = await asyncio.wait([removal], timeout=self._backend.context.request_timeout)
            if not done:
                raise StoreUnavailable(f"an earlier entry for {self.key!r} is not yet removed")
        if session.end_sweep(self.name):
            self._unsure = True
        begun_now = self._entering is None
        # Cancelling us must not leave a write under way whose outcome nobody
        # waits for: `leave` does.
        entering = self._entering = self._entering or asyncio.ensure_future(self._put(session))
        try:
            entry = await asyncio.shield(entering)
        except BaseException:
            # It may have been done, or may still be, long after this moment.
            self._unsure = True
            raise
        finally:
            if entering.done():
                self._entering = None
        self.revision, self._written = entry.created, entry.written
        self._told = None
        session.entries[self.name] = self
        self._guard = self._backend.watches.watch(
            self.name, b"", entry.revision + 1, self._own_changed, self._guard_cut
        )
        # What an earlier call had begun may have been done long ago.
        return entry.view if begun_now else None

    async def _put(self, session: EtcdSession) -> _Entry:
        name = self.name
        request = etcdrpc.TxnRequest(
            compare=[created(name, 0)],
            # The read comes first, so that it shows who was there before us.
            success=[
                self._reading_last(),
                putting(etcdrpc.PutRequest(key=name, value=self._value, lease=session.id)),
            ],
            failure=[reading(etcdrpc.RangeRequest(key=name))],
        )
        # Not repeated out of sight: a try whose answer never came has to be remembered.
        answer = await self._backend.connection.call(
            lambda link: link.kv.Txn, request, repeatable=False
        )
        seen = answer.header.revision
        if answer.succeeded:
            before = answer.responses[0].response_range
            return _Entry(seen, seen, seen, self._view(before, seen))
        present = answer.responses[0].response_range.kvs[0]
        revision, written = present.create_revision, present.mod_revision
        if present.value != self._value:
            # If it is gone by now, the watch from here on tells.
            written = await self._rewrite(session, revision, written, self._value) or written
        return _Entry(revision, written, seen)

    async def _rewrite(
        self, session: EtcdSession, revision: int, written: int, value: bytes
    ) -> int | None:
        """Give the entry created at `revision` another value; None: it is gone.

        Each write names the one before it, so that an older one of unknown
        outcome, which arrives late, changes nothing.
        """
        name = self.name
        put = etcdrpc.PutRequest(key=name, value=value, lease=session.id)
        while True:
            answer = await self._backend.txn(
                etcdrpc.TxnRequest(
                    compare=[created(name, revision), unchanged(name, written)],
                    success=[putting(put)],
                    failure=[reading(etcdrpc.RangeRequest(key=name, keys_only=True))],
                )
            )
            if answer.succeeded:
                return int(answer.header.revision)
            present = answer.responses[0].response_range.kvs
            if not present or present[0].create_revision != revision:
                return None
            written = present[0].mod_revision

    async def _look(self) -> _View:
        """Whether our entry stands, and who is next before it, in one view of the store."""
        upto, limit = self.revision - 1, 1
        while True:
            answer = await self._backend.txn(
                etcdrpc.TxnRequest(
                    success=[
                        reading(etcdrpc.RangeRequest(key=self.name, keys_only=True)),
                        self._reading_last(max_create_revision=upto, limit=limit),
                    ]
                )
            )
            own, before = (each.response_range for each in answer.responses)
            if not own.kvs or own.kvs[0].create_revision != self.revision:
                self.entry_gone(DELETED)
                return _View(None, answer.header.revision)
            view = self._view(before, answer.header.revision)
            if view is not None:
                return view
            # Only strangers' keys so far: look further back, in larger steps.
            upto, limit = before.kvs[-1].create_revision - 1, min(1000, limit * 8)

    def _reading_last(self, limit: int = 1, **more: Any) -> Any:
        """The last keys that were made in this election."""
        return reading(
            etcdrpc.RangeRequest(
                key=self._prefix,
                range_end=end_of(self._prefix),
                sort_order=etcdrpc.RangeRequest.DESCEND,
                sort_target=etcdrpc.RangeRequest.CREATE,
                limit=limit,
                keys_only=True,
                **more,
            )
        )

    def _view(self, before: Any, revision: int) -> _View | None:
        """What the keys before ours show; None: only strangers', and there are more."""
        for each in before.kvs:
            if is_contender(each.key, self._prefix):
                return _View(each.key, revision)
        return None if before.more else _View(None, revision)

    # --- what the watches tell ---

    def _own_changed(self, events: Iterable[Any]) -> None:
        for event in events:
            gone = event.type == EVENT_DELETE or event.kv.create_revision != self.revision
            if gone and event.kv.mod_revision > self.revision:
                self.entry_gone(DELETED)
                return

    def _guard_cut(self, error: LeadershipError) -> None:
        """A dead stream goes on by itself; one that cannot must be replaced by a read."""
        if self._guard is not None and self._guard.cancelled and self.revision:
            # A refusal may be taken back; the deadline bounds what we may believe meanwhile.
            self._backend.spawn(self._guard_anew(at_once=isinstance(error, Compacted)))

    async def _guard_anew(self, at_once: bool) -> None:
        while self.revision and self._told is None:
            session = self._session
            assert session is not None
            if not at_once:
                await self._backend.context.clock.sleep(min(1.0, session.ttl / 10))
            at_once = False
            if not self.revision or self._told is not None:
                return
            try:
                answer = await self._backend.connection.call(
                    lambda link: link.kv.Range,
                    etcdrpc.RangeRequest(key=self.name, keys_only=True),
                    repeatable=True,
                )
            except StoreError:
                continue
            if not answer.kvs or answer.kvs[0].create_revision != self.revision:
                self.entry_gone(DELETED)
            elif self.revision:
                self._guard = self._backend.watches.watch(
                    self.name, b"", answer.header.revision + 1, self._own_changed, self._guard_cut
                )
            return

    def _predecessor_changed(self, events: Iterable[Any]) -> None:
        if any(event.type == EVENT_DELETE for event in events):
            self._look_again()

    def _predecessor_unknown(self, error: LeadershipError) -> None:
        if isinstance(error, AccessDenied):
            self._look_again(error)
        elif not isinstance(error, StoreUnavailable):
            # It ended for good: another look tells from where to go on.
            self._look_again()
        elif self._backend.watches.cut_off:
            self._look_again(error)

    # --- as leader, and after ---

    async def proclaim(self, value: bytes) -> None:
        session, revision = self._session, self.revision
        if session is None or not revision or self._told is not None:
            raise NotLeader(f"our entry for {self.key!r} is gone; campaign again")
        written = await self._rewrite(session, revision, self._written, value)
        if written is None:
            self.entry_gone(DELETED)
            raise NotLeader(f"our entry for {self.key!r} is gone; campaign again")
        self._written = written
        self._value = value

    def release_plan(self) -> ReleasePlan | None:
        if self._session is None:
            return None
        way = self._backend.connection.way()
        return ReleasePlan(release, {**way, "lease": self._session.id})

    async def leave(self) -> None:
        self._lost = None
        if self._entering is not None:
            # Bounded by the request's own deadline.
            await asyncio.wait([self._entering])
            done, self._entering = self._entering, None
            if done.exception() is None:
                self.revision = done.result().created
        session = self._session
        if session is None or not (self.revision or self._unsure):
            self._forget()
            return
        if session.lease.ended is None:
            self._leaving = True
            removed_at = await self._backend.remove(self.name, self.revision)
            if self._unsure:
                self._backend.sweep(session, self.name, removed_at + 1)
        self._leaving = self._unsure = False
        self._forget()

    def _forget(self) -> None:
        if self._guard is not None:
            self._backend.watches.cancel(self._guard)
            self._guard = None
        if self._session is not None and self._session.entries.get(self.name) is self:
            del self._session.entries[self.name]
        self.revision = 0
        self._told = None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        session, revision = self._session, self.revision
        left_over = bool(revision or self._unsure)
        self._forget()
        self._backend.forget(self)
        if left_over and session is not None:
            # `leave` was given up, and others may keep the lease alive: what
            # stands on it, or may still appear, would block the election.
            self._backend.remove_later(session, self.name, revision, then_sweep=True)
        await self._backend.sessions.give_back(self._slot, self.key)
