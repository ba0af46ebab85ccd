"""Watches at the server, shared by whoever wants to know of a path.

A watch of ZooKeeper fires once, and all of a connection's go when it breaks.
So a watch is a hint only: who is told reads again, with the next watch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Told = Callable[[], None]


class _Subscription:
    """One who wants to know of a path; called to take it back."""

    __slots__ = ("_all", "_path", "told")

    def __init__(self, all_told: _Subscriptions, path: str, told: Told) -> None:
        self._all = all_told
        self._path = path
        self.told = told

    def __call__(self) -> None:
        subscribers = self._all.get(self._path)
        if subscribers is not None:
            subscribers.pop(self, None)
            if not subscribers:
                del self._all[self._path]


_Subscriptions: TypeAlias = dict[str, dict[_Subscription, None]]


class Watches:
    """The watches of one connection, on the engine's loop but for `fired`.

    kazoo and the server each keep one watch for equal ones, and neither can
    take one back. So there is one function for all, and who loses interest
    leaves nothing at the server that grows with time.

    Args:
        post: has a function called on the engine's loop; from any thread.
    """

    def __init__(self, post: Callable[..., None]) -> None:
        self._post = post
        self._told: _Subscriptions = {}

    def subscribe(self, path: str, told: Told) -> Callable[[], None]:
        """Have `told` called once, at the path's next event or the connection's end.

        The watch itself is set by a read after this, with `watch=watches.fired`.

        Returns a function that takes the subscription back.
        """
        subscription = _Subscription(self._told, path, told)
        self._told.setdefault(path, {})[subscription] = None
        return subscription

    def fired(self, event: Any) -> None:
        """What kazoo calls, on its own thread."""
        if event.path is not None:
            self._post(self._tell, event.path)

    def cut(self) -> None:
        """The connection broke, and every watch with it."""
        for path in list(self._told):
            self._tell(path)

    def _tell(self, path: str) -> None:
        for subscription in self._told.pop(path, {}):
            subscription.told()
