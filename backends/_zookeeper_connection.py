"""One kazoo client, which is one ZooKeeper session: requests with a deadline, and its state.

Of kazoo only the asynchronous calls and the listener are used. What it
believes of the session decides nothing: a session is over when the server
says so, and trusted for as long as its lease says.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kazoo import exceptions as kazoo_errors
from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from ..backend import Context
from ..clock import Timer
from ..errors import AccessDenied, HandleClosed, SessionLost, StoreError, StoreUnavailable
from ._zookeeper_deadlines import Deadlines, fail
from ._zookeeper_socket import Handler
from ._zookeeper_watches import Watches
from ._zookeeper_window import Window

Ask = Callable[[Any], Any]
"""Starts one request on a kazoo client, and gives kazoo's asynchronous result."""

# kazoo wakes its thread by a byte in a socket pair, and so blocks who calls it
# when some 270 requests are under way: the engine must stay below that.
_WINDOW = 100

# Of the session timeout: after so long a silence it is given up, as the Java client does.
_SILENCE = 4 / 3

_SETTLED_BY_THE_END = (kazoo_errors.ConnectionLoss, kazoo_errors.SessionMovedError)
_REFUSED = (
    kazoo_errors.NoAuthError,
    kazoo_errors.AuthFailedError,
    kazoo_errors.InvalidACLError,
)
_NO_ANSWER = (
    *_SETTLED_BY_THE_END,
    kazoo_errors.ConnectionClosedError,
    kazoo_errors.OperationTimeoutError,
)

# kazoo writes requests to its log at DEBUG, credentials among them.
_logger = logging.getLogger("leadership.zookeeper")
_logger.addFilter(lambda record: record.levelno >= logging.INFO)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the servers, and as whom.

    Attributes:
        servers: `host:port` each, in the order in which they are tried.
        root: the path that all others are below: "" or `/chroot`.
        acl: who may do what with the nodes that we make.
        tls_files: what `tls` was made of, for another process.
    """

    servers: tuple[str, ...]
    root: str
    acl: Any
    tls: ssl.SSLContext | None = None
    tls_files: Mapping[str, str | None] | None = None
    auth_data: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    sasl_options: dict[str, Any] | None = field(default=None, repr=False)

    def path_of(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root or "/"


def translate(error: BaseException, servers: str) -> Exception:
    """kazoo's exception as one of ours."""
    if isinstance(error, kazoo_errors.SessionExpiredError):
        return SessionLost("the session has expired, or was closed by another client")
    if isinstance(error, _REFUSED):
        return AccessDenied(
            f"ZooKeeper at {servers} refuses ({type(error).__name__}): "
            "check user, password and the nodes' ACLs"
        )
    name = type(error).__name__
    if isinstance(error, _NO_ANSWER):
        return StoreUnavailable(f"the connection to ZooKeeper at {servers} broke ({name})")
    return StoreError(f"ZooKeeper at {servers} refuses ({name}: {error})")


class Connection:
    """A session from its opening to its loss; never opened twice.

    Args:
        timeout: the session's, in seconds, as it is asked for.
    """

    def __init__(self, settings: Settings, context: Context, timeout: float) -> None:
        self._settings = settings
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._servers = ",".join(settings.servers)
        # Of the time for one request, so that all have their turn in it.
        self._turn = context.request_timeout / len(settings.servers)
        self._handler = Handler(context.clock, settings.tls, min(self._turn, timeout / 3))
        self._client = KazooClient(
            hosts=self._servers,
            timeout=timeout,
            handler=self._handler,
            default_acl=settings.acl,
            auth_data=set(settings.auth_data),
            sasl_options=None if settings.sasl_options is None else dict(settings.sasl_options),
            # The order is ours, which is shuffled by the context's chance.
            randomize_hosts=False,
            read_only=False,
            connection_retry=KazooRetry(max_tries=-1, delay=0.05, max_delay=1.0),
            logger=_logger,
        )
        self._client.add_listener(self._listen)
        self.watches = Watches(self._post)
        self.timeout = 0.0
        """The session's, as the server granted it; seconds."""
        self.id = 0
        self.opened_at = 0.0
        """When the present connection was begun: the servers knew the session after that."""
        self.failures_of_an_outage = max(2, len(settings.servers))
        """One server that fails is left for the next: that alone is no outage."""
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.lost: Exception | None = None
        self._silence: Timer | None = None
        self._answered_at = -math.inf
        self._connected = asyncio.Event()
        # Those that kazoo has not answered, and whether each was given up, and has a place.
        self._outstanding: dict[asyncio.Future[Any], bool] = {}
        # What kazoo's thread has answered, and whether the loop is about to look at it.
        self._answers: collections.deque[tuple[asyncio.Future[Any], Any]] = collections.deque()
        self._settling = False
        self._window = Window(
            _WINDOW,
            context.clock,
            context.request_timeout,
            self._last_heard_at,
            self._silent,
        )
        self._deadlines = Deadlines(context.clock, context.request_timeout)
        self._stopping = threading.Lock()
        self._stopped: asyncio.Future[None] = self._loop.create_future()

    # --- kazoo's threads ---

    def _post(self, act: Callable[..., object], *arguments: Any) -> None:
        # After the engine's end nobody is left who wants to know.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(act, *arguments)

    def _listen(self, state: str) -> None:
        if state == KazooState.LOST:
            # Else kazoo would go on with another session, as if nothing had happened.
            self._handler.refuse()
            self._stop_soon()
        wire = self._handler.wire
        granted, opened_at = (0.0, 0.0) if wire is None else (wire.granted, wire.opened_at)
        session, _ = self._client.client_id or (0, b"")
        self._post(self._changed, state, self._client.client_state, session, granted, opened_at)

    def _stop_soon(self) -> None:
        if self._stopping.acquire(blocking=False):
            threading.Thread(target=self._stop, name="zookeeper-close", daemon=True).start()

    def _stop(self) -> None:
        try:
            with contextlib.suppress(Exception):
                self._client.stop()
            with contextlib.suppress(Exception):
                self._client.close()
        finally:
            self._post(self._has_stopped)

    def _has_stopped(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    # --- the session's state ---

    async def open(self) -> None:
        """Connect, once; returns when the session stands.

        Raises:
            StoreUnavailable: no server has let us in within the request timeout.
            AccessDenied: the credentials were refused.
        """
        self._client.start_async()
        for _ in self._settings.servers:
            try:
                async with asyncio.timeout(self._turn):
                    await self.connected()
                    return
            except TimeoutError:
                # One that is frozen, or cut off from the others, takes connections all the same.
                self._handler.give_up()
        limit = self._context.request_timeout
        raise StoreUnavailable(f"no ZooKeeper at {self._servers} has let us in within {limit:g} s")

    async def connected(self) -> None:
        """Wait until requests can be sent, however long.

        Raises:
            SessionLost: never again on this one.
            HandleClosed: we closed it.
        """
        while not self._connected.is_set() or self.lost is not None:
            if self.lost is not None:
                raise type(self.lost)(*self.lost.args)
            await self._connected.wait()

    @property
    def is_connected(self) -> bool:
        return self.lost is None and self._connected.is_set()

    def _changed(
        self, state: str, keeper_state: str, session: int, granted: float, opened_at: float
    ) -> None:
        if self.lost is not None:
            return
        if state == KazooState.LOST:
            if keeper_state == KeeperState.AUTH_FAILED:
                self._lose(
                    AccessDenied(
                        f"ZooKeeper at {self._servers} knows us not: check user and password"
                    )
                )
            else:
                self._lose(SessionLost("the session has expired, or was closed by another client"))
        # A server that only answers reads can elect nobody.
        elif state == KazooState.CONNECTED and keeper_state == KeeperState.CONNECTED:
            if self.timeout > granted:
                # What is trusted already may be more than the server now waits.
                self._give_up(f"its timeout was {self.timeout:g} s, and is now {granted:g} s")
                return
            self.id = session
            self.timeout = self.timeout or granted
            self.opened_at = opened_at
            self._connected.set()
            if self._silence is None:
                self._look_for_silence()
        else:
            self._connected.clear()
            self.watches.cut()

    def _look_for_silence(self) -> None:
        """Give up a session of which we have not heard for longer than it lives.

        Where our words arrive and the answers do not, trying to come back would
        keep it alive, and what hangs on it, for nobody.
        """
        clock = self._context.clock
        over = self._handler.heard_at + self.timeout * _SILENCE
        if clock.now() < over:
            self._silence = clock.call_at(over, self._look_for_silence)
            return
        self._give_up("no server was heard of for longer than the session lives")

    def _give_up(self, reason: str) -> None:
        self._lose(SessionLost(reason))
        self._handler.refuse()
        self._stop_soon()

    def _lose(self, error: Exception) -> None:
        self.lost = error
        if self._silence is not None:
            self._silence.cancel()
        # kazoo forgets some requests that fall into this moment.
        for each in list(self._outstanding):
            self._is_answered(each)
            fail(each, error)
        self._connected.set()
        self.watches.cut()
        self.on_lost(str(error))

    def way(self) -> Mapping[str, Any]:
        """What another process needs to go on with this session, as plain data; with its secret."""
        session, password = self._client.client_id or (0, b"")
        return {
            "endpoints": list(self._settings.servers),
            "tls": self._settings.tls_files,
            "session": session,
            "password": password,
            "timeout": self.timeout,
        }

    # --- requests ---

    async def request(
        self,
        ask: Ask,
        *expected: type[Exception],
        repeatable: bool = False,
        urgent: bool = False,
        limit: float | None = None,
    ) -> Any:
        """Send one request and wait for its answer.

        Args:
            expected: the server's errors that the caller deals with; all others are translated.
            repeatable: send it again after a broken connection.
            urgent: do not queue behind others.
            limit: seconds; the context's request timeout if not given.

        Raises:
            StoreUnavailable: no answer; whether a write was done is not known.
            SessionLost: the session is over, and so is this connection.
        """
        if not urgent:
            await self._window.acquire()
        answer: asyncio.Future[Any] | None = None
        sent_at, begun = -math.inf, self._context.clock.now()
        within = self._context.request_timeout if limit is None else limit
        try:
            if limit is None and self.is_connected:
                # Nearly all of them: one timer for all, and nothing in between.
                sent_at = begun
                answer = self._send(ask)
                self._deadlines.add(answer)
                try:
                    return await answer
                except _SETTLED_BY_THE_END:
                    if not repeatable:
                        raise
            left = begun + within - self._context.clock.now()
            if left <= 0:
                # To send it now would only tell of a silence that there was not.
                raise self._no_answer(within)
            async with asyncio.timeout(left):
                while True:
                    await self.connected()
                    sent_at = self._context.clock.now()
                    answer = self._send(ask)
                    try:
                        return await answer
                    except _SETTLED_BY_THE_END:
                        if not repeatable:
                            raise
        except TimeoutError:
            if self._last_heard_at() < sent_at:
                self._handler.give_up()
            raise self._no_answer(within) from None
        except expected:
            raise
        except kazoo_errors.KazooException as error:
            raise self.translated(error) from None
        finally:
            # A place is kept over broken connections: who queues does not overtake who had one.
            if not urgent:
                self._give_place_back(answer)

    def _no_answer(self, limit: float) -> StoreUnavailable:
        return StoreUnavailable(f"ZooKeeper at {self._servers} did not answer within {limit:g} s")

    def _silent(self) -> StoreUnavailable:
        limit = self._context.request_timeout
        # Those who have the places may all have given up: nobody else would see it.
        self.give_up(since=self._context.clock.now() - limit)
        return self._no_answer(limit)

    def translated(self, error: BaseException) -> Exception:
        """kazoo's exception as one of ours."""
        return translate(error, self._servers)

    def _last_heard_at(self) -> float:
        # A server that is cut off from the others goes on answering pings, and nothing else.
        wire = self._handler.wire
        return -math.inf if wire is None else max(self._answered_at, wire.opened_at)

    def _send(self, ask: Ask) -> asyncio.Future[Any]:
        result = ask(self._client)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._outstanding[answer] = False

        def answered(result: Any) -> None:
            self._answered_at = self._context.clock.now()
            # One post for all that come together: each costs a system call.
            self._answers.append((answer, result))
            if not self._settling:
                self._settling = True
                self._post(self._settle)

        result.rawlink(answered)
        return answer

    def _settle(self) -> None:
        # Before the look: what comes after it is posted anew.
        self._settling = False
        while self._answers:
            answer, result = self._answers.popleft()
            self._is_answered(answer)
            _settle(answer, result)

    def _give_place_back(self, answer: asyncio.Future[Any] | None) -> None:
        if answer is not None and answer in self._outstanding:
            # It was given up, and has its place until it is answered.
            self._outstanding[answer] = True
        else:
            self._window.release()

    def _is_answered(self, answer: asyncio.Future[Any]) -> None:
        if self._outstanding.pop(answer, False):
            self._window.release()

    def give_up(self, since: float) -> None:
        """Go on to the next server, unless this connection was made after `since`."""
        wire = self._handler.wire
        if wire is not None and wire.opened_at < since:
            self._handler.give_up()

    # --- the end ---

    async def close(self, *, end_session: bool = True) -> None:
        """End it, within 2 seconds. Does not raise.

        Args:
            end_session: else the server lets it expire, and what hangs on it stays until then.
        """
        if self.lost is None:
            self._lose(HandleClosed("the connection is closed: make a new store"))
        if not end_session:
            self._handler.refuse()
        self._stop_soon()
        done, _ = await asyncio.wait([self._stopped], timeout=1.0)
        if not done:
            # The server does not answer the farewell: let the session expire.
            self._handler.refuse()
            await asyncio.wait([self._stopped], timeout=1.0)


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    error = result.exception
    if error is None:
        if not answer.done():
            answer.set_result(result.value)
    elif isinstance(error, kazoo_errors.KazooException):
        fail(answer, error)
    else:
        # kazoo could make nothing of an answer, and will break the connection.
        fail(answer, kazoo_errors.ConnectionLoss(str(error)))


class SharedConnection:
    """The one connection for all that needs no session of its own; a lost one is replaced."""

    def __init__(self, settings: Settings, context: Context, timeout: float) -> None:
        self._settings = settings
        self._context = context
        self._timeout = timeout
        self._opening: asyncio.Future[Connection] | None = None
        self._closed = False

    async def connection(self) -> Connection:
        """The present one, open."""
        if self._closed:
            raise HandleClosed("the store is closed: make a new one")
        opening = self._opening
        if opening is not None and opening.done():
            failed = opening.cancelled() or opening.exception() is not None
            if failed or opening.result().lost is not None:
                opening = None
        if opening is None:
            opening = self._opening = asyncio.ensure_future(
                opened(self._settings, self._context, self._timeout)
            )
        # One caller's cancellation must not take the connection from the others.
        return await asyncio.shield(opening)

    async def request(self, ask: Ask, *expected: type[Exception], repeatable: bool = False) -> Any:
        """As a connection's `request`; that a session expired concerns no caller of this one."""
        while True:
            connection = await self.connection()
            try:
                return await connection.request(ask, *expected, repeatable=repeatable)
            except SessionLost as error:
                if not repeatable:
                    raise StoreUnavailable(f"whether it was done is not known: {error}") from None

    async def close(self, *, end_session: bool = True) -> None:
        self._closed = True
        opening = self._opening
        if opening is not None:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close(end_session=end_session)


async def opened(settings: Settings, context: Context, timeout: float) -> Connection:
    """A new session; bounded by the request timeout."""
    connection = Connection(settings, context, timeout)
    try:
        await connection.open()
    except BaseException:
        await connection.close()
        raise
    return connection
