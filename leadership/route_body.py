"""A request's body on its way to the leader: streamed, its beginning kept to be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator


class ClientGoneError(Exception):
    """Whoever sent the request has closed the connection: nobody waits for an answer."""


class KeptBody:
    """One body, which several attempts may read, one after the other.

    A chunk is taken only when somebody asks for it, so a slow receiver slows
    the sender down.

    Args:
        source: the chunks as they arrive; `ClientGoneError` where they end too soon.
        limit: bytes that are kept; of a longer body only what comes last.
    """

    def __init__(self, source: AsyncIterator[bytes], limit: int) -> None:
        self._source = source
        self._limit = limit
        self._kept: list[bytes] = []
        self._last = b""
        self._count = 0
        self._size = 0
        self._taking: asyncio.Task[None] | None = None
        self._ended = False
        self.client_gone = False

    async def begin(self) -> None:
        """Wait for the first bytes, or the end where there are none."""
        await self.chunk(0)

    @property
    def empty(self) -> bool:
        """After `begin`: whether there is no body."""
        return self._ended and not self._size

    @property
    def repeatable(self) -> bool:
        """Whether all that was read so far can be read again."""
        return len(self._kept) == self._count or self._count == 1

    async def chunk(self, position: int) -> bytes | None:
        """The chunk after `position` others, None at the end; a wait given up loses nothing.

        Raises:
            ClientGoneError: the body ended too soon.
        """
        while position >= self._count:
            if self.client_gone:
                raise ClientGoneError
            if self._ended:
                return None
            if self._taking is None:
                self._taking = asyncio.ensure_future(self._take())
            await asyncio.shield(self._taking)
        if position == self._count - 1:
            return self._last
        return self._kept[position]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """All of it from the beginning, if it is `repeatable`."""
        position = 0
        while (chunk := await self.chunk(position)) is not None:
            position += 1
            yield chunk

    async def _take(self) -> None:
        try:
            # An empty chunk would be the end in some encodings.
            while (chunk := await anext(self._source, None)) == b"":
                pass
        except ClientGoneError:
            self.client_gone = True
            return
        finally:
            self._taking = None
        if chunk is None:
            self._ended = True
            return
        self._size += len(chunk)
        self._count += 1
        self._last = chunk
        if self._size <= self._limit:
            self._kept.append(chunk)
        else:
            self._kept.clear()

    def close(self) -> None:
        """Nobody will ask for more."""
        if self._taking is not None:
            self._taking.cancel()
