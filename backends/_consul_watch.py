"""Blocking queries, one for each key of a store, shared by all who follow that key.

A query tells that something changed and what is there now; what happened in
between it does not tell. Its index only grows, unless the store was restored
or its memory of deletions was cleared: then all is read anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ..backend import Context
from ..errors import HandleClosed, LeadershipError, StoreUnavailable
from ._consul_agents import Agents, entries_of
from ._consul_requests import ConsulEntry

PATIENCE = 10.0
"""Seconds that a query waits at the server for whom nothing hangs on hearing of silence soon."""

AFTER_THE_NEWS = 0.003
"""Seconds in which those who were told something act, before a request is made to hear of more.

To make one takes longer than to tell, and an interpreter does one thing at a time.
"""

# Who leads is deaf until the store is asked again, and has to hear within a second that its
# entry was deleted; what is refused is asked for less often.
_LONGEST_PAUSE = 0.5
_LONGEST_PAUSE_REFUSED = 2.0
# What woke a query may have been somebody else's key, again and again.
_PAUSE_UNCHANGED = 0.02
_LONGEST_PAUSE_UNCHANGED = 0.25

# Beyond so many queries, keys share one on their common directory: an agent
# takes 200 connections from one address by default.
_MOST_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Target:
    """What is read: a key, or with `tree` all keys that begin so."""

    path: str
    tree: bool = False

    def covers(self, key: str) -> bool:
        return key.startswith(self.path) if self.tree else key == self.path


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What stood there at one index of the store."""

    entries: tuple[ConsulEntry, ...]
    index: int

    @property
    def entry(self) -> ConsulEntry | None:
        """The one entry there can be, where a key was read."""
        return self.entries[0] if self.entries else None


class Feed:
    """One who follows a target: the latest snapshot, once.

    Args:
        seen: what was read before; older ones are not told.
        wait: seconds that a query may wait at the server.
    """

    def __init__(self, target: Target, seen: Snapshot, wait: float) -> None:
        self.target = target
        self.wait = wait
        self._seen = seen
        self._latest: Snapshot | None = None
        self._error: Exception | None = None
        self._some = asyncio.Event()

    def take(self, snapshot: Snapshot, restarted: bool) -> bool:
        """Be told of what is there now; whether that is new."""
        entries = tuple(each for each in snapshot.entries if self.target.covers(each.key))
        if entries == self._seen.entries or (snapshot.index < self._seen.index and not restarted):
            return False
        self._seen = self._latest = Snapshot(entries, snapshot.index)
        self._some.set()
        return True

    def have(self, seen: Snapshot) -> None:
        """The follower has read by itself: from here on changes are those from `seen`.

        Else what was there before, is gone in `seen` and comes back would be no change.
        """
        if self._latest is None or self._latest.index <= seen.index:
            self._seen, self._latest = seen, None

    def cut(self, error: Exception) -> None:
        self._error = error
        self._some.set()

    def wake(self) -> None:
        """Have `next` return, though there is nothing new."""
        self._some.set()

    async def some(self) -> None:
        """Wait until `latest` has something to say."""
        await self._some.wait()

    def latest(self) -> Snapshot | None:
        """The latest snapshot since the last call; None: woken without.

        Raises:
            StoreUnavailable: we are cut off: read again.
            StoreError: the store refuses.
        """
        self._some.clear()
        if self._error is not None:
            raise self._error
        latest, self._latest = self._latest, None
        return latest

    async def next(self) -> Snapshot | None:
        """As `latest`, once there is something."""
        await self.some()
        return self.latest()


class _Query:
    """One blocking query after the other, while somebody follows."""

    def __init__(self, watches: Watches, target: Target, index: int) -> None:
        self._watches = watches
        self.target = target
        self.feeds: set[Feed] = set()
        self._index = index
        # What all who follow were told last; who joins may have read something older.
        self._last: Snapshot | None = None
        self._asking: asyncio.Future[Snapshot] | None = None
        self._wait = 0.0
        self.task = asyncio.ensure_future(self._run())

    def add(self, feed: Feed) -> None:
        self.feeds.add(feed)
        if self._last is not None:
            feed.take(self._last, restarted=False)
        if self._asking is not None and feed.wait < self._wait:
            self._interrupt()

    def widen(self, target: Target) -> None:
        """Ask about more keys. What was known of fewer says nothing about those."""
        self.target = target
        self._index, self._last = 1, None
        self._interrupt()

    def _interrupt(self) -> None:
        """Ask again, with what has changed about who follows and what."""
        if self._asking is not None:
            self._asking.cancel()

    async def _run(self) -> None:
        context = self._watches.context
        failures, pause = 0, 0.0
        while True:
            target, began = self.target, context.clock.now()
            try:
                restarted = failures > 0
                if restarted:
                    snapshot = await self._watches.read(target)
                else:
                    asked = await self._ask()
                    if asked is None:
                        continue
                    snapshot = asked
                    if self._is_from_other_data(snapshot, context.clock.now() - began):
                        restarted = True
                        snapshot = await self._watches.read(target)
            except Exception as error:
                # Of whatever kind: a query that ends would leave its followers deaf.
                failures += 1
                known = isinstance(error, LeadershipError)
                failure = error if known else StoreUnavailable(f"a query broke: {error!r}")
                refused = not isinstance(failure, StoreUnavailable)
                if refused or self._watches.agents.is_cut(failures):
                    self._tell_cut(failure)
                longest = _LONGEST_PAUSE_REFUSED if refused else _LONGEST_PAUSE
                ceiling = min(longest, 0.1 * 2 ** min(failures - 1, 16))
                await context.clock.sleep(context.random.uniform(ceiling / 2, ceiling))
                continue
            failures = 0
            if target != self.target:
                continue
            self._index, self._last = snapshot.index, snapshot
            news = [feed.take(snapshot, restarted) for feed in list(self.feeds)]
            if any(news):
                pause = 0.0
                await context.clock.sleep(AFTER_THE_NEWS)
            elif context.clock.now() - began >= self._wait:
                pause = 0.0
            else:
                pause = min(_LONGEST_PAUSE_UNCHANGED, max(_PAUSE_UNCHANGED, 2 * pause))
                await context.clock.sleep(pause)

    def _is_from_other_data(self, snapshot: Snapshot, elapsed: float) -> bool:
        """Whether the server's data were replaced: nothing newer, and yet no end of the wait.

        A server that was restored ends its queries with what was there before.
        """
        early = elapsed < 0.9 * self._wait
        return snapshot.index < self._index or (early and snapshot.index == self._index)

    async def _ask(self) -> Snapshot | None:
        """One query; None when it was interrupted."""
        self._wait = min((feed.wait for feed in self.feeds), default=PATIENCE)
        self._asking = asyncio.ensure_future(
            self._watches.poll(self.target, self._index, self._wait)
        )
        try:
            return await self._asking
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._asking.cancel()
                raise
            return None
        finally:
            self._asking = None

    def _tell_cut(self, error: Exception) -> None:
        for feed in list(self.feeds):
            feed.cut(error)


class Watches:
    """All blocking queries of one store.

    Args:
        consistency: `default`, `consistent` or `stale`, for the queries that wait; what is
            read first, and after any trouble, is always consistent.
    """

    def __init__(self, agents: Agents, context: Context, consistency: str) -> None:
        self.agents = agents
        self.context = context
        self._consistency = consistency
        self._queries: dict[Target, _Query] = {}
        self._shared: _Query | None = None

    async def read(self, target: Target) -> Snapshot:
        """What is there as of now: never from a server that lags behind."""
        answer = await self.agents.call(
            "get", _path(target), [*_parameters(target), ("consistent", "")], repeatable=True
        )
        return Snapshot(tuple(entries_of(answer)), answer.index)

    async def poll(self, target: Target, index: int, wait: float) -> Snapshot:
        mode = [] if self._consistency == "default" else [(self._consistency, "")]
        answer = await self.agents.poll(_path(target), [*_parameters(target), *mode], index, wait)
        return Snapshot(tuple(entries_of(answer)), answer.index)

    async def read_for(self, feed: Feed) -> Snapshot:
        """As `read`, of what the feed is about, by its follower."""
        seen = await self.read(feed.target)
        feed.have(seen)
        for query in self._all():
            if feed in query.feeds:
                query.add(feed)
        return seen

    def follow(self, target: Target, seen: Snapshot, wait: float) -> Feed:
        """Be told of what comes after `seen`, until `leave`."""
        feed = Feed(target, seen, wait)
        query = self._queries.get(target)
        if query is None:
            if len(self._queries) >= _MOST_QUERIES and target.path:
                query = self._share(target)
            else:
                query = self._queries[target] = _Query(self, target, seen.index)
        query.add(feed)
        return feed

    def leave(self, feed: Feed) -> None:
        """End a feed, and with the last one the query."""
        for query in self._all():
            if feed in query.feeds:
                query.feeds.discard(feed)
                if not query.feeds:
                    query.task.cancel()
                    if query is self._shared:
                        self._shared = None
                    else:
                        del self._queries[query.target]
                return

    @contextlib.asynccontextmanager
    async def following(
        self, target: Target, seen: Snapshot, wait: float = PATIENCE
    ) -> AsyncGenerator[Feed, None]:
        """As `follow`, for the time of a block."""
        feed = self.follow(target, seen, wait)
        try:
            yield feed
        finally:
            self.leave(feed)

    async def states(
        self, target: Target, wait: float = PATIENCE
    ) -> AsyncGenerator[Snapshot, None]:
        """What is there as of now, then each change; older after newer never."""
        seen = await self.read(target)
        async with self.following(target, seen, wait) as feed:
            yield seen
            while True:
                snapshot = await feed.next()
                if snapshot is not None:
                    yield snapshot

    def _all(self) -> list[_Query]:
        return [*self._queries.values(), *([self._shared] if self._shared else [])]

    def _share(self, target: Target) -> _Query:
        """The query that many keys share, on a directory that holds this one too."""
        shared = self._shared
        if shared is None:
            shared = self._shared = _Query(self, Target(_directory_of(target.path), True), 1)
        elif not target.path.startswith(shared.target.path):
            common = shared.target.path
            while not target.path.startswith(common):
                common = _directory_of(common.rstrip("/"))
            shared.widen(Target(common, True))
        return shared

    async def close(self) -> None:
        queries = self._all()
        self._queries.clear()
        self._shared = None
        for query in queries:
            query.task.cancel()
            for feed in query.feeds:
                feed.cut(HandleClosed("this Consul store is closed: make a new one"))
        if queries:
            await asyncio.wait([query.task for query in queries])


def _directory_of(path: str) -> str:
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head + slash


def _path(target: Target) -> str:
    return f"/v1/kv/{target.path}"


def _parameters(target: Target) -> list[tuple[str, str]]:
    return [("recurse", "")] if target.tree else []
