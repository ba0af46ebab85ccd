"""One etcd lease: granted, kept alive on one stream, proved by reading, and revoked."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection
from typing import Any, Protocol

from ..backend import Context
from ..errors import (
    ConfigurationError,
    LeadershipError,
    SessionLost,
    StoreError,
    StoreUnavailable,
)
from ..renewal import GrantedTtls, Holder, RenewedSession
from ._entry_contender import DELETED
from ._etcd_connection import Connection, Link, is_old_token, translate
from ._etcd_watch import Watch, Watches
from ._grpc import END_OF_STREAM, etcdrpc, grpc


class Entry(Holder, Protocol):
    """What hangs on the lease."""

    revision: int


class EtcdSession(RenewedSession):
    """One etcd lease, kept alive on one stream, and proved by reading one of its entries.

    Why an acknowledged keep-alive is not enough: a server may acknowledge a
    lease whose end is already decided. So each renewal also reads, with
    quorum, one entry that hangs on the lease; if that stands, the lease did
    when the read was served, which was after the keep-alive was sent.
    """

    def __init__(
        self, connection: Connection, watches: Watches, context: Context, lease_id: int, ttl: float
    ) -> None:
        super().__init__(context, ttl)
        self._connection = connection
        self._watches = watches
        self.id = lease_id
        # Entries that hang on the lease: any of them proves it.
        self.entries: dict[bytes, Entry] = {}
        # The watches for entries that a write of unknown outcome may still make.
        self.sweeps: dict[bytes, Watch] = {}
        # Removals under way: nobody enters by such a name before they are confirmed.
        self.removals: dict[bytes, asyncio.Future[None]] = {}
        self._stream: tuple[Link, Any] | None = None

    @classmethod
    async def open(
        cls,
        connection: Connection,
        watches: Watches,
        context: Context,
        ttl: float,
        ttls: GrantedTtls,
    ) -> EtcdSession:
        """Grant a lease; what the server granted counts, not what was asked for."""
        # The lease clock starts before the send: the server's cannot have started earlier.
        sent_at = context.clock.now()
        asked = math.ceil(ttl)
        granted = await connection.call(
            lambda link: link.lease.LeaseGrant,
            etcdrpc.LeaseGrantRequest(TTL=asked),
            repeatable=False,
        )
        if granted.error:
            raise StoreError(f"etcd granted no lease: {granted.error}")
        session = cls(connection, watches, context, granted.ID, float(granted.TTL))
        session.lease.confirm(sent_at, session.ttl)
        try:
            ttls.check(ttl, session.ttl)
        except ConfigurationError:
            await session.close()
            raise
        session.begin()
        return session

    def _holders(self) -> Collection[Holder]:
        return self.entries.values()

    def _is_cut(self, failures: int) -> bool:
        return self._connection.is_cut(failures)

    async def _renew(self) -> None:
        limit = min(self.ttl / 4, self._context.request_timeout)
        sent_at = self._clock.now()
        link, call = await self._open_stream(limit)
        seconds = await self._ask(link, call, limit)
        if seconds <= 0:
            raise SessionLost("it has expired or was revoked")
        await self._prove(limit)
        self.lease.confirm(sent_at, seconds)
        self._was_confirmed(sent_at)

    async def _open_stream(self, limit: float) -> tuple[Link, Any]:
        if self._stream is not None and not self._stream[0].abandoned:
            return self._stream
        link = self._connection.link()
        metadata = await self._connection.metadata(link, limit)
        self._stream = (link, link.lease.LeaseKeepAlive(metadata=metadata))
        return self._stream

    async def _ask(self, link: Link, call: Any, limit: float) -> float:
        """One keep-alive. At most one is under way, for answers do not say to which they belong.

        A stream that failed is dropped, and with it whatever was under way.
        """
        sent_at = self._clock.now()
        try:
            async with asyncio.timeout(limit):
                await call.write(etcdrpc.LeaseKeepAliveRequest(ID=self.id))
                answer = await call.read()
            link.heard_at = self._clock.now()
            if answer is END_OF_STREAM or self.id != answer.ID:
                raise StoreUnavailable(f"etcd at {link.endpoint} ended the keep-alive stream")
            return float(answer.TTL)
        except TimeoutError:
            self._drop_stream()
            self._connection.abandon_if_silent(link, sent_at)
            raise StoreUnavailable(
                f"etcd at {link.endpoint} did not renew the lease within {limit:g} s"
            ) from None
        except grpc.aio.AioRpcError as error:
            self._drop_stream()
            if is_old_token(error):
                self._connection.forget_token()
            else:
                self._connection.abandon(link)
            raise translate(error, link.endpoint) from None
        except (grpc.aio.UsageError, asyncio.InvalidStateError, StoreUnavailable) as error:
            self._drop_stream()
            raise StoreUnavailable(f"the keep-alive stream was given up: {error}") from None
        except asyncio.CancelledError:
            self._drop_stream()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StoreUnavailable("the keep-alive stream was given up") from None

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream[1].cancel()

    async def _prove(self, limit: float) -> None:
        """Read one of our entries; if it is gone, find out whether the lease is, or only it."""
        while self.entries:
            key, holder = next(iter(self.entries.items()))
            # Of what is asked about now: it may have another one when the answers are here.
            revision = holder.revision
            answer = await self._connection.call_now(
                lambda link: link.kv.Range,
                etcdrpc.RangeRequest(key=key, keys_only=True),
                repeatable=True,
                timeout=limit,
            )
            if answer.kvs and answer.kvs[0].create_revision == revision:
                return
            left = await self._connection.call_now(
                lambda link: link.lease.LeaseTimeToLive,
                etcdrpc.LeaseTimeToLiveRequest(ID=self.id),
                repeatable=True,
                timeout=limit,
            )
            if left.TTL < 0:
                raise SessionLost("it has expired or was revoked")
            # Unless it was removed by ourselves meanwhile, the entry alone is lost.
            if self.entries.get(key) is holder and holder.revision == revision:
                del self.entries[key]
                holder.entry_gone(DELETED)

    def _stop(self) -> None:
        self._drop_stream()
        for name in list(self.sweeps):
            self.end_sweep(name)

    def end_sweep(self, name: bytes) -> bool:
        """Whoever enters by this name again takes over what a sweep was for."""
        watch = self.sweeps.pop(name, None)
        if watch is not None:
            self._watches.cancel(watch)
        return watch is not None

    async def close(self) -> None:
        ended = self.lease.ended is not None
        self.lose("the session was closed")
        await self._stopped()
        if ended:
            return
        # If this fails it lapses by itself: nobody renews it any more.
        with contextlib.suppress(LeadershipError):
            await self._connection.call_now(
                lambda link: link.lease.LeaseRevoke,
                etcdrpc.LeaseRevokeRequest(ID=self.id),
                repeatable=True,
                timeout=min(2.0, self._context.request_timeout),
            )
