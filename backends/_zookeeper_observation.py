"""Who contends in an election on ZooKeeper, and who leads it, as anybody can see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

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
    told: _Leader | None = None
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

            if first:
                await connection.request(
                    lambda client: client.sync_async(directory), repeatable=True
                )
            if told is None:
                leader = await _leader(connection, directory, names, subscribe)
            else:
                leader = await _leader_after(told, connection, directory, names, subscribe)
            if first or leader != told:
                yield None if leader is None else leader.entry
            first, told = False, leader
            await changed.wait()
        require_unbroken(connection)


@dataclass(frozen=True, slots=True)
class _Leader:
    path: str
    entry: Entry


async def _leader_after(
    told: _Leader,
    connection: Connection,
    directory: str,
    names: NodeNames,
    subscribe: Callable[[str], None],
) -> _Leader | None:
    """Who leads after a change at the leader's entry: it has a new value, or is gone.

    Both is asked at once, as the event does not carry the value: a follower
    is told as early as the server allows, whichever it is.
    """
    look = asyncio.ensure_future(_leader(connection, directory, names, subscribe))
    # Where it is of no use nobody else takes its exception.
    look.add_done_callback(lambda look: look.cancelled() or look.exception())
    try:
        leader = await _at(told.path, connection, subscribe)
        # The same entry: who entered since is behind it.
        if leader is not None and leader.entry.token == told.entry.token:
            return leader
        return await look
    finally:
        look.cancel()


async def _leader(
    connection: Connection,
    directory: str,
    names: NodeNames,
    subscribe: Callable[[str], None],
) -> _Leader | None:
    fired = connection.watches.fired
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
            leader = await _at(f"{directory}/{contenders[0]}", connection, subscribe)
            if leader is not None:
                return leader
        elif watched:
            return None
        else:
            # Nobody: so whoever enters next is to be told.
            subscribe(directory)
            watched = True


async def _at(
    path: str, connection: Connection, subscribe: Callable[[str], None]
) -> _Leader | None:
    """The leader whose entry is at this path; watched from now on, where there is one."""
    subscribe(path)
    try:
        data, stat = await connection.request(
            data_of(path, connection.watches.fired), NoNodeError, repeatable=True
        )
    except NoNodeError:
        return None
    return _Leader(path, Entry(data or b"", stat.czxid))
