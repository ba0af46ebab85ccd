"""The follower, for threads."""

from __future__ import annotations

from typing import NoReturn, Self

from .backend import Capability
from .checks import checked_key, checked_seconds, checked_timeout
from .errors import ConfigurationError, LeaderUnknown
from .following import Following, Leader
from .retry import DEFAULT_RETRY, Retry
from .store import Store, StoreBase
from .streams import Stream


class FollowerBase:
    """What the sync and the async follower have in common; it never blocks."""

    def __init__(
        self,
        store: StoreBase,
        key: str,
        *,
        retry: Retry | None = DEFAULT_RETRY,
        patience: float = 1.0,
    ) -> None:
        if not isinstance(store, StoreBase):
            raise ConfigurationError(
                f"store={store!r}: make one with new_store('etcd://127.0.0.1:2379')"
            )
        self._store = store
        self.core = store.core
        self.core.check_open()
        self.core.need("a follower", Capability.ELECTION)
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigurationError(f"retry={retry!r}: give a Retry, or None to raise at once")
        self.key = checked_key(key)
        self._following = Following(
            self.core, self.key, retry, checked_seconds("patience", patience), store
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a follower cannot be pickled: its watch belongs to one process; make one there"
        )


class Follower(FollowerBase):
    """Follows who leads `key`, without contending.

    Args:
        store: from `new_store`.
        key: the election.
        retry: how to ride out the store's outages; None raises the first one.
        patience: seconds that we may be cut off from the store before the
            leader counts as unknown.
    """

    def follow_election(self) -> Stream[str | None]:
        """An iterator of who leads: the present leader first, then each later one.

        None while there is no leader, or none is known for longer than
        `patience`. The same value twice in a row is told once. An iterator
        that is a context manager; leaving the loop in any way ends the watch.
        """
        self.core.check_open()
        return Stream(self.core, self._following.cursor_of_values())

    def observe(self) -> Stream[Leader]:
        """As `follow_election`, with all that is known, and what is not."""
        self.core.check_open()
        return Stream(self.core, self._following.cursor_of_leaders())

    def leader(self, max_age: float | None = None) -> str | None:
        """Who leads, or None; asks the store unless a running observation knows.

        Args:
            max_age: seconds since the store last confirmed the answer; older
                knowledge is asked for anew.

        Raises:
            LeaderUnknown: the store does not answer, and nothing recent enough is known.
        """
        self.core.check_open()
        return self.core.call(self._following.leader, checked_timeout(max_age))

    def wait_for_leader(self, timeout: float | None = None) -> str:
        """Block until somebody leads, and say who.

        Raises:
            TimeoutError: nobody led within `timeout` seconds.
            LeaderUnknown: the follower was stopped meanwhile.
        """
        limit = checked_timeout(timeout)
        self.core.check_open()
        try:
            value = self.core.call_within(limit, self._following.wait_for_leader)
        except TimeoutError:
            raise TimeoutError(f"nobody led {self.key!r} within {timeout} s") from None
        if value is None:
            raise LeaderUnknown("the follower was stopped before a leader was seen")
        return value

    def stop(self) -> None:
        """End all observations; their iterators end. Idempotent, from any thread.

        An iterator whose first `next` is still to come begins a new observation.
        """
        if not self.core.nothing_to_end():
            self.core.call(self._following.stop)

    close = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def NewFollower(store: Store, key: str) -> Follower:  # noqa: N802
    """`Follower`, under the name that people who come from Go look for."""
    return Follower(store, key)
