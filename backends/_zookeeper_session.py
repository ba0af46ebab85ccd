"""One ZooKeeper session and its lease: confirmed by writes, ended when the server says so.

Why not by pings or reads: a follower that is cut off from its leader goes on
answering both. A write is committed by a quorum, so the leader knew the
session then. How long it lets the session live from there depends on when
it last heard of it, through a follower that passes that on every half tick;
half the timeout is safe for every tick that the timeout allows.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from kazoo.exceptions import NodeExistsError, NoNodeError

from ..backend import Context
from ..errors import ConfigurationError, SessionLost, StoreUnavailable
from ..events import LeaseRenewed, StoreRecovered, StoreTrouble, TtlGranted
from ..lease import Lease
from ..session import Session
from ._zookeeper_connection import Connection, Settings, opened
from ._zookeeper_tree import make_parents

# Of the timeout: the pace of the proofs, and how long one may take before another
# server is tried. Both within the quarter that the lease's half is derived with.
_PACE = 1 / 10
_LIMIT = 1 / 6


class Holder(Protocol):
    """Whose entry hangs on the session."""

    def entry_gone(self, reason: str) -> None: ...


class ZooKeeperSession(Session):
    """One session, kept and proved by rewriting one node of its own.

    Args:
        directory: the path below which the sessions' own nodes are.
        standalone: trust a lease for the whole timeout, as a single server allows.
    """

    def __init__(
        self, connection: Connection, context: Context, directory: str, *, standalone: bool
    ) -> None:
        self.connection = connection
        self.id = connection.id
        self.timeout = connection.timeout
        self.lease = Lease(context.clock, context.max_clock_drift)
        self.holders: set[Holder] = set()
        self.confirmed = asyncio.Event()
        self._context = context
        self._clock = context.clock
        self._proof = f"{directory}/{self.id & (1 << 64) - 1:016x}"
        self._trusted = self.timeout if standalone else self.timeout / 2
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        connection.on_lost = self.lose
        if connection.lost is not None:
            self.lose(str(connection.lost))

    @classmethod
    async def open(
        cls,
        settings: Settings,
        context: Context,
        directory: str,
        ttl: float,
        told: set[tuple[float, float]],
        *,
        standalone: bool,
    ) -> ZooKeeperSession:
        """Open a session; what the server granted counts, not what was asked for.

        Args:
            told: the pairs of an asked and another granted ttl that were told already.
        """
        connection = await opened(settings, context, ttl)
        session = cls(connection, context, directory, standalone=standalone)
        try:
            granted = session.timeout
            if abs(granted - ttl) > 0.001:
                if context.strict_ttl:
                    raise ConfigurationError(
                        f"ZooKeeper grants a session timeout of {granted:g} s instead of {ttl:g} "
                        f"s: ask for {granted:g}, or leave strict_ttl out"
                    )
                if (ttl, granted) not in told:
                    told.add((ttl, granted))
                    context.emit(TtlGranted("", context.clock.now(), ttl, granted))
            await session._make_proof()
        except SessionLost as error:
            await session.close()
            raise StoreUnavailable(f"a session ended as soon as it was opened: {error}") from None
        except BaseException:
            await session.close()
            raise
        session._task = asyncio.ensure_future(session._keep())
        return session

    async def _keep(self) -> None:
        while self.lease.ended is None:
            await self._clock.sleep(self.timeout * _PACE)
            try:
                await self._prove()
            except SessionLost as error:
                self.lose(str(error))
            except Exception as error:
                # Of whatever kind: who stops renewing gives the session away.
                self._failures += 1
                # Once per outage and then at every tenth try: trouble is told, not poured out.
                if self._failures % 10 == 1:
                    self._context.emit(
                        StoreTrouble(
                            "",
                            self._clock.now(),
                            str(error),
                            self._failures,
                            self.timeout * _PACE,
                        )
                    )
            else:
                if self._failures:
                    self._context.emit(StoreRecovered("", self._clock.now(), self._failures))
                    self._failures = 0

    async def _prove(self) -> None:
        """Write our node: whoever commits that knows the session."""
        sent_at = self._clock.now()
        limit = min(self.timeout * _LIMIT, self._context.request_timeout)
        try:
            await self.connection.request(
                lambda client: client.set_async(self._proof, None),
                NoNodeError,
                urgent=True,
                limit=limit,
            )
        except NoNodeError:
            # An operator removed it, and not necessarily the session.
            await self._make_proof()
            return
        except StoreUnavailable:
            # A server that commits nothing may still answer reads and pings. But
            # when it was us who were too busy to look, leaving it would not help.
            if self._clock.now() - sent_at < 2 * limit:
                self.connection.give_up(since=sent_at)
            raise
        self._confirm(sent_at)

    async def _make_proof(self) -> None:
        while True:
            sent_at = self._clock.now()
            try:
                await self.connection.request(
                    lambda client: client.create_async(self._proof, None, ephemeral=True),
                    NoNodeError,
                    NodeExistsError,
                    urgent=True,
                    repeatable=True,
                )
            except NoNodeError:
                await make_parents(self.connection, self._proof)
                continue
            except NodeExistsError:
                # By a create whose answer was lost. That is no news of this moment: write.
                await self._prove()
                return
            self._confirm(sent_at)
            return

    def _confirm(self, sent_at: float) -> None:
        self.lease.confirm(sent_at, self._trusted)
        self.confirmed.set()
        self.confirmed = asyncio.Event()
        now = self._clock.now()
        self._context.emit(LeaseRenewed("", now, now - sent_at, self.lease.valid_until))

    def lose(self, reason: str) -> None:
        """The session is over, and with it every entry."""
        self.lease.end(reason)
        self.confirmed.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        holders, self.holders = self.holders, set()
        for holder in holders:
            holder.entry_gone(reason)

    async def close(self) -> None:
        self.lose("the session was closed")
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._task])
        await self.connection.close()
