"""Elections on etcd, the same as Go's `concurrency.Election` and `etcdctl elect` take part in.

What all contenders of one store share: the sessions, and the removal of
entries for which nobody waits. The create revision of an entry is the fencing
token: etcd's revision is one counter for the whole cluster, and survives its
restarts.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Iterable
from typing import Any

from ..backend import Context
from ..errors import HandleClosed, LeadershipError, StoreError
from ..events import NestedElection
from ..renewal import GrantedTtls
from ..session import SessionPool
from ._etcd_connection import Connection
from ._etcd_contender import EtcdContender
from ._etcd_requests import EVENT_DELETE, created, deleting, reading
from ._etcd_session import EtcdSession
from ._etcd_watch import Watches
from ._grpc import etcdrpc


def _directories_of(key: str) -> list[str]:
    parts = key.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


class Election:
    """What all contenders of one store share."""

    def __init__(self, connection: Connection, watches: Watches, context: Context) -> None:
        self.connection = connection
        self.watches = watches
        self.context = context
        ttls = GrantedTtls("etcd", context)
        self.sessions: SessionPool[EtcdSession] = SessionPool(
            lambda ttl: asyncio.ensure_future(
                EtcdSession.open(connection, watches, context, ttl, ttls)
            )
        )
        # How many contenders each key has, and how many of these keys lie below each directory.
        self._keys: collections.Counter[str] = collections.Counter()
        self._below: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Future[Any]] = set()

    def contender(
        self, key: str, value: bytes, ttl: float, own_session: bool, guarded: bool = False
    ) -> EtcdContender:
        if key not in self._keys:
            self._warn_if_nested(key)
            self._below.update(_directories_of(key))
        self._keys[key] += 1
        return EtcdContender(self, key, value, ttl, own_session, guarded)

    def forget(self, contender: EtcdContender) -> None:
        key = contender.key
        self._keys[key] -= 1
        if self._keys[key] <= 0:
            del self._keys[key]
            for directory in _directories_of(key):
                self._below[directory] -= 1
                if self._below[directory] <= 0:
                    del self._below[directory]

    def _warn_if_nested(self, key: str) -> None:
        others = [directory for directory in _directories_of(key) if directory in self._keys]
        if key in self._below:
            others.append(next(other for other in self._keys if other.startswith(key + "/")))
        for other in others:
            self.context.emit(NestedElection(key, self.context.clock.now(), other))

    async def txn(self, request: Any) -> Any:
        """A transaction that may be sent twice, because it names its own entry or only reads."""
        return await self.connection.call(lambda link: link.kv.Txn, request, repeatable=True)

    def spawn(self, work: Any) -> asyncio.Future[None]:
        async def until_closed() -> None:
            with contextlib.suppress(HandleClosed):
                await work

        task = asyncio.ensure_future(until_closed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def remove(self, name: bytes, revision: int) -> int:
        """Remove the entry created at `revision` (0: unknown), and any other there is by now.

        Never without its revision: a request that arrives late, when another
        try has long been confirmed, must not hit an entry made since.

        Returns the store's revision at which there was none.
        """
        while True:
            answer = await self.txn(
                etcdrpc.TxnRequest(
                    compare=[created(name, revision)],
                    success=[deleting(name)] if revision else [],
                    failure=[reading(etcdrpc.RangeRequest(key=name, keys_only=True))],
                )
            )
            present = () if answer.succeeded else answer.responses[0].response_range.kvs
            if not present:
                return int(answer.header.revision)
            revision = present[0].create_revision

    def sweep(self, session: EtcdSession, name: bytes, revision: int) -> None:
        """Remove an entry that a write of unknown outcome may still make, while the lease lives."""

        def appeared(events: Iterable[Any]) -> None:
            puts = [event.kv.create_revision for event in events if event.type != EVENT_DELETE]
            if puts:
                self.remove_later(session, name, puts[-1], then_sweep=False)

        def cut(error: LeadershipError) -> None:
            if watch.cancelled and session.sweeps.get(name) is watch:
                del session.sweeps[name]
                self.remove_later(session, name, 0, then_sweep=True)

        session.end_sweep(name)
        watch = session.sweeps[name] = self.watches.watch(name, b"", revision, appeared, cut)

    def remove_later(
        self, session: EtcdSession, name: bytes, revision: int, *, then_sweep: bool
    ) -> None:
        """Remove an entry for which nobody waits, however long it takes, while the lease lives."""

        async def work() -> None:
            while session.lease.ended is None:
                try:
                    removed_at = await self.remove(name, revision)
                except StoreError:
                    await self.context.clock.sleep(min(1.0, session.ttl / 10))
                    continue
                if then_sweep and session.lease.ended is None:
                    self.sweep(session, name, removed_at + 1)
                return

        if session.lease.ended is None and name not in session.removals:
            removal = session.removals[name] = self.spawn(work())
            removal.add_done_callback(lambda _: session.removals.pop(name, None))

    async def close(self) -> None:
        await self.sessions.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
