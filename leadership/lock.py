"""A TTL lock, for threads: the same machinery as a candidate's single term."""

from __future__ import annotations

import weakref
from typing import ClassVar, Generic, Self

from . import inside
from .backend import Capability
from .candidate import Campaigner, CandidateBase, Term, TermT
from .errors import NotLeader
from .retry import DEFAULT_RETRY, Retry
from .store import StoreBase


class LockBase(CandidateBase[TermT], Generic[TermT]):
    """What the sync and the async lock have in common; it never blocks."""

    _what: ClassVar[str] = "lock"
    _needs: ClassVar[Capability] = Capability.LOCK

    def __init__(
        self,
        store: StoreBase,
        key: str,
        value: str | bytes = "",
        ttl: float = 15.0,
        *,
        retry: Retry | None = DEFAULT_RETRY,
    ) -> None:
        super().__init__(store, key, "lock", ttl, value=value, retry=retry)
        # Each block's own term: when it ends, another's may be the last.
        self._blocks: list[tuple[weakref.ref[object], TermT]] = []

    def _enter_block(self, term: TermT) -> None:
        self._blocks.append((inside.owner(), term))

    def _leave_block(self) -> TermT:
        """The term of the caller's block; where it has none, of the last."""
        own = inside.owner()
        block = next((b for b in reversed(self._blocks) if b[0] == own), self._blocks[-1])
        self._blocks.remove(block)
        return block[1]

    @property
    def token(self) -> int | None:
        """The fencing token of the last acquisition; None before the first."""
        term = self.term
        return None if term is None else term.token

    def is_held(self) -> bool:
        """Whether we hold the lock now: compares the clock with the deadline at this very call."""
        return self.is_leader()

    def check(self) -> None:
        """Return if the lock is held.

        Raises:
            NotLeader: it was never acquired.
            LeadershipLost: it is not held any more.
        """
        self._last_term().check()

    def _last_term(self) -> TermT:
        term = self.term
        if term is None:
            raise NotLeader(f"the lock {self.key!r} was never acquired: acquire it first")
        return term


class Lock(LockBase[Term], Campaigner):
    """A lock that lapses `ttl` seconds after its holder's death; see `Store.lock`.

    As a context manager it is acquired for the block.
    """

    def acquire(self, timeout: float | None = None) -> int:
        """Block until the lock is ours, and return its fencing token.

        Args:
            timeout: seconds to wait, None for ever.

        Raises:
            TimeoutError: it was not ours in time; we no longer wait for it.
            AlreadyRunning: this object holds it, or waits for it.
            NotLeader: `release` was called meanwhile.
        """
        return self._campaign(timeout).token

    def release(self) -> bool:
        """Let go, or end the waiting of another thread; False when we did not hold it.

        Never removes another's lock. Idempotent, from any thread.
        """
        held = self.is_held()
        self.stop()
        return held

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Block until the lock is lost or released; False when `timeout` seconds passed first.

        Raises:
            NotLeader: it was never acquired.
        """
        return self._last_term().wait_lost(timeout)

    def __enter__(self) -> Self:
        self._enter_block(self._campaign(None).__enter__())
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave_block().__exit__(*exception)
