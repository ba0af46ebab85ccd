"""One etcd lease: granted, kept alive on one stream, proved by reading, and revoked."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any, Protocol

from ..backend import Context
from ..errors import (
    ConfigurationError,
    LeadershipError,
    SessionLost,
    StoreError,
    StoreUnavailable,
)
from ..events import LeaseRenewed, StoreRecovered, StoreTrouble, TtlGranted
from ..lease import Lease
from ..session import Session
from ._etcd_connection import Connection, Link, is_old_token, translate
from ._etcd_watch import Watch, Watches
from ._grpc import END_OF_STREAM, etcdrpc, grpc

DELETED = "the entry was deleted at the store"
ENDED = "the store ended the lease"


class Holder(Protocol):
    """Whose entry hangs on the lease."""

    revision: int

    def entry_gone(self, reason: str) -> None: ...

    def cut_off(self, error: StoreUnavailable) -> None: ...


class EtcdSession(Session):
    """One etcd lease, kept alive on one stream, and proved by reading one of its entries.

    Why an acknowledged keep-alive is not enough: a server may acknowledge a
    lease whose end is already decided. So each renewal also reads, with
    quorum, one entry that hangs on the lease; if that stands, the lease did
    when the read was served, which was after the keep-alive was sent.
    """

    def __init__(
        self, connection: Connection, watches: Watches, context: Context, lease_id: int, ttl: float
    ) -> None:
        self._connection = connection
        self._watches = watches
        self._context = context
        self._clock = context.clock
        self.id = lease_id
        self.ttl = ttl
        self.lease = Lease(context.clock, context.max_clock_drift)
        # Entries that hang on the lease: any of them proves it.
        self.entries: dict[bytes, Holder] = {}
        # The watches for entries that a write of unknown outcome may still make.
        self.sweeps: dict[bytes, Watch] = {}
        # Removals under way: nobody enters by such a name before they are confirmed.
        self.removals: dict[bytes, asyncio.Future[None]] = {}
        self._stream: tuple[Link, Any] | None = None
        self._failures = 0
        self._told_cut = False
        self.confirmed = asyncio.Event()
        self._task = asyncio.ensure_future(self._keep())

    @classmethod
    async def open(
        cls,
        connection: Connection,
        watches: Watches,
        context: Context,
        ttl: float,
        told: set[tuple[float, float]],
    ) -> EtcdSession:
        """Grant a lease; what the server granted counts, not what was asked for.

        Args:
            told: the pairs of an asked and another granted ttl that were told already.
        """
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
        if session.ttl != ttl:
            if context.strict_ttl:
                await session.close()
                raise ConfigurationError(
                    f"etcd grants a ttl of {granted.TTL} s instead of {ttl:g} s: "
                    f"ask for {granted.TTL}, or leave strict_ttl out"
                )
            if (ttl, session.ttl) not in told:
                told.add((ttl, session.ttl))
                context.emit(TtlGranted("", context.clock.now(), ttl, session.ttl))
        return session

    async def _keep(self) -> None:
        """Renew every third of the ttl; when that fails, soon again, on another way."""
        pause = self.ttl / 3
        while True:
            await self._clock.sleep(pause)
            try:
                await self._renew()
            except SessionLost as error:
                self.lose(f"{ENDED}: {error}")
                return
            except Exception as error:
                # Of whatever kind: who stops renewing gives the lease away.
                pause = min(1.0, self.ttl / 20)
                self._failures += 1
                # Once per outage and then at every tenth try: trouble is told, not poured out.
                if self._failures % 10 == 1:
                    self._context.emit(
                        StoreTrouble("", self._clock.now(), str(error), self._failures, pause)
                    )
                # And once per outage to who waits: that asks for itself from then on.
                if self._connection.is_cut(self._failures) and not self._told_cut:
                    self._told_cut = True
                    self._tell_cut(StoreUnavailable(f"the lease is not renewed: {error}"))
            else:
                pause = self.ttl / 3
                if self._failures:
                    self._context.emit(StoreRecovered("", self._clock.now(), self._failures))
                    self._failures = 0
                    self._told_cut = False

    def _tell_cut(self, error: StoreUnavailable) -> None:
        for holder in list(self.entries.values()):
            holder.cut_off(error)

    async def _renew(self) -> None:
        limit = min(self.ttl / 4, self._context.request_timeout)
        sent_at = self._clock.now()
        link, call = await self._open_stream(limit)
        seconds = await self._ask(link, call, limit)
        if seconds <= 0:
            raise SessionLost("it has expired or was revoked")
        await self._prove(limit)
        self.lease.confirm(sent_at, seconds)
        self.confirmed.set()
        self.confirmed = asyncio.Event()
        now = self._clock.now()
        self._context.emit(LeaseRenewed("", now, now - sent_at, self.lease.valid_until))

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

    def lose(self, reason: str) -> None:
        """The lease is gone, and with it every entry."""
        self.lease.end(reason)
        self.confirmed.set()
        if self._task is not asyncio.current_task():
            self._task.cancel()
        self._drop_stream()
        for name in list(self.sweeps):
            self.end_sweep(name)
        for holder in list(self.entries.values()):
            holder.entry_gone(reason)

    def end_sweep(self, name: bytes) -> bool:
        """Whoever enters by this name again takes over what a sweep was for."""
        watch = self.sweeps.pop(name, None)
        if watch is not None:
            self._watches.cancel(watch)
        return watch is not None

    async def close(self) -> None:
        ended = self.lease.ended is not None
        self.lose("the session was closed")
        self._task.cancel()
        await asyncio.wait([self._task])
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
