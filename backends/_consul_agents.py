"""How the Consul backend reaches its agents: one at a time, and one edge for errors.

Every request has a deadline. An agent that refuses, or stays silent, is left
for the next one, together with all that still hangs on its connections; with
a single agent fresh connections take the place of the old ones, so that one
that was cut without a word is not waited for.

Of py-consul this uses the HTTP client. Its `Consul` would take the token from
the environment before the one that it is given, refuses a ttl below 10 s,
sends transactions without the token, and has no time-outs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from consul import aio, base

from .._guardian_wire import tls
from ..clock import Clock
from ..errors import (
    AccessDenied,
    ConfigurationError,
    SessionLost,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from . import _links as links
from ._consul_requests import (
    ConsulEntry,
    Operation,
    RefusedOperation,
    TransactionAnswer,
    speaks_of,
)

# An agent takes 200 connections from one address by default, and closes all others at once;
# blocking queries need theirs, and so do other processes.
_AT_ONCE = 32
_AT_ONCE_WITH_THE_URGENT = 64

Parameters = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """How to identify ourselves, and where the data are; never shown.

    Attributes:
        token: the secret of an ACL token.
        ca, certificate, key: paths of PEM files.
        datacenter, namespace: others than the agent's own.
    """

    token: str | None = None
    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    datacenter: str | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered: 200, 404 or 409; everything else is an error.

    Attributes:
        index: X-Consul-Index, never 0; for the next blocking query.
    """

    status: int
    body: str
    index: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A transaction of which nothing was done."""

    errors: tuple[RefusedOperation, ...]

    def because(self, words: str) -> bool:
        return speaks_of(self.errors, words)


async def _send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """One request and its answer.

    aiohttp takes every PUT for repeatable, and sends it again where the connection is
    lost; and it would follow a redirection, with our token, to wherever that leads.
    """
    try:
        response = await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method == "GET" or _is_of_tls(error):
            raise
        raise _Cut(str(error)) from error
    if 300 <= response.status < 400:
        response.close()
        raise StoreError(
            f"{request.url.host}:{request.url.port} redirects to another address: check this one"
        )
    return response


class _Client(aio.HTTPClient):  # type: ignore[misc]
    """py-consul's client, on connections of our own.

    Its own have no time-outs, too small a pool for blocking queries, and are
    made with arguments that aiohttp no longer wants.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        base.HTTPClient.__init__(self, host, port, "http" if tls is None else "https")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=True if tls is None else tls),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_send_once,),
        )


class Link(links.Link):
    """The connections to one agent."""

    def __init__(self, endpoint: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(endpoint)
        host, _, port = endpoint.rpartition(":")
        self.client = _Client(host, int(port), tls)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self.client.close()


class Agents(links.Links[Link]):
    """The way to the datacenter."""

    def __init__(
        self, endpoints: tuple[str, ...], access: Access, timeout: float, clock: Clock
    ) -> None:
        super().__init__("Consul", endpoints, _AT_ONCE, timeout, clock)
        self._access = access
        self._tls: ssl.SSLContext | None = None
        # More than the room has: what does not queue there never waits for what does.
        self._connections = asyncio.Semaphore(_AT_ONCE_WITH_THE_URGENT)

    def _open(self, endpoint: str) -> Link:
        if self._access.tls and self._tls is None:
            self._tls = _tls_context(self._access)
        return Link(endpoint, self._tls)

    def way(self) -> Mapping[str, Any]:
        """What another process needs to reach the same agents, as plain data; with the token."""
        access = self._access
        return {
            "endpoints": self.in_order(),
            "tls": tls(access.ca, access.certificate, access.key) if access.tls else None,
            "headers": {} if access.token is None else {"X-Consul-Token": access.token},
        }

    def path_of(self, path: str, *parameters: tuple[str, str]) -> str:
        """The path of a request with its query, as it goes over the wire."""
        query = urlencode([*parameters, *self._where()])
        return f"{quote(path)}?{query}" if query else quote(path)

    def _where(self) -> Parameters:
        access = self._access
        where = [("dc", access.datacenter), ("ns", access.namespace)]
        return [(name, value) for name, value in where if value]

    # --- requests ---

    async def call(
        self,
        method: str,
        path: str,
        parameters: Parameters = (),
        body: Any = None,
        *,
        repeatable: bool,
    ) -> Answer:
        """As `call_now`, after those that came before, where very many are under way."""
        async with self._room:
            return await self.call_now(method, path, parameters, body, repeatable=repeatable)

    async def call_now(
        self,
        method: str,
        path: str,
        parameters: Parameters = (),
        body: Any = None,
        *,
        repeatable: bool,
        timeout: float | None = None,
    ) -> Answer:
        """Send one request and return its answer; a thousand renewals take turns as well.

        Args:
            method: get, put or delete.
            body: what is sent as JSON.
            repeatable: it may be sent twice (a read, or a write that is
                guarded): tried on other agents as long as there is time.
                Otherwise only when it surely was not sent.
            timeout: seconds for all tries together, and at the most as many before its turn.

        Raises:
            StoreUnavailable: no answer; a write may or may not have happened.
            StoreError: the agent refused.
        """
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                await self._connections.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"Consul at {self.link().endpoint}: too many requests are under way, of which "
                f"this one's turn did not come within {limit:.3g} s"
            ) from None
        # From here on: what is sent with less time than others would take a slow agent for dead.
        deadline = self._clock.now() + limit
        try:
            return await self._answer(method, path, parameters, body, repeatable, deadline)
        finally:
            self._connections.release()

    async def _answer(
        self,
        method: str,
        path: str,
        parameters: Parameters,
        body: Any,
        repeatable: bool,
        deadline: float,
    ) -> Answer:
        # With one agent twice too: its connection may have died since it was last used.
        tries_left = max(2, len(self._endpoints)) if repeatable else len(self._endpoints)
        while True:
            remaining = deadline - self._clock.now()
            share = remaining / tries_left if repeatable else remaining
            link = self.link()
            sent_at = self._clock.now()
            not_sent = False
            try:
                return await self._send(link, method, path, parameters, body, share)
            except _Cut as error:
                failure = StoreUnavailable(f"Consul at {link.endpoint}: {error}")
                not_sent = error.not_sent
                self.abandon_if_silent(link, sent_at)
            except Overloaded:
                raise
            except StoreUnavailable as error:
                # It answers, but its cluster does not: another agent may have a way to it.
                failure = error
                if len(self._endpoints) > 1:
                    self.abandon(link)
            tries_left -= 1
            if tries_left <= 0 or not (repeatable or not_sent) or self._clock.now() >= deadline:
                raise failure

    async def poll(self, path: str, parameters: Parameters, index: int, wait: float) -> Answer:
        """A blocking query: the answer comes when there is something newer than `index`.

        Or after `wait` seconds, to which the server adds up to a sixteenth. About
        a third later it is given up.
        """
        link = self.link()
        sent_at = self._clock.now()
        slack = min(self.timeout, max(0.25, wait / 4))
        blocking = [*parameters, ("index", str(index)), ("wait", f"{round(wait * 1000)}ms")]
        try:
            return await self._send(link, "get", path, blocking, None, wait * 17 / 16 + slack)
        except _Cut as error:
            self.abandon_if_silent(link, sent_at)
            raise StoreUnavailable(f"Consul at {link.endpoint}: {error}") from None

    async def transact(
        self, *operations: Operation, repeatable: bool = True
    ) -> list[ConsulEntry] | Refused:
        """All the operations in one commit, or none of them.

        Args:
            repeatable: the outcome is found out by reading whatever the answer.

        Raises:
            AccessDenied: the token lacks rights on one of the keys.
            SessionLost: one of the sessions in it is gone.
        """
        ops = []
        for operation in operations:
            namespace = self._access.namespace
            ops.append({"KV": operation | ({"Namespace": namespace} if namespace else {})})
        answer = await self.call("put", "/v1/txn", body=ops, repeatable=repeatable)
        content = decoded(answer.body, TransactionAnswer)
        if answer.status == 200:
            return [each.KV for each in content.results or ()]
        refused = Refused(tuple(content.errors or ()))
        if refused.because("Permission denied"):
            raise AccessDenied(_RIGHTS)
        if refused.because("invalid session"):
            raise SessionLost(f"Consul does not know the session: {refused.errors[0].what}")
        return refused

    async def _send(
        self,
        link: Link,
        method: str,
        path: str,
        parameters: Parameters,
        body: Any,
        timeout: float,
    ) -> Answer:
        access = self._access
        query = [*parameters, *self._where()]
        headers = {} if access.token is None else {"X-Consul-Token": access.token}
        arguments: dict[str, Any] = {
            "params": query,
            "headers": headers,
            "connections_timeout": max(0.001, timeout),
        }
        if body is not None:
            arguments["data"] = msgspec.json.encode(body)
        request: Callable[..., Any] = getattr(link.client, method)
        try:
            response = await request(lambda response: response, path, **arguments)
        except TimeoutError:
            raise _Cut(f"no answer within {timeout:.3g} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if _is_of_tls(error):
                raise AccessDenied(
                    f"Consul at {link.endpoint}: TLS failed: {error}; check ca, cert and key"
                ) from None
            # RuntimeError: the connections were closed under it.
            not_sent = isinstance(error, aiohttp.ClientConnectorError)
            raise _Cut(str(error) or type(error).__name__, not_sent=not_sent) from None
        except UnicodeDecodeError as error:
            raise _no_consul(error) from error
        link.heard_at = self._clock.now()
        if response.headers.get("X-Consul-KnownLeader") == "false":
            # A stale read: what it says may be old, and will never be newer.
            raise StoreUnavailable(f"Consul at {link.endpoint}: its server knows no leader")
        if response.code in (200, 404, 409):
            index = response.headers.get("X-Consul-Index", "1")
            return Answer(
                response.code, response.body, max(1, int(index)) if index.isdigit() else 1
            )
        raise translate(response.code, response.body, link.endpoint)


def _is_of_tls(error: BaseException) -> bool:
    """Whether it was TLS that failed; a refusal of our certificate shows only after connecting."""
    return isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) or "[SSL" in str(error)


class _Cut(Exception):
    """No answer: the outcome is unknown, unless it was not sent."""

    def __init__(self, message: str, not_sent: bool = False) -> None:
        super().__init__(message)
        self.not_sent = not_sent


class Overloaded(StoreUnavailable):
    """The agent answers, but has too much to do: another try at once would not help."""


class NoRights(AccessDenied):
    """The agent knows us, and does not let us do this."""


_RIGHTS = (
    "Consul: permission denied; give the token key_prefix write on the keys it works with, "
    "session_prefix write and, for watches, key_prefix read"
)


def decoded(body: str, kind: Any) -> Any:
    """The answer's content.

    Raises:
        StoreError: it is not what Consul answers: perhaps another service listens there.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise _no_consul(error) from error


def _no_consul(error: Exception) -> StoreError:
    return StoreError(f"this does not look like Consul's answer ({error}): check the address")


def entries_of(answer: Answer) -> list[ConsulEntry]:
    """The entries in the answer to a read; a 404 has none."""
    if answer.status == 404:
        return []
    entries: Iterable[ConsulEntry] = decoded(answer.body, list[ConsulEntry])
    return list(entries)


def translate(status: int, body: str, endpoint: str) -> StoreError:
    """The one edge where Consul's refusals become our errors."""
    where, details = f"Consul at {endpoint}", body.strip()[:300]
    if status == 401 or "ACL not found" in body:
        return AccessDenied(f"{where}: {details}; check the token")
    if status == 403 or "Permission denied" in body:
        return NoRights(f"{where}: {details}. {_RIGHTS}")
    if status == 413:
        return ValueTooLarge(
            f"{where}: {details}; store large data elsewhere, and its address here"
        )
    if status == 429:
        return Overloaded(f"{where}: too many requests or connections from here: {details}")
    if "Invalid Session TTL" in body:
        return ConfigurationTrouble(
            f"{where}: {details}; ask for a ttl between these, or lower the agents' session_ttl_min"
        )
    if "No path to datacenter" in body:
        return StoreError(f"{where}: {details}; check the option datacenter")
    if status >= 500:
        return StoreUnavailable(f"{where}: {status} {details}")
    return StoreError(f"{where}: {status} {details}")


class ConfigurationTrouble(StoreError, ConfigurationError):
    """The agents are not configured for what was asked for."""


def _tls_context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
    except OSError as error:
        raise ConfigurationError(f"a TLS file cannot be read: {error}") from error
    return context
