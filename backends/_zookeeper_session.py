"""One ZooKeeper session and its lease: confirmed by writes, ended when the server says so.

Why not by pings or reads: a follower that is cut off from its leader goes on
answering both. A write is committed by a quorum, so the leader knew the
session then. How long it lets the session live from there depends on when it last
heard of it: a write is no sign of life to it, a follower passes those on by
itself, every half tick. Half the timeout is safe for every tick that the
timeout allows, as long as we have not been silent before.
"""

from __future__ import annotations

import collections
from collections.abc import Collection

from kazoo.exceptions import NodeExistsError, NoNodeError

from ..backend import Context
from ..errors import SessionLost, StoreUnavailable
from ..renewal import GrantedTtls, Holder, RenewedSession
from ._zookeeper_connection import Connection, Settings, opened
from ._zookeeper_tree import make_parents

# Of the timeout: the pace of the proofs, and how long one may take before another
# server is tried. Both within the quarter that the lease's half is derived with.
_PACE = 1 / 10
_LIMIT = 1 / 6
# Half of the longest tick that the timeout allows: what is older a follower has passed on.
_PASSED_ON = 1 / 4


class ZooKeeperSession(RenewedSession):
    """One session, kept and proved by rewriting one node of its own.

    Args:
        directory: the path below which the sessions' own nodes are.
        standalone: trust a lease for the whole timeout, as a single server allows.
    """

    def __init__(
        self, connection: Connection, context: Context, directory: str, *, standalone: bool
    ) -> None:
        super().__init__(context, connection.timeout)
        self.connection = connection
        self.id = connection.id
        self.holders: set[Holder] = set()
        self._proof = f"{directory}/{self.id & (1 << 64) - 1:016x}"
        self._standalone = standalone
        # When the last confirmed writes were sent; more than fit into what is not passed on.
        self._writes: collections.deque[float] = collections.deque(maxlen=8)
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
        ttls: GrantedTtls,
        *,
        standalone: bool,
    ) -> ZooKeeperSession:
        """Open a session; what the server granted counts, not what was asked for."""
        connection = await opened(settings, context, ttl)
        session = cls(connection, context, directory, standalone=standalone)
        try:
            ttls.check(ttl, session.ttl)
            await session._make_proof()
        except SessionLost as error:
            await session.close()
            raise StoreUnavailable(f"a session ended as soon as it was opened: {error}") from None
        except BaseException:
            await session.close()
            raise
        session.begin()
        return session

    def _holders(self) -> Collection[Holder]:
        return self.holders

    def _pause(self, *, failed: bool) -> float:
        return self.ttl * _PACE

    def _is_cut(self, failures: int) -> bool:
        return failures >= self.connection.failures_of_an_outage

    async def _renew(self) -> None:
        """Write our node: whoever commits that knows the session."""
        sent_at = self._clock.now()
        limit = min(self.ttl * _LIMIT, self._context.request_timeout)
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
                await self._renew()
                return
            self._confirm(sent_at)
            return

    def _confirm(self, sent_at: float) -> None:
        if self._standalone:
            self.lease.confirm(sent_at, self.ttl)
        else:
            half = self.ttl / 2
            heard_at = self._ensemble_heard_at(sent_at)
            latest = heard_at + half * (1 - self._context.max_clock_drift)
            self.lease.confirm(min(sent_at, latest), half)
        self._writes.append(sent_at)
        self._was_confirmed(sent_at)

    def _ensemble_heard_at(self, sent_at: float) -> float:
        """When the ensemble's leader had surely heard of us, if it committed what we sent then."""
        passed_on = sent_at - self.ttl * _PASSED_ON
        # It is asked about the session at each new connection.
        known = [each for each in self._writes if each <= passed_on]
        return max([self.connection.opened_at, *known])

    def _stop(self) -> None:
        """Nothing beside the entries hangs on it."""

    async def close(self) -> None:
        self.lose("the session was closed")
        await self._stopped()
        await self.connection.close()
