"""How the etcd backend reaches its servers: one channel at a time, and one edge for errors.

Every request has a deadline. A server that refuses, or stays silent, is
abandoned for the next one together with all that still hangs on its channel;
with a single server a fresh channel takes the place of the old one, so that a
connection that was cut without a word is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .._guardian_wire import tls
from ..clock import Clock
from ..errors import (
    AccessDenied,
    ConfigurationError,
    ForkedHandle,
    SessionLost,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from . import _links as links
from ._grpc import etcdrpc, grpc

# etcd closes connections that ping more often than every 5 s (its default).
_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A stream on which nothing happens is pinged too, for as long as it lives:
    # gRPC would fall silent after two pings, and a cut go unnoticed.
    ("grpc.http2.max_pings_without_data", 0),
    # Of its own it waits a minute for the answer to a ping, whatever stands above.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Channels of the same process must not share a dead connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

_AT_ONCE = 64

_NOT_SENT = "failed to connect to all addresses"
_OLD_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """How to identify ourselves; never shown.

    Attributes:
        ca, certificate, key: paths of PEM files.
    """

    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None


class Link(links.Link):
    """One channel to one server, and its stubs."""

    def __init__(self, endpoint: str, channel: Any) -> None:
        super().__init__(endpoint)
        self.channel = channel
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.watch = etcdrpc.WatchStub(channel)
        self.auth = etcdrpc.AuthStub(channel)

    async def close(self) -> None:
        await _close(self.channel)


class Stub(Protocol):
    """Picks a method of a link."""

    def __call__(self, link: Link) -> Callable[..., Awaitable[Any]]: ...


class Connection(links.Links[Link]):
    """The way to the cluster."""

    _grpc_used_in: ClassVar[int | None] = None
    """The process in which gRPC first ran."""

    def __init__(
        self, endpoints: tuple[str, ...], credentials: Credentials, timeout: float, clock: Clock
    ) -> None:
        super().__init__("etcd", endpoints, _AT_ONCE, timeout, clock)
        self._credentials = credentials
        self._token: str | None = None
        self._authenticating: asyncio.Future[None] | None = None
        self.on_abandon: Callable[[], None] = lambda: None
        """Called when the present link was given up: streams on it are void."""

    def _given_up(self) -> None:
        self.on_abandon()

    def way(self) -> Mapping[str, Any]:
        """What another process needs to reach the same servers, as plain data; with secrets."""
        secrets = self._credentials
        return {
            "endpoints": self.in_order(),
            "tls": tls(secrets.ca, secrets.certificate, secrets.key) if secrets.tls else None,
            "token": self._token or "",
            "login": None if secrets.user is None else (secrets.user, secrets.password or ""),
        }

    def _open(self, endpoint: str) -> Link:
        return Link(endpoint, self._channel(endpoint))

    def _channel(self, endpoint: str) -> Any:
        # gRPC does not come through a fork: in the child its calls would hang.
        used_in = Connection._grpc_used_in = Connection._grpc_used_in or os.getpid()
        if used_in != os.getpid():
            raise ForkedHandle(
                "etcd cannot be used here: this process was forked from one that had already used "
                "it, and gRPC does not survive that. Start children with 'spawn' or 'forkserver' "
                "(multiprocessing), or fork before the first use of an etcd store"
            )
        if not self._credentials.tls:
            return grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        try:
            secure = grpc.ssl_channel_credentials(
                _contents(self._credentials.ca),
                _contents(self._credentials.key),
                _contents(self._credentials.certificate),
            )
        except OSError as error:
            raise ConfigurationError(f"a TLS file cannot be read: {error}") from error
        return grpc.aio.secure_channel(endpoint, secure, options=_CHANNEL_OPTIONS)

    # --- requests ---

    async def call(self, stub: Stub, request: Any, *, repeatable: bool) -> Any:
        """As `call_now`, after those that came before, where very many are under way."""
        async with self._room:
            return await self.call_now(stub, request, repeatable=repeatable)

    async def call_now(
        self, stub: Stub, request: Any, *, repeatable: bool, timeout: float | None = None
    ) -> Any:
        """Send one request and return its answer.

        Args:
            repeatable: it may be sent twice (a read, or a write that is
                guarded): tried on other endpoints as long as there is time.
                Otherwise only when it surely was not sent.
            timeout: seconds for all tries together.

        Raises:
            StoreUnavailable: no answer; a write may or may not have happened.
            StoreError: the server refused.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = self._clock.now() + limit
        tries_left = len(self._endpoints)
        renewed = False
        while True:
            remaining = deadline - self._clock.now()
            share = remaining / tries_left if repeatable else remaining
            link = self.link()
            sent_at = self._clock.now()
            try:
                metadata = await self._metadata(link, share)
                answer = await self._send(stub(link), request, share, metadata)
                link.heard_at = self._clock.now()
                return answer
            except grpc.aio.AioRpcError as error:
                if is_old_token(error) and self.identifies:
                    link.heard_at = self._clock.now()
                    self.forget_token()
                    if not renewed:
                        renewed = True
                        continue
                    # No refusal: the next one may do, as after a change of users or rights.
                    raise StoreUnavailable(
                        f"etcd at {link.endpoint} refuses the token that it has just given: "
                        f"{error.details()}"
                    ) from None
                failure = translate(error, link.endpoint)
                not_sent = _NOT_SENT in (error.details() or "")
            except _Cut as error:
                failure = StoreUnavailable(f"etcd at {link.endpoint}: {error}")
                not_sent = False
            if not isinstance(failure, StoreUnavailable):
                raise failure
            if not isinstance(failure, Overloaded):
                self.abandon_if_silent(link, sent_at)
            tries_left -= 1
            if tries_left <= 0 or not (repeatable or not_sent) or self._clock.now() >= deadline:
                raise failure

    async def _send(
        self, method: Callable[..., Awaitable[Any]], request: Any, timeout: float, meta: Metadata
    ) -> Any:
        try:
            return await method(request, timeout=max(0.001, timeout), metadata=meta)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A channel that is closed cancels what is still under way on it.
            raise _Cut("the connection was given up") from None
        except grpc.aio.UsageError as error:
            raise _Cut(str(error)) from None

    # --- authentication ---

    async def metadata(self, link: Link, timeout: float | None = None) -> Metadata:
        """What a stream has to be opened with; a link that does not give it is given up."""
        asked_at = self._clock.now()
        try:
            token = await self._metadata(link, self.timeout if timeout is None else timeout)
        except grpc.aio.AioRpcError as error:
            failure = translate(error, link.endpoint)
        except _Cut as error:
            failure = StoreUnavailable(f"etcd at {link.endpoint}: {error}")
        else:
            return (*token, ("hasleader", "true"))
        if isinstance(failure, StoreUnavailable) and not isinstance(failure, Overloaded):
            self.abandon_if_silent(link, asked_at)
        raise failure

    @property
    def identifies(self) -> bool:
        """Whether requests carry a token, which may have become too old."""
        return self._credentials.user is not None

    def forget_token(self) -> None:
        """The server refused the token: get a new one before the next request."""
        self._token = None

    async def _metadata(self, link: Link, timeout: float) -> Metadata:
        if self._credentials.user is None:
            return ()
        while self._token is None:
            # One request for all who wait, and nobody's cancellation ends it for the others.
            if self._authenticating is None:
                self._authenticating = asyncio.ensure_future(self._authenticate(link, timeout))
                self._authenticating.add_done_callback(self._authenticated)
            # Whoever has less time than the one who began it does not wait for longer.
            done, _ = await asyncio.wait([self._authenticating], timeout=max(0.001, timeout))
            if not done:
                raise _Cut("it did not answer the login in time")
            done.pop().result()
        return (("token", self._token),) if self._token else ()

    def _authenticated(self, done: asyncio.Future[None]) -> None:
        self._authenticating = None
        if not done.cancelled():
            done.exception()

    async def _authenticate(self, link: Link, timeout: float) -> None:
        request = etcdrpc.AuthenticateRequest(
            name=self._credentials.user, password=self._credentials.password or ""
        )
        try:
            answer = await self._send(link.auth.Authenticate, request, timeout, ())
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            # Told to log in where nobody has to: the empty token stands for none.
            self._token = ""
        else:
            self._token = answer.token
        link.heard_at = self._clock.now()


class _Cut(Exception):
    """The channel was closed under a request: its outcome is unknown."""


class NoRights(AccessDenied):
    """The server knows us, and does not let us do this."""


class Overloaded(StoreUnavailable):
    """The server answers, but cannot do it now: another channel would not help."""


async def _close(channel: Any) -> None:
    with contextlib.suppress(Exception):
        await channel.close()


def _contents(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def is_old_token(error: grpc.aio.AioRpcError) -> bool:
    """Whether authenticating anew may help."""
    return speaks_of_old_token(error.details() or "")


def speaks_of_old_token(details: str) -> bool:
    return any(words in details for words in _OLD_TOKEN)


def translate(error: grpc.aio.AioRpcError, endpoint: str) -> StoreError:
    """The one edge where gRPC's errors become ours."""
    code, details = error.code(), error.details() or ""
    where = f"etcd at {endpoint}"
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return NoRights(
            f"{where}: {details}; give the user read and write rights on the keys it works with"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED or "authentication failed" in details:
        return AccessDenied(f"{where}: {details}; check user and password")
    if "user name is empty" in details:
        return AccessDenied(f"{where} wants a user and password: give both in the address")
    if "lease not found" in details:
        return SessionLost(f"{where}: {details}")
    if "request is too large" in details or "message larger than max" in details:
        return ValueTooLarge(
            f"{where}: {details}; store large data elsewhere, and its address here"
        )
    if "database space exceeded" in details:
        return Overloaded(
            f"{where}: {details}; compact and defragment it, then 'etcdctl alarm disarm'"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(f"{where}: {details}")
    if code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    ):
        return StoreError(f"{where}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return StoreUnavailable(f"{where} did not answer in time")
    return StoreUnavailable(f"{where}: {details or code.name}")
