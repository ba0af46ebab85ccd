"""How elections stand, as a store shows them to somebody who only looks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from .backend import Backend, Entry
from .contention import token_of, unseal


@dataclass(frozen=True, slots=True)
class Standing:
    """One election.

    Attributes:
        key: the election.
        leader: who leads; None: nobody.
        waiting: what those who wait would lead with, first come first; None: the store
            does not know of them.
        lease: what `Backend.lease_left` takes; "" where the store has nothing to tell.
    """

    key: str
    leader: Entry | None
    waiting: tuple[bytes, ...] | None = None
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Contending:
    """One contender's entry, in a store where the oldest entry leads.

    Attributes:
        key: the election.
        value: what it leads with, or would.
        token: grows from entry to entry.
        lease: what it hangs on.
    """

    key: str
    value: bytes
    token: int
    lease: str = ""


def standings_of(entries: Iterable[Contending]) -> tuple[Standing, ...]:
    """The elections that the entries are in, sorted by key: of each the oldest entry leads."""
    elections: dict[str, list[Contending]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.key, entry.token)):
        elections.setdefault(entry.key, []).append(entry)
    return tuple(
        Standing(
            key,
            Entry(first.value, first.token),
            tuple(entry.value for entry in others),
            first.lease,
        )
        for key, (first, *others) in elections.items()
    )


async def standings_by_watch(
    backend: Backend, directory: str
) -> AsyncGenerator[tuple[Standing, ...], None]:
    """Find the envelopes below `directory`; who waits leaves none, so nobody can know of them."""
    told: tuple[Standing, ...] | None = None
    async with contextlib.aclosing(backend.watch_tree(directory)) as states:
        async for pairs in states:
            opened = [(pair, unseal(pair)) for pair in pairs]
            now = tuple(
                Standing(pair.key, Entry(envelope.value, token_of(pair, envelope)))
                for pair, envelope in opened
                if envelope is not None
            )
            if now != told:
                yield now
            told = now
