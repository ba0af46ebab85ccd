"""Keys as nodes: parents made on demand, trees read, watched and removed.

ZooKeeper has no keys without nodes above them. A node that stands only for
what is below it has no data (not even an empty value): it is no key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from kazoo.exceptions import NodeExistsError, NoNodeError, NotEmptyError

from ..backend import KVPair
from ..errors import StoreUnavailable
from ._zookeeper_connection import Ask, Connection

T = TypeVar("T")

Watch = Callable[[Any], None] | None


class Requests(Protocol):
    """What sends requests: a connection, or what shares one."""

    def request(
        self, ask: Ask, *expected: type[Exception], repeatable: bool = False
    ) -> Awaitable[Any]: ...


def data_of(path: str, watch: Watch = None) -> Ask:
    """Reads a node's data and stat; sets a watch only where there is a node."""
    return lambda client: client.get_async(path, watch)


def stat_of(path: str, watch: Watch = None) -> Ask:
    """Reads a node's stat, None where there is none; sets a watch in any case."""
    return lambda client: client.exists_async(path, watch)


def children_of(path: str, watch: Watch = None) -> Ask:
    """Reads the names of what is directly below a node."""
    return lambda client: client.get_children_async(path, watch)


def fresh(path: str, read: Ask) -> Ask:
    """`read`, but not before the server has caught up with its leader."""

    def ask(client: Any) -> Any:
        # Both go by the same connection, whose requests are done in their order. Where it breaks
        # between them the next one brings the read alone, which says nothing then.
        synced = client.sync_async(path)
        answer = client.handler.async_result()

        def judge(done: Any) -> None:
            error = synced.exception or done.exception
            if error is None:
                answer.set(done.value)
            else:
                answer.set_exception(error)

        read(client).rawlink(judge)
        return answer

    return ask


async def make_parents(requests: Requests, path: str) -> bool:
    """Make the nodes above `path` that are missing, as persistent ones without data.

    Returns whether there were any.
    """
    made = False
    missing = [path.rpartition("/")[0]]
    while missing and missing[-1]:
        parent = missing[-1]

        def ask(client: Any, parent: str = parent) -> Any:
            return client.create_async(parent, None)

        try:
            await requests.request(ask, NoNodeError, NodeExistsError, repeatable=True)
            made = True
        except NodeExistsError:
            pass
        except NoNodeError:
            missing.append(parent.rpartition("/")[0])
            continue
        missing.pop()
    return made


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all; when one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Tree:
    """All nodes below one, as keys.

    Args:
        root: the path of the node itself.
        key: its key; "" for the root of all.
        hidden: paths that are left out, with what is below them.
        index: which transaction of a node is its pair's index: the last write, if not given.
    """

    def __init__(
        self,
        root: str,
        key: str,
        hidden: frozenset[str],
        index: Callable[[Any], int] = lambda stat: int(stat.mzxid),
    ) -> None:
        self._index = index
        self._root = root
        self._above = f"{key}/" if key else ""
        self._hidden = hidden

    def _below(self, path: str, names: Iterable[str]) -> list[str]:
        base = "" if path == "/" else path
        return [each for name in names if (each := f"{base}/{name}") not in self._hidden]

    def _pair(self, path: str, data: bytes | None, stat: Any) -> KVPair | None:
        if data is None or path == self._root:
            return None
        start = len(self._root) + (self._root != "/")
        return KVPair(self._above + path[start:], data, self._index(stat))

    async def pairs(self, requests: Requests) -> list[KVPair]:
        """All keys, sorted; no snapshot: what changes meanwhile is in it or not."""
        found: list[KVPair] = []

        async def read(path: str) -> None:
            try:
                read_data = data_of(path)
                if path == self._root:
                    read_data = fresh(path, read_data)
                data, stat = await requests.request(read_data, NoNodeError, repeatable=True)
                pair = self._pair(path, data, stat)
                if pair is not None:
                    found.append(pair)
                if not stat.numChildren:
                    return
                names = await requests.request(children_of(path), NoNodeError, repeatable=True)
            except NoNodeError:
                return
            await all_of(map(read, self._below(path, names)))

        await read(self._root)
        return sorted(found, key=lambda pair: pair.key)

    async def remove(self, requests: Requests) -> None:
        """Remove the node and all below it, also what is made meanwhile."""

        async def remove(path: str) -> None:
            while True:
                try:
                    names = await requests.request(children_of(path), NoNodeError, repeatable=True)
                    await all_of(map(remove, self._below(path, names)))
                    await requests.request(
                        lambda client: client.delete_async(path),
                        NoNodeError,
                        NotEmptyError,
                        repeatable=True,
                    )
                except NotEmptyError:
                    continue
                except NoNodeError:
                    pass
                return

        await remove(self._root)

    async def states(self, connection: Connection) -> AsyncGenerator[list[KVPair], None]:
        """What `pairs` gives, at first and after each change."""
        view = _View(self, connection)
        try:
            await view.read(self._root)
            told: list[KVPair] | None = None
            while True:
                now = view.pairs()
                if now != told:
                    yield now
                told = now
                await view.catch_up()
        finally:
            view.forget_all()


class _View:
    """A tree as a watch knows it: each node is read with its watches, and again when they fire."""

    def __init__(self, tree: Tree, connection: Connection) -> None:
        self._tree = tree
        self._connection = connection
        self._known: dict[str, KVPair | None] = {}
        self._children: dict[str, list[str]] = {}
        self._cancel: dict[str, Callable[[], None]] = {}
        self._changed: set[str] = set()
        self._some = asyncio.Event()

    def pairs(self) -> list[KVPair]:
        return sorted(
            (pair for pair in self._known.values() if pair is not None), key=lambda pair: pair.key
        )

    async def catch_up(self) -> None:
        """Wait for a change, and read what has changed."""
        await self._some.wait()
        require_unbroken(self._connection)
        self._some.clear()
        changed, self._changed = self._changed, set()
        for path in sorted(changed):
            # Its parent may have been read meanwhile, and it be gone.
            if path in self._cancel:
                await self.read(path)

    async def read(self, path: str) -> None:
        tree, connection, fired = self._tree, self._connection, self._connection.watches.fired
        self._watch(path)
        root = path == tree._root
        try:
            data, stat = await self._ask(path, data_of(path, fired), root)
            names = await self._ask(path, children_of(path, fired))
        except NoNodeError:
            self._forget(path)
            if root:
                # It may be made yet; a deletion of any other is told by its parent.
                self._watch(path)
                exists = await connection.request(stat_of(path, fired), repeatable=True)
                if exists is not None:
                    await self.read(path)
            return
        children = tree._below(path, names)
        for gone in set(self._children.get(path, ())) - set(children):
            self._forget(gone)
        new = [each for each in children if each not in self._cancel]
        self._children[path] = children
        self._known[path] = tree._pair(path, data, stat)
        await all_of(map(self.read, new))

    async def _ask(self, path: str, ask: Ask, sync: bool = False) -> Any:
        return await self._connection.request(
            fresh(path, ask) if sync else ask, NoNodeError, repeatable=True
        )

    def _watch(self, path: str) -> None:
        if path in self._cancel:
            self._cancel[path]()
        self._cancel[path] = self._connection.watches.subscribe(path, lambda: self._fired(path))

    def _fired(self, path: str) -> None:
        self._changed.add(path)
        self._some.set()

    def _forget(self, path: str) -> None:
        for child in self._children.pop(path, ()):
            self._forget(child)
        self._known.pop(path, None)
        if path in self._cancel:
            self._cancel.pop(path)()

    def forget_all(self) -> None:
        for cancel in self._cancel.values():
            cancel()


async def node_states(
    connection: Connection, path: str, key: str
) -> AsyncGenerator[KVPair | None, None]:
    """The pair at one node, at first and after each change; None where there is none."""
    told: KVPair | None = None
    first = True
    while True:
        changed = asyncio.Event()
        cancel = connection.watches.subscribe(path, changed.set)
        try:
            state = await _read_watched(connection, path, key, sync=first)
            if first or state != told:
                yield state
            first, told = False, state
            await changed.wait()
        finally:
            cancel()
        require_unbroken(connection)


async def _read_watched(connection: Connection, path: str, key: str, sync: bool) -> KVPair | None:
    fired = connection.watches.fired
    while True:
        read = data_of(path, fired)
        try:
            data, stat = await connection.request(
                fresh(path, read) if sync else read, NoNodeError, repeatable=True
            )
        except NoNodeError:
            exists = await connection.request(stat_of(path, fired), repeatable=True)
            if exists is None:
                return None
            continue
        return None if data is None else KVPair(key, data, stat.mzxid)


def require_unbroken(connection: Connection) -> None:
    """Raise where a watch ended because the connection broke: who follows is to be told."""
    if connection.lost is not None or not connection.is_connected:
        raise StoreUnavailable("the connection to ZooKeeper broke; the watch is opened again")
