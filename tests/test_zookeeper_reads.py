"""A read that must not be stale is no answer without the sync before it."""

from __future__ import annotations

from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, NoNodeError

from leadership.backends._zookeeper_tree import fresh


class Syncing:
    """A client that is not connected, and what its sync comes to."""

    def __init__(self, outcome: Exception | None) -> None:
        self.handler = KazooClient().handler
        self._outcome = outcome

    def sync_async(self, path: str) -> Any:
        return self.answered(path, self._outcome)

    def answered(self, value: Any, error: Exception | None = None) -> Any:
        result = self.handler.async_result()
        if error is None:
            result.set(value)
        else:
            result.set_exception(error)
        return result


def test_a_read_whose_sync_was_lost_with_its_connection_is_none() -> None:
    client = Syncing(ConnectionLoss())
    answer = fresh("/a", lambda client: client.answered(b"of the next connection"))(client)
    assert isinstance(answer.exception, ConnectionLoss)


@pytest.mark.parametrize("error", [None, NoNodeError()], ids=["a value", "an error"])
def test_with_its_sync_a_read_is_what_it_is(error: Exception | None) -> None:
    client = Syncing(None)
    answer = fresh("/a", lambda client: client.answered(b"1", error))(client)
    assert answer.exception is error
    assert error is not None or answer.value == b"1"
