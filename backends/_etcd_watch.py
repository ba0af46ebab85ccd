"""All watches of one etcd store, on one stream.

A watch goes on where it was when the stream dies: it is asked for again from
the next revision, so that nothing is missed and nothing has to be read again.
Only where the server has compacted those revisions away its owner must read.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from ..clock import Clock
from ..errors import (
    AccessDenied,
    HandleClosed,
    LeadershipError,
    StoreError,
    StoreUnavailable,
)
from ._etcd_connection import Connection, Link, is_old_token, speaks_of_old_token, translate
from ._grpc import END_OF_STREAM, etcdrpc, grpc

# Seconds until a stream that broke is opened again; the longest after failures in a row. Who
# leads is deaf meanwhile, and has to hear within a second that its entry was deleted.
_PAUSE = 0.1
_LONGEST_PAUSE = 0.5

# Seconds until the server is told that a watch has ended. Who ends one mostly has news to
# pass on, and what it would take to tell the server comes after that.
_IN_NO_HURRY = 0.02


class Watch:
    """One watched key or range.

    Args:
        revision: the first revision that is of interest.
        on_events: is told of changes, in order, on the event loop; must not block.
        on_cut: is told when the stream died; the watch goes on by itself. Or,
            when it is `cancelled`, that it cannot: `Compacted`, or refused.
    """

    __slots__ = (
        "cancelled",
        "denied",
        "id",
        "key",
        "on_cut",
        "on_events",
        "range_end",
        "revision",
    )

    def __init__(
        self,
        key: bytes,
        range_end: bytes,
        revision: int,
        on_events: Callable[[Iterable[Any]], None],
        on_cut: Callable[[LeadershipError], None],
    ) -> None:
        self.key = key
        self.range_end = range_end
        self.revision = revision
        self.on_events = on_events
        self.on_cut = on_cut
        self.id: int | None = None
        self.cancelled = False
        # Refused once, perhaps only because the stream's token had become too old.
        self.denied = False


class Compacted(StoreError):
    """The server no longer has the revisions that a watch needs: read the present state."""


class Watches:
    """The stream, and who is on it. It lives while somebody watches."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._watches: set[Watch] = set()
        self._by_id: dict[int, Watch] = {}
        # etcd answers create requests in the order in which they came.
        self._creating: collections.deque[Watch] = collections.deque()
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._call: Any = None
        # Streams in a row on which no watch came about.
        self._failures = 0

    def watch(
        self,
        key: bytes,
        range_end: bytes,
        revision: int,
        on_events: Callable[[Iterable[Any]], None],
        on_cut: Callable[[LeadershipError], None],
    ) -> Watch:
        """Watch from `revision` on; `range_end` as etcd has it, empty for one key."""
        watch = Watch(key, range_end, revision, on_events, on_cut)
        self._watches.add(watch)
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        elif self._call is not None:
            self._create(watch)
        return watch

    def cancel(self, watch: Watch) -> None:
        """End a watch; its callbacks are not called any more."""
        if watch.cancelled:
            return
        watch.cancelled = True
        self._watches.discard(watch)
        if watch.id is not None:
            self._by_id.pop(watch.id, None)
            loop = asyncio.get_running_loop()
            loop.call_later(_IN_NO_HURRY, self._end_on, self._call, watch.id)
        if not self._watches and self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def cut_off(self) -> bool:
        """Whether the store is out of reach, and not only a stream that died to be opened again."""
        return self._connection.is_cut(self._failures)

    def interrupt(self) -> None:
        """The connection gave up its link: a stream on it is void."""
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        task, self._task = self._task, None
        self._tell_cut(HandleClosed("this etcd store is closed: make a new one"))
        for watch in list(self._watches):
            watch.cancelled = True
        self._watches.clear()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # --- the stream ---

    async def _run(self) -> None:
        while True:
            try:
                await self._read_stream()
            except StoreError as error:
                failure = error
            except Exception as error:
                # Whatever it was: a stream that is not opened again would leave
                # every watch deaf, and nobody would know.
                failure = StoreUnavailable(f"the watch stream broke: {error!r}")
            pause = min(_PAUSE * 2 ** min(self._failures, 16), _LONGEST_PAUSE)
            self._failures += 1
            self._tell_cut(failure)
            await self._clock.sleep(pause)

    async def _read_stream(self) -> None:
        link = self._connection.link()
        metadata = await self._connection.metadata(link)
        self._requests = asyncio.Queue()
        self._creating.clear()
        self._by_id.clear()
        for watch in self._watches:
            watch.id = None
        # A member that lost its cluster's leader must say so, not stay silent.
        call = self._call = link.watch.Watch(metadata=metadata)
        writer = asyncio.ensure_future(self._write(call, self._requests))
        for watch in list(self._watches):
            self._create(watch)
        opened_at = self._clock.now()
        try:
            # Only for the first answer: on a stream that stands silence is no trouble.
            async with asyncio.timeout(self._connection.timeout) as patience:
                while True:
                    response = await call.read()
                    patience.reschedule(None)
                    if response is END_OF_STREAM:
                        raise StoreUnavailable(f"etcd at {link.endpoint} ended the watch stream")
                    self._take(response)
        except TimeoutError:
            self._connection.abandon_if_silent(link, opened_at)
            raise StoreUnavailable(f"etcd at {link.endpoint} opened no watch in time") from None
        except grpc.aio.AioRpcError as error:
            raise self._failed(link, error) from None
        except grpc.aio.UsageError as error:
            raise StoreUnavailable(f"the watch stream was given up: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StoreUnavailable("the watch stream was given up") from None
        finally:
            # Not another stream's, which may have been opened since we were cancelled.
            if self._call is call:
                self._call = None
            call.cancel()
            writer.cancel()

    def _failed(self, link: Link, error: grpc.aio.AioRpcError) -> StoreError:
        if is_old_token(error):
            self._connection.forget_token()
            return StoreUnavailable(f"etcd at {link.endpoint}: {error.details()}")
        failure = translate(error, link.endpoint)
        if isinstance(failure, AccessDenied):
            return failure
        self._connection.abandon(link)
        if isinstance(failure, StoreUnavailable):
            return failure
        return StoreUnavailable(str(failure))

    async def _write(self, call: Any, requests: asyncio.Queue[Any]) -> None:
        with contextlib.suppress(grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            while True:
                await call.write(await requests.get())

    def _create(self, watch: Watch) -> None:
        self._creating.append(watch)
        create = etcdrpc.WatchCreateRequest(
            key=watch.key, range_end=watch.range_end, start_revision=watch.revision
        )
        self._requests.put_nowait(etcdrpc.WatchRequest(create_request=create))

    def _end_on(self, call: Any, watch_id: int) -> None:
        # A later stream gives the same ids to others.
        if call is self._call:
            self._end(watch_id)

    def _end(self, watch_id: int) -> None:
        self._by_id.pop(watch_id, None)
        if self._call is not None:
            cancel = etcdrpc.WatchCancelRequest(watch_id=watch_id)
            self._requests.put_nowait(etcdrpc.WatchRequest(cancel_request=cancel))

    def _take(self, response: Any) -> None:
        if response.created:
            watch = self._creating.popleft()
            if response.canceled:
                self._refused(watch, response)
                return
            self._failures = 0
            if watch.cancelled:
                self._end(response.watch_id)
            elif response.header.revision + 1 < watch.revision:
                # The store was restored from a backup, or this member lags
                # behind: it would be silent until it gets there.
                self._end(response.watch_id)
                self._give_up(watch, Compacted("the store is behind the watched revisions"))
            else:
                watch.id = response.watch_id
                watch.denied = False
                self._by_id[response.watch_id] = watch
            return
        found = self._by_id.get(response.watch_id)
        if found is None:
            return
        if response.canceled:
            self._by_id.pop(response.watch_id, None)
            found.id = None
            self._refused(found, response)
            return
        if response.events:
            # Not the header's revision: to a watch that lags behind, the server
            # sends older events in several answers.
            found.revision = response.events[-1].kv.mod_revision + 1
            found.on_events(response.events)

    def _refused(self, watch: Watch, response: Any) -> None:
        if watch.cancelled:
            return
        denied = "permission denied" in response.cancel_reason
        if response.compact_revision:
            self._give_up(watch, Compacted("the watched revisions were compacted away"))
        elif denied and (watch.denied or not self._connection.identifies):
            refusal = AccessDenied(
                f"etcd does not let us watch {watch.key.decode(errors='replace')!r}: "
                "give the user read rights on it"
            )
            self._give_up(watch, refusal)
        else:
            # The stream's token is too old, which etcd before 3.5.5 calls
            # "permission denied"; or the member lost its leader, or the like.
            # The whole stream moves on.
            if denied or speaks_of_old_token(response.cancel_reason):
                watch.denied = denied
                self._connection.forget_token()
            raise StoreUnavailable(f"etcd cancelled a watch: {response.cancel_reason}")

    def _give_up(self, watch: Watch, error: LeadershipError) -> None:
        """A watch that cannot go on; the stream ends with the last one."""
        self.cancel(watch)
        watch.on_cut(error)

    def _tell_cut(self, error: LeadershipError) -> None:
        for watch in list(self._watches):
            if not watch.cancelled:
                watch.on_cut(error)
