"""The nodes that make up a store, where it is made of such: listed and changed while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from .backend import Capability, Membership
from .checks import checked_timeout
from .core import Core
from .errors import ConfigurationError

T = TypeVar("T")

Change = tuple[tuple[str, ...], tuple[str, ...], float | None]
"""What is added, what is removed, and how many seconds it may take."""


class _OfThreads(Protocol):
    core: Core

    def _run(self, act: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T: ...


class _OfTasks(Protocol):
    core: Core

    def _run(self, act: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Awaitable[T]: ...


class Members:
    """A store's methods for it, for threads."""

    def members(self: _OfThreads) -> Membership:
        """The nodes that make up this store (`peers`), as the one that is asked goes by them.

        Raises:
            AccessDenied: the secret is not the cluster's.
        """
        self.core.need("members", Capability.MEMBERS)
        return self._run(self.core.backend.members)

    def change_members(
        self: _OfThreads,
        *,
        add: str | Iterable[str] = (),
        remove: str | Iterable[str] = (),
        timeout: float | None = None,
    ) -> Membership:
        """Add and remove nodes of this store while it runs, and return the list that results.

        Elections go on meanwhile, and tokens rise. It can be repeated safely, and
        has to be where it did not end: what is done already is not done twice. A
        node that is added must be running, as one that joins. One that is removed
        never votes again, and its address never comes back.

        Args:
            add, remove: addresses, `host:port`; one or several.
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: it did not end in time, and may still come about; the
                message says how far it has come.
            StoreUnavailable: no node answered in that time, so nothing was changed.
            NotSupported: a member has no `state_dir`.
            ConfigurationError: an address that is added was removed before, one that is
                removed never was a member, or no majority of the new list would answer.
            AccessDenied: the secret is not the cluster's.
        """
        change = _checked(self.core, add, remove, timeout)
        return self._run(self.core.backend.change_members, *change)


class AsyncMembers:
    """A store's methods for it, for tasks."""

    async def members(self: _OfTasks) -> Membership:
        """The nodes that make up this store; see `leadership.Store.members`."""
        self.core.need("members", Capability.MEMBERS)
        return await self._run(self.core.backend.members)

    async def change_members(
        self: _OfTasks,
        *,
        add: str | Iterable[str] = (),
        remove: str | Iterable[str] = (),
        timeout: float | None = None,
    ) -> Membership:
        """Add and remove nodes of this store; see `leadership.Store.change_members`.

        Cancelled on its way, it may still come about.
        """
        change = _checked(self.core, add, remove, timeout)
        return await self._run(self.core.backend.change_members, *change)


def _checked(
    core: Core, add: str | Iterable[str], remove: str | Iterable[str], timeout: float | None
) -> Change:
    core.need("change_members", Capability.MEMBERS)
    added, removed = _listed(add), _listed(remove)
    if both := sorted(set(added) & set(removed)):
        raise ConfigurationError(f"both to be added and to be removed: {', '.join(both)}")
    return added, removed, checked_timeout(timeout)


def _listed(addresses: str | Iterable[str]) -> tuple[str, ...]:
    given = [addresses] if isinstance(addresses, str) else addresses
    return tuple(dict.fromkeys(given))
