"""What is on its way to the other nodes: gathered for each, sealed, and never waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ..clock import Clock
from ..errors import StoreUnavailable
from ._peers_http import Client
from ._peers_seal import Node, Refused, Seals
from ._quorum_messages import AnyMessage, Heartbeat, Message

MESSAGES = "/leadership/messages"
_SIDE_BY_SIDE = 3
"""Requests to one node at a time, besides a heartbeat: what comes meanwhile goes together."""
_BEATS = 2
"""Heartbeats to one node at a time. Each is a try to renew, counted from its sending, and
must not be given up because the next is due: a busy machine answers late."""
_MOST = 1000
"""Messages in one request: more would be longer than a node reads."""
_HEARD = 5.0
"""Seconds for which a node that answered is known to be one of ours."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding may raise, whoever wrote it."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(list[AnyMessage])


def report(error: BaseException) -> None:
    """Tell the event loop's handler, by default the log: nothing fails in silence."""
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a peer node failed in part", "exception": error}
    )


@dataclass(eq=False, slots=True)
class _Line:
    """To one node."""

    node: Node
    waiting: list[Message] = field(default_factory=list)
    heartbeat: Message | None = None
    in_flight: int = 0
    beating: int = 0
    due: bool = False
    heard_at: float = float("-inf")


class Post:
    """Sends messages as HTTP requests.

    All that one turn of the event loop has for a node goes in one request,
    however many keys it is about. Votes and releases do not queue behind a
    heartbeat, and a heartbeat that is overtaken by the next is not sent.

    Args:
        patience: seconds that a heartbeat's answer is waited for.
        delivered: is told of each node's answers.
        refused: is told of answers that must have no effect.
    """

    def __init__(
        self,
        client: Client,
        seals: Seals,
        clock: Clock,
        patience: float,
        window: float,
        delivered: Callable[[str, list[Message]], None],
        refused: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._seals = seals
        self._clock = clock
        self._patience = patience
        self._window = window
        self._delivered = delivered
        self._refused = refused
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, to: str, message: Message) -> None:
        """Send it with what else this turn has for that node."""
        if self._closed:
            return
        line = self._line(to)
        if isinstance(message, Heartbeat):
            line.heartbeat = message
        else:
            line.waiting.append(message)
        if not line.due:
            line.due = True
            asyncio.get_running_loop().call_soon(self._flush, line)

    def heard_of(self, address: str) -> bool:
        """Whether the node has lately proved to be one of ours."""
        return self._clock.now() - self._line(address).heard_at < _HEARD

    def incarnation(self, address: str) -> int:
        """Which run of that node answered last; 0: not known."""
        return self._line(address).node.incarnation

    async def settle(self, seconds: float) -> None:
        """Wait until all that was to be sent has been answered, but no longer than that."""
        for line in self._lines.values():
            self._flush(line)
        if self._tasks:
            await self._clock.wait_for(asyncio.wait(list(self._tasks)), self._clock.now() + seconds)

    async def close(self, seconds: float) -> None:
        """Give what is on its way a moment to arrive, and end."""
        await self.settle(seconds)
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def _line(self, to: str) -> _Line:
        line = self._lines.get(to)
        if line is None:
            line = self._lines[to] = _Line(Node(to, 0))
        return line

    def _flush(self, line: _Line) -> None:
        line.due = False
        if self._closed:
            return
        if line.waiting and line.in_flight < _SIDE_BY_SIDE:
            messages, line.waiting = line.waiting[:_MOST], line.waiting[_MOST:]
            line.in_flight += 1
            self._spawn(line, messages)
        if line.heartbeat is not None and line.beating < _BEATS:
            heartbeat, line.heartbeat = line.heartbeat, None
            line.beating += 1
            self._spawn(line, [heartbeat])

    def _spawn(self, line: _Line, messages: list[Message]) -> None:
        task = asyncio.ensure_future(self._deliver(line, messages))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            report(error)

    async def _deliver(self, line: _Line, messages: list[Message]) -> None:
        beat = isinstance(messages[0], Heartbeat)
        try:
            # A node that does not answer is told again by the next round, not by us.
            with contextlib.suppress(StoreUnavailable):
                await self._request(line, messages, self._patience if beat else self._window)
        except Refused as error:
            self._refused(line.node.address, str(error))
        except UNREADABLE:
            self._refused(line.node.address, "its answer cannot be read")
        finally:
            if beat:
                line.beating -= 1
            else:
                line.in_flight -= 1
            if line.waiting or line.heartbeat is not None:
                self._flush(line)

    async def _request(self, line: _Line, messages: list[Message], timeout: float) -> None:
        body = _encode(messages)
        for _ in range(2):
            asked = line.node
            headers, number = self._seals.request(asked, MESSAGES, body)
            answer = await self._client.call(
                "POST", asked.address, MESSAGES, body, headers=headers, timeout=timeout
            )
            if answer.status not in (200, 409):
                return
            line.node = self._seals.open_answer(
                answer.headers, MESSAGES, answer.body, asked, number
            )
            line.heard_at = self._clock.now()
            if answer.status == 200:
                self._delivered(asked.address, list(_decoder.decode(answer.body)))
                return
            # It has been restarted, or we have: now we know which run of it to ask.
