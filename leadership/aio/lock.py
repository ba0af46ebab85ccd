"""`leadership.lock` for asyncio."""

from __future__ import annotations

from typing import Self

from ..lock import LockBase
from .candidate import Campaigner, Term


class Lock(LockBase[Term], Campaigner):
    """`leadership.Lock` for asyncio; as an async context manager it is acquired for the block."""

    async def acquire(self, timeout: float | None = None) -> int:
        """Wait until the lock is ours, and return its fencing token."""
        term = await self._campaign(timeout)
        return term.token

    async def release(self) -> bool:
        """Let go, or end another task's waiting; False when we did not hold it."""
        held = self.is_held()
        await self.stop()
        return held

    async def wait_lost(self, timeout: float | None = None) -> bool:
        """Return True once it is lost or released; False when `timeout` seconds passed first."""
        return await self._last_term().wait_lost(timeout)

    async def __aenter__(self) -> Self:
        self._enter_block(await (await self._campaign(None)).__aenter__())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._leave_block().__aexit__(*exception)
