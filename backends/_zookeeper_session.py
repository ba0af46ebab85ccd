"""One ZooKeeper session and its lease: confirmed by writes, ended when the server says so.

Why not by pings or reads: a follower that is cut off from its leader goes on
answering both. A write is committed by a quorum, so the leader knew the
session then. How long it lets the session live from there depends on when it last
heard of it: a write is no sign of life to it, a follower passes those on by
itself, every half tick. Half the timeout is safe for every tick that the
timeout allows, as long as we have not been silent before.
"""

from __future__ import annotations

import asyncio
import collections
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
# Half of the longest tick that the timeout allows: what is older a follower has passed on.
_PASSED_ON = 1 / 4


class Holder(Protocol):
    """Whose entry hangs on the session."""

    def entry_gone(self, reason: str) -> None: ...

    def cut_off(self, error: StoreUnavailable) -> None: ...


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
        self._standalone = standalone
        # When the last confirmed writes were sent; more than fit into what is not passed on.
        self._writes: collections.deque[float] = collections.deque(maxlen=8)
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
                # And once per outage to who waits: that asks for itself from then on.
                if self._failures == self.connection.failures_of_an_outage:
                    self._tell_cut(StoreUnavailable(f"the session is not confirmed: {error}"))
            else:
                if self._failures:
                    self._context.emit(StoreRecovered("", self._clock.now(), self._failures))
                    self._failures = 0

    def _tell_cut(self, error: StoreUnavailable) -> None:
        for holder in list(self.holders):
            holder.cut_off(error)

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
        if self._standalone:
            self.lease.confirm(sent_at, self.timeout)
        else:
            half = self.timeout / 2
            heard_at = self._ensemble_heard_at(sent_at)
            latest = heard_at + half * (1 - self._context.max_clock_drift)
            self.lease.confirm(min(sent_at, latest), half)
        self._writes.append(sent_at)
        self.confirmed.set()
        self.confirmed = asyncio.Event()
        now = self._clock.now()
        self._context.emit(LeaseRenewed("", now, now - sent_at, self.lease.valid_until))

    def _ensemble_heard_at(self, sent_at: float) -> float:
        """When the ensemble's leader had surely heard of us, if it committed what we sent then."""
        passed_on = sent_at - self.timeout * _PASSED_ON
        # It is asked about the session at each new connection.
        known = [each for each in self._writes if each <= passed_on]
        return max([self.connection.opened_at, *known])

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
