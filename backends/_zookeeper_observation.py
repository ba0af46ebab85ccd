"""Who contends in an election on ZooKeeper, and who leads it, as anybody can see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from kazoo.exceptions import NoNodeError

from ..backend import Entry
from ._zookeeper_connection import Connection
from ._zookeeper_names import NodeNames, in_order
from ._zookeeper_tree import all_of, children_of, data_of, require_unbroken, stat_of


async def contenders_of(
    connection: Connection, directory: str, names: NodeNames, watched: bool = False
) -> list[str]:
    """The names of an election's contenders, first come first.

    Raises:
        NoNodeError: there is nothing at the key.
    """
    watch = connection.watches.fired if watched else None
    while True:
        children = await connection.request(
            children_of(directory, watch),
            NoNodeError,
            repeatable=True,
        )
        ordered = in_order(names, children)
        if ordered is not None:
            return ordered
        contenders = [child for child in children if names.counter(child) is not None]

        stats = await all_of(
            connection.request(stat_of(f"{directory}/{name}"), repeatable=True)
            for name in contenders
        )
        made = [
            (stat.czxid, name)
            for stat, name in zip(stats, contenders, strict=True)
            if stat is not None
        ]
        return [name for _, name in sorted(made)]


async def leaders(
    connection: Connection, directory: str, names: NodeNames
) -> AsyncGenerator[Entry | None, None]:
    """Who leads, at first and after each change.

    While somebody leads only that entry is watched: who enters, enters behind it.
    """
    watches = connection.watches
    told: Entry | None = None
    first = True
    while True:
        changed = asyncio.Event()
        with contextlib.ExitStack() as subscriptions:

            def subscribe(
                path: str,
                stack: contextlib.ExitStack = subscriptions,
                wake: Callable[[], None] = changed.set,
            ) -> None:
                stack.callback(watches.subscribe(path, wake))

            entry = await _leader(connection, directory, names, subscribe, sync=first)
            if first or entry != told:
                yield entry
            first, told = False, entry
            await changed.wait()
        require_unbroken(connection)


async def _leader(
    connection: Connection,
    directory: str,
    names: NodeNames,
    subscribe: Callable[[str], None],
    sync: bool,
) -> Entry | None:
    fired = connection.watches.fired
    if sync:
        await connection.request(lambda client: client.sync_async(directory), repeatable=True)
    watched = False
    while True:
        try:
            contenders = await contenders_of(connection, directory, names, watched)
        except NoNodeError:
            subscribe(directory)
            exists = await connection.request(stat_of(directory, fired), repeatable=True)
            if exists is None:
                return None
            continue
        if contenders:
            path = f"{directory}/{contenders[0]}"
            subscribe(path)
            with contextlib.suppress(NoNodeError):
                data, stat = await connection.request(
                    data_of(path, fired),
                    NoNodeError,
                    repeatable=True,
                )
                return Entry(data or b"", stat.czxid)
        elif watched:
            return None
        else:
            # Nobody: so whoever enters next is to be told.
            subscribe(directory)
            watched = True
