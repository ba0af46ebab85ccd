"""One contender on ZooKeeper: its entry, its place in the queue, and the proof that it leads.

The entry is an ephemeral sequential node below the election's key. The first
one leads, and each other watches only the one before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kazoo.exceptions import NoAuthError, NoChildrenForEphemeralsError, NoNodeError

from ..backend import ReleasePlan
from ..errors import NotLeader, SessionLost, StoreError
from ..lease import Claim, claim
from ._entry_contender import DELETED, EntryContender, raise_if
from ._zookeeper_connection import Connection
from ._zookeeper_observation import contenders_of
from ._zookeeper_release import release
from ._zookeeper_session import ZooKeeperSession
from ._zookeeper_tree import children_of, data_of, fresh, make_parents, stat_of

if TYPE_CHECKING:
    from ._zookeeper_election import Election


# What the server answers to a create that leaves nothing behind.
_NOT_MADE = (NoNodeError, NoChildrenForEphemeralsError, NoAuthError)


class ZooKeeperContender(EntryContender[ZooKeeperSession]):
    """One candidate's entry in one election."""

    def __init__(
        self,
        election: Election,
        key: str,
        value: bytes,
        ttl: float,
        own_session: bool,
        guarded: bool,
    ) -> None:
        # Sequential nodes tell two contenders of one session apart, so one key's may share it.
        self._user = f"{key}#{next(election.numbers)}"
        slot = election.sessions.reserve(self._user, ttl, own_session, guarded)
        super().__init__(key, value, slot)
        self._election = election
        self._directory = election.settings.path_of(key)
        # Our entry's name, and its czxid; "" while none is known to stand.
        self._name = ""
        self._token = 0
        # What the name of an entry begins with that may stand without our having seen it.
        self._attempt = ""
        # Whether a quorum has seen it just now, by making it.
        self._just_made = False
        # Whether its directory was made with it, so that nobody can be before us.
        self._made_alone = False
        # Whether only the leader was before it when we looked last.
        self._next_in_line = False
        # Whether the watch on our entry is set at the server.
        self._guarded = False
        self._unguard: Callable[[], None] = lambda: None

    # --- to win ---

    async def _campaign_on(self, session: ZooKeeperSession) -> Claim | None:
        if session is not self._session:
            # What hung on the old session went with it, seen or not.
            self._forget()
            self._session = session
        self._just_made = self._made_alone = self._next_in_line = False
        if not self._name:
            await self._enter(session)
        session.holders.add(self)
        if not self._guarded or not self._token:
            await self._guard(session)
        connection = session.connection
        while True:
            # Before the read, so that what happens after it is not missed.
            woken = self._listen()
            if self._told is not None or session.lease.ended is not None:
                break
            if self._next_in_line:
                before, stands = await self._look_and_prove(connection)
            elif self._made_alone:
                before, stands = None, True
            else:
                before, stands = await self._look(connection), self._just_made
            if self._told is not None:
                break
            if self.on_answer is not None:
                self.on_answer()
            if before is None:
                if not stands and not await self._stands(connection):
                    break
                if session.lease.is_valid():
                    return claim(self._token, session.lease)
                self._just_made = self._made_alone = False
                await session.until_confirmed(woken)
                continue
            self._just_made = False
            path = f"{self._directory}/{before}"
            cancel = connection.watches.subscribe(path, self._look_again)
            try:
                # Reading leaves no watch where there is nothing, as asking for existence would.
                await connection.request(
                    data_of(path, connection.watches.fired),
                    NoNodeError,
                    repeatable=True,
                )
                raise_if(await woken)
            except NoNodeError:
                continue
            finally:
                cancel()
        self._forget()
        return None

    async def _enter(self, session: ZooKeeperSession) -> None:
        """Make our entry, unless an earlier attempt of unknown outcome already did.

        To cancel this may leave a write under way: who comes next, or leaves, looks for it.
        """
        connection = session.connection
        if self._attempt:
            await self._find(session)
            if self._name:
                return
        chance = self._election.context.random.getrandbits(64)
        attempt = self._election.names.unique(session.id, chance)
        path = f"{self._directory}/{attempt}"
        election = self._election
        # Whether the directory has to be seen to by itself.
        apart = False

        def ask(client: Any) -> Any:
            # Decided when it goes out, by what the others have found meanwhile.
            if election.directories_are_missing and not apart:
                return self._ask_with_directory(client, path)
            return client.create_async(path, self._value, ephemeral=True, sequence=True)

        while True:
            self._attempt = attempt
            try:
                made = await connection.request(ask, *_NOT_MADE)
            except _NOT_MADE as error:
                self._attempt = ""
                if isinstance(error, NoAuthError):
                    raise connection.translated(error) from None
                if isinstance(error, NoChildrenForEphemeralsError):
                    raise StoreError(
                        f"{self.key!r} is a key with a ttl, and ZooKeeper lets nothing stand "
                        "below one: campaign at another key"
                    ) from None
                if election.finding_out is not None and not apart:
                    # Of a thousand at once one finds out; the others make both in one step.
                    await election.finding_out.wait()
                    continue
                await self._make_directories(connection, path)
                apart = True
                continue
            if self._is_made(made):
                return
            # The directory is there, or not to be made so: what that means shows without it.
            election.directories_are_missing = False
            apart = True

    async def _make_directories(self, connection: Connection, path: str) -> None:
        election = self._election
        election.finding_out = done = asyncio.Event()
        try:
            election.directories_are_missing = await make_parents(connection, path)
        finally:
            done.set()
            if election.finding_out is done:
                election.finding_out = None

    def _ask_with_directory(self, client: Any, path: str) -> Any:
        transaction = client.transaction()
        transaction.create(self._directory)
        # As all directories it has no data, for which this has no word.
        transaction.operations[-1] = transaction.operations[-1]._replace(data=None)
        transaction.create(path, self._value, ephemeral=True, sequence=True)
        return transaction.commit_async()

    def _is_made(self, made: Any) -> bool:
        """Whether our entry was, by one request or the other."""
        name = made
        if isinstance(made, list):
            *_, name = made
            if not isinstance(name, str):
                return False
            # In a directory that was not there before nobody is before us.
            self._made_alone = True
        self._name = name.rpartition("/")[2]
        self._just_made = True
        return True

    async def _find(self, session: ZooKeeperSession) -> None:
        """See what became of a create whose answer never came.

        The session's requests are done in their order, over reconnects too. So
        what is not there now, before the eyes of the leader, never will be.
        """
        connection = session.connection
        with contextlib.suppress(NoNodeError):
            children = await connection.request(
                fresh(self._directory, children_of(self._directory)),
                NoNodeError,
                repeatable=True,
            )
            for child in children:
                if not child.startswith(self._attempt):
                    continue
                path = f"{self._directory}/{child}"
                stat = await connection.request(stat_of(path), repeatable=True)
                # A node of an older session goes with that, whatever its name is.
                if stat is not None and stat.ephemeralOwner == session.id:
                    self._name = child
                    return

    async def _look(self, connection: Connection) -> str | None:
        """Who is next before us, or None when we are first."""
        try:
            contenders = await contenders_of(connection, self._directory, self._election.names)
        except NoNodeError:
            contenders = []
        if self._name not in contenders:
            self.entry_gone(DELETED)
            return None
        position = contenders.index(self._name)
        self._next_in_line = position == 1
        return contenders[position - 1] if position else None

    async def _look_and_prove(self, connection: Connection) -> tuple[str | None, bool]:
        """Who is next before us; if nobody, whether our entry stands.

        Both in one round trip, for the server does a session's requests in their order.
        Only who is next in line does this: the proof is as dear as a write.
        """
        proof = asyncio.ensure_future(self._stands(connection))
        # After a look that failed nobody else takes its exception.
        proof.add_done_callback(lambda proof: proof.cancelled() or proof.exception())
        try:
            before = await self._look(connection)
            return before, before is None and await proof
        finally:
            proof.cancel()

    async def _stands(self, connection: Connection) -> bool:
        """The proof after the wait: a quorum has just seen our entry.

        A check alone goes the way of a write, and wakes nobody.
        """

        def ask(client: Any) -> Any:
            transaction = client.transaction()
            transaction.check(f"{self._directory}/{self._name}", -1)
            return transaction.commit_async()

        try:
            (seen,) = await connection.request(ask, NoNodeError, repeatable=True)
        except NoNodeError as error:
            seen = error
        if seen is not True:
            self.entry_gone(DELETED)
        return seen is True

    # --- what the watches tell ---

    async def _guard(self, session: ZooKeeperSession) -> None:
        """Watch our entry, and see whether it is still there, and what its token is."""
        name, connection = self._name, session.connection
        path = f"{self._directory}/{name}"
        self._unguard()
        self._unguard = connection.watches.subscribe(path, self._own_changed)
        # From here on, for the watch may fire before we go on after the answer.
        self._guarded = True
        try:
            stat = await connection.request(
                stat_of(path, connection.watches.fired), repeatable=True
            )
        except BaseException:
            if name == self._name:
                self._guarded = False
            raise
        if name != self._name:
            return
        # Another client's node by our name has another's token, and goes with another's session.
        if stat is None or stat.ephemeralOwner != session.id:
            self.entry_gone(DELETED)
        else:
            self._token = stat.czxid

    def _own_changed(self) -> None:
        self._guarded = False
        if self._session is not None and self._name and self._told is None:
            self._election.spawn(self._guard_anew(self._session, self._name))

    async def _guard_anew(self, session: ZooKeeperSession, name: str) -> None:
        while name == self._name and self._told is None and not self._guarded:
            try:
                await session.connection.connected()
                if name == self._name:
                    await self._guard(session)
            except SessionLost as error:
                session.lost_by(error)
            except StoreError:
                await self._election.context.clock.sleep(min(1.0, session.ttl / 10))
                continue
            return

    # --- as leader, and after ---

    async def proclaim(self, value: bytes) -> None:
        session, name = self._session, self._name
        if session is None or not name or self._told is not None:
            raise NotLeader(f"our entry for {self.key!r} is gone; campaign again")
        path = f"{self._directory}/{name}"
        try:
            await session.connection.request(
                lambda client: client.set_async(path, value), NoNodeError
            )
        except NoNodeError:
            self.entry_gone(DELETED)
        except SessionLost as error:
            session.lost_by(error)
        if self._told is not None:
            raise NotLeader(f"our entry for {self.key!r} is gone; campaign again")
        self._value = value

    def release_plan(self) -> ReleasePlan | None:
        if self._session is None:
            return None
        return ReleasePlan(release, self._session.connection.way())

    async def leave(self) -> None:
        self._lost = None
        session = self._session
        if session is not None and session.lease.ended is None:
            self._leaving = True
            try:
                await self._remove(session)
            except SessionLost as error:
                session.lost_by(error)
        self._forget()

    async def _remove(self, session: ZooKeeperSession) -> None:
        if self._attempt and not self._name:
            await self._find(session)
        if self._name:
            path = f"{self._directory}/{self._name}"
            with contextlib.suppress(NoNodeError):
                await session.connection.request(
                    lambda client: client.delete_async(path), NoNodeError, repeatable=True
                )

    def _forget(self) -> None:
        self._unguard()
        self._unguard = lambda: None
        if self._session is not None:
            self._session.holders.discard(self)
        self._guarded = self._just_made = self._made_alone = self._leaving = False
        self._name = self._attempt = ""
        self._token = 0
        self._told = None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        session = self._session
        if session is not None and self._attempt and session.lease.ended is None:
            # `leave` was given up, and others may keep the session alive: what
            # stands on it would block the election.
            self._election.spawn(self._leave_later(session))
        await self._election.sessions.give_back(self._slot, self._user)

    async def _leave_later(self, session: ZooKeeperSession) -> None:
        while session.lease.ended is None:
            try:
                await self.leave()
            except StoreError:
                await self._election.context.clock.sleep(min(1.0, session.ttl / 10))
            else:
                return
