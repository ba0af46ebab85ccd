"""Consul's keys for the store: writes, swaps, and keys with a ttl.

A key with a ttl is held by a session of its own, whose end removes it. That
session is destroyed with the key, or lapses: between one and two ttl after
the last write.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from ..backend import Context, KVPair
from ..errors import KeyExists, KeyModified, SessionLost, StoreError
from ._consul_agents import Agents, Refused, decoded, entries_of
from ._consul_requests import (
    ConsulEntry,
    Operation,
    deleting,
    deleting_tree,
    locking,
    reading,
    setting,
    swapping,
    unchanged,
    unlocking,
)
from ._consul_session import SessionOptions, create_session, destroy_session

_TTL_NAME = "leadership: a key with a ttl"


class _Info(msgspec.Struct, frozen=True):
    Name: str


class Keys:
    """The writes of one store."""

    def __init__(self, agents: Agents, context: Context, options: SessionOptions) -> None:
        self._agents = agents
        self._context = context
        # A lock-delay protects what a leader does, and there is none here.
        self._options = SessionOptions(0.0, options.node_health)

    async def put(self, key: str, value: bytes, ttl: float | None) -> KVPair:
        if ttl is not None:
            return await self._put_for(ttl, key, value, None)
        while True:
            written = await self._write(setting(key, value))
            assert written is not None
            made_to_stay = await self._made_to_stay(written, value)
            if made_to_stay is not None:
                return made_to_stay

    async def atomic_put(
        self, key: str, value: bytes, previous: KVPair | None, ttl: float | None
    ) -> KVPair:
        index = 0 if previous is None else previous.index
        if ttl is not None:
            return await self._put_for(ttl, key, value, index)
        written = await self._write(swapping(key, value, index))
        if written is None:
            _modified(key, index)
        made_to_stay = await self._made_to_stay(written, value)
        if made_to_stay is None:
            raise KeyModified(f"{key!r} lapsed or changed while it was written: read it again")
        return made_to_stay

    async def _write(self, *operations: Operation) -> ConsulEntry | None:
        """The entry that the last operation wrote; None when they were refused."""
        done = await self._agents.transact(*operations, repeatable=False)
        return None if isinstance(done, Refused) else done[-1]

    async def _made_to_stay(self, written: ConsulEntry, value: bytes) -> KVPair | None:
        """A write leaves a key in its session's hands: take it out, unless an election's.

        None when the key has changed since, or lapsed.
        """
        session = written.session
        if session is not None and await self._is_for_ttl(session):
            try:
                freed = await self._write(
                    unchanged(written.key, written.modify_index),
                    unlocking(written.key, session, value),
                )
            except SessionLost:
                return None
            if freed is None:
                return None
            await self._destroy(session)
            written = freed
        return KVPair(written.key, value, written.modify_index)

    async def _is_for_ttl(self, session: str) -> bool:
        answer = await self._agents.call(
            "get", f"/v1/session/info/{session}", [("consistent", "")], repeatable=True
        )
        found: list[_Info] | None = decoded(answer.body, list[_Info] | None)
        return bool(found) and found is not None and found[0].Name == _TTL_NAME

    async def _put_for(self, ttl: float, key: str, value: bytes, index: int | None) -> KVPair:
        """Write a key that lapses; `index`: only if that was its last write (0: only create)."""
        session = await create_session(
            self._agents, ttl, self._options, name=_TTL_NAME, deletes=True
        )
        written: ConsulEntry | None = None
        try:
            while written is None:
                entry = await self._entry(key)
                at = 0 if entry is None else entry.modify_index
                if index is not None and at != index:
                    _modified(key, index)
                former = None if entry is None else entry.session
                if former is not None and not await self._is_for_ttl(former):
                    raise StoreError(
                        f"{key!r} is held by an election or a lock: a key with a ttl cannot "
                        "take its place; take another key"
                    )
                freeing = [] if former is None else [unlocking(key, former, value)]
                written = await self._write(
                    unchanged(key, at), *freeing, locking(key, session, value, flags=0)
                )
        finally:
            if written is None:
                await self._destroy(session)
        if former is not None:
            await self._destroy(former)
        return KVPair(key, value, written.modify_index)

    async def _entry(self, key: str) -> ConsulEntry | None:
        answer = await self._agents.call(
            "get", f"/v1/kv/{key}", [("consistent", "")], repeatable=True
        )
        return next(iter(entries_of(answer)), None)

    async def _destroy(self, session: str) -> None:
        await destroy_session(self._agents, session, min(2.0, self._context.request_timeout))

    async def delete(self, key: str) -> bool:
        done = await self._agents.transact(reading(key), deleting(key), repeatable=False)
        if isinstance(done, Refused):
            return False
        await self._drop(done[0])
        return True

    async def atomic_delete(self, key: str, previous: KVPair) -> None:
        done = await self._agents.transact(
            unchanged(key, previous.index), deleting(key), repeatable=False
        )
        if isinstance(done, Refused):
            _modified(key, previous.index)
        await self._drop(done[0])

    async def _drop(self, entry: ConsulEntry) -> None:
        """A removed key's session has nothing left to do."""
        if entry.session is not None and await self._is_for_ttl(entry.session):
            await self._destroy(entry.session)

    async def delete_tree(self, directory: str) -> None:
        await self._agents.transact(
            deleting_tree(f"{directory}/"), deleting(directory), repeatable=False
        )


def _modified(key: str, index: int) -> NoReturn:
    if index == 0:
        raise KeyExists(f"{key!r} is there already: read it and give it as previous")
    raise KeyModified(f"{key!r} changed or went since it was read: read it again")
