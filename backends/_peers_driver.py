"""Drives one node: its messages over HTTP, its state on the disk, its timer.

The node decides (`_quorum_lease`); what it returns is carried out here, in
its order. What arrives is handed to it only whole, sealed, fresh and in the
name that the seal bears.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from ..backend import Context, ReleasePlan
from ..errors import ConfigurationError, HandleClosed, StoreUnavailable
from ..events import (
    LeaseRenewed,
    PeerAlarm,
    PeerMembers,
    PeerMembersDiffer,
    PeerReady,
    PeerRefused,
)
from ._electio import Surface
from ._peers_http import DROPPED, Answer, Asked, Client, Server
from ._peers_knowledge import LEADER, Knowledge
from ._peers_legacy import WHO, Legacy
from ._peers_members import MEMBERS, MemberList, is_member
from ._peers_operator import Operator
from ._peers_plan import plan_of
from ._peers_post import MESSAGES, UNREADABLE, Post, report
from ._peers_seal import Node, OtherIncarnation, Refused, Seals
from ._peers_settings import Settings
from ._peers_state import StateDirectory, StateUnwritableError
from ._peers_survey import View
from ._quorum_effects import (
    Effect,
    Elected,
    Ignored,
    LeaderSeen,
    Lost,
    MembersChanged,
    Persist,
    Ready,
    Released,
    Renewed,
    Send,
    StoredState,
    TwoIncarnations,
)
from ._quorum_lease import QuorumLease
from ._quorum_messages import (
    Announcement,
    AnyMessage,
    Members,
    Message,
    Release,
    Request,
    Vote,
)
from ._quorum_messages import Answer as Answering

_QUIET = 10.0
"""Seconds in which the same complaint is told once."""
_MOST_COMPLAINTS = 50
"""Different ones in that time: strangers do not choose how much is logged."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(list[AnyMessage])
_NO_MESSAGES: list[Message] = []


class Part(Protocol):
    """A contender, as the driver has to tell it of its node's decisions."""

    def elected(self, effect: Elected) -> None: ...
    def renewed(self, effect: Renewed) -> None: ...
    def lost(self, effect: Lost) -> None: ...
    def dismissed(self, reason: str) -> None: ...
    def released(self) -> None: ...


class _Awaited:
    """The answers that the requests in one HTTP request are still to get."""

    def __init__(self, requests: Iterable[Message]) -> None:
        self.missing = {request.header.number for request in requests}
        self.answers: list[Message] = []
        self.complete = asyncio.Event()
        if not self.missing:
            self.complete.set()

    def take(self, answer: Answering) -> None:
        self.answers.append(answer)
        self.give_up(answer)

    def give_up(self, message: Message) -> None:
        """It is answered, or never will be: the answers to the others must not wait for it."""
        self.missing.discard(message.header.number)
        if not self.missing:
            self.complete.set()


class Driver:
    """One node of the cluster, from its start to its close.

    Args:
        settings: checked.
        context: the clock, chance and events of the store.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._clock = context.clock
        self._own = Node(settings.address, context.random.getrandbits(63) | 1)
        self._seals = Seals(self._own, settings.secrets)
        self._client = Client(settings.limits, settings.client_tls)
        self._server = Server(
            self._answer, self._clock, settings.limits, settings.server_tls, self.complain
        )
        self._post = Post(
            self._client,
            self._seals,
            self._clock,
            2 * settings.timing.heartbeat,
            settings.timing.vote_window,
            self._delivered,
            self.complain,
        )
        self._state = None if settings.state_dir is None else StateDirectory(settings.state_dir)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "leadership-peers-state")
        self._parts: dict[str, Part] = {}
        self._renewed: Renewed | None = None
        self._awaited: dict[tuple[str, str, int], _Awaited] = {}
        self._timer: Any = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._complaints: dict[tuple[str, str], float] = {}
        self._alive_at = self._clock.now()
        self._drop_until = float("-inf")
        self._shown = settings.shown
        self._closed = False
        self._ignored = False
        self.node: QuorumLease = None  # type: ignore[assignment]
        self.view: View | None = None
        self.members: MemberList = None  # type: ignore[assignment]
        self.knowledge: Knowledge = None  # type: ignore[assignment]
        self.surface = Surface(
            settings.cluster,
            settings.address,
            settings.members,
            self._shown_leader,
            self._clock.wall,
            settings.electio_changes,
        )

    # --- from the start to the end ---

    async def start(self) -> None:
        """Read the state, listen, and begin to take part.

        Raises:
            ConfigurationError: the state cannot be used, or another process has our address.
            StoreUnavailable: the address cannot be listened at.
        """
        settings = self._settings
        stored = None
        if self._state is not None:
            values = await self._on_disk(self._state.open)
            if "state" in values:
                stored = self._read(values["state"])
        self.node = QuorumLease(
            id=settings.address,
            incarnation=f"{self._own.incarnation:016x}",
            members=settings.members,
            cluster=settings.cluster,
            timing=settings.timing,
            random=self._context.random,
            wall_clock=lambda: self._clock.wall() * 1000,
            now=self._clock.now(),
            durable=self._state is not None,
            stored=stored,
            bootstrap=settings.bootstrap,
        )
        self.knowledge = Knowledge(self.node, self._clock)
        self._legacy = Legacy(
            self.node,
            settings.cluster,
            self.surface,
            self._client,
            self._clock,
            self._post.heard_of,
            self._shown_leader,
        )
        self.members = MemberList(
            self.node,
            settings,
            self._seals,
            self._context.random,
            self._clock.now,
            self.act,
            self._wait_while_open,
            Operator(self._client, settings, self._context).ask,
            self.complain,
        )
        if stored is not None:
            self._compare_members(stored.stage)
        await self._server.start(settings.listen)
        await self._ask_whether_alone()
        self._spawn(self._look_after_time())
        self._spawn(self._legacy.look_after())
        self.act(self.node.tick)

    def _read(self, state: object) -> StoredState:
        try:
            return msgspec.convert(state, StoredState)
        except msgspec.ValidationError as error:
            raise ConfigurationError(
                f"state_dir={self._settings.state_dir!r} was written by another version, and "
                "cannot be read: start that one, or give an empty directory"
            ) from error

    def _compare_members(self, stage: Members) -> None:
        """The list on the disk counts, for it may be the later one."""
        own, given = self._own.address, self._settings.members
        expected = [{*given}, {*given, own} if self._settings.joins else {*given}]
        if {*stage.members} not in expected:
            now = self._clock.now()
            self._context.emit(PeerMembersDiffer("", now, own, given, stage.members))
        self._go_by(stage)

    def _go_by(self, stage: Members) -> None:
        """Another list counts from now on."""
        own = self._own.address
        self.surface.show_members({*stage.members, *stage.joining})
        now, votes = self._clock.now(), is_member(own, stage)
        self._context.emit(PeerMembers("", now, own, stage.members, stage.joining, votes))
        leaves = bool(stage.joining) and own in stage.members and own not in stage.joining
        self.node.healthy = not leaves
        if leaves:
            # Its terms would end with the change: who gives way before is followed at once.
            for part in list(self._parts.values()):
                part.dismissed("this node is being removed from the members")
        self.knowledge.ring()

    async def _ask_whether_alone(self) -> None:
        """Two processes behind one address would vote twice in its name."""
        try:
            answer = await self._client.call("GET", self._own.address, WHO, timeout=2.0)
        except StoreUnavailable:
            # Not every network lets a node reach itself by its own address.
            return
        if answer.status == 200 and answer.body != str(self._own.incarnation).encode():
            await self.close()
            raise ConfigurationError(
                f"another process answers at {self._own.address}: each member needs an address "
                "of its own, not one that several processes share"
            )

    async def close(self) -> None:
        """Stop taking part. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        # Releases on their way are worth a moment.
        await self._post.close(self._settings.timing.heartbeat)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await self._server.close()
        await self._client.close()
        if self._state is not None:
            try:
                await self._on_disk(self._state.close)
            except RuntimeError:
                # The interpreter is ending, and its pools of threads take nothing more.
                self._state.close()
        self._writer.shutdown(wait=False)
        if self.knowledge is not None:
            self.knowledge.close()

    async def _wait_while_open(self, seconds: float) -> None:
        await self.knowledge.wait(seconds)
        if self._closed:
            raise HandleClosed("the store is closed: make a new one")

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            report(error)

    async def _on_disk(self, act: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, act)

    # --- the node's decisions ---

    def enter(self, uid: str, part: Part) -> None:
        self._parts[uid] = part

    def forget(self, uid: str) -> None:
        self._parts.pop(uid, None)

    def act(self, decide: Callable[[float], list[Effect]]) -> None:
        """Have the node decide something now, and carry out what follows."""
        if self._closed:
            return
        # Read before the decision, and so before anything is sent: terms count from it.
        self._carry_out(decide(self._clock.now()))

    def release_plan(self, key: str, uid: str) -> ReleasePlan | None:
        """How another process tells the others that this one is dead, and its term over."""
        releases = self.node.releases(key, uid)
        return plan_of(releases, self._seals, self._post, self._settings) if releases else None

    async def settle(self) -> None:
        """Until who can be reached has been told of what was decided."""
        await self._post.settle(self._settings.timing.heartbeat)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            try:
                self._carry_out_one(effect)
            except Exception as error:
                # The others, a loss among them, are owed all the same.
                report(error)
        self._tell_renewal()
        self._arm()

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case Persist():
                self._persist(effect)
            case Elected(uid=uid):
                if uid in self._parts:
                    self._parts[uid].elected(effect)
            case Renewed(uid=uid):
                self._renewed = effect
                if uid in self._parts:
                    self._parts[uid].renewed(effect)
            case Lost(uid=uid):
                if uid in self._parts:
                    self._parts[uid].lost(effect)
            case Released(uid=uid):
                if uid in self._parts:
                    self._parts[uid].released()
            case LeaderSeen(key=key):
                self._shown = self._shown or key
                self.knowledge.ring()
            case Ready():
                self._context.emit(PeerReady("", self._clock.now(), self._own.address))
                self.knowledge.ring()
            case MembersChanged(stage):
                self._go_by(stage)
            case TwoIncarnations(node, raised):
                self._context.emit(PeerAlarm("", self._clock.now(), node, raised))
            case Ignored(sender, reason):
                self._ignored = True
                self.complain(sender, reason)

    def _tell_renewal(self) -> None:
        """One heartbeat renews all keys that the node leads: it is told once."""
        renewed, self._renewed = self._renewed, None
        if renewed is not None:
            now = self._clock.now()
            told = LeaseRenewed("", now, now - renewed.sent_at, renewed.valid_until)
            self._context.emit(told)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(self.node.next_tick, lambda: self.act(self.node.tick))

    def _persist(self, effect: Persist) -> None:
        assert self._state is not None
        values = {"state": msgspec.to_builtins(effect.state)}
        writing = asyncio.get_running_loop().run_in_executor(
            self._writer, functools.partial(self._state.write, values)
        )

        def written(done: asyncio.Future[None]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if isinstance(error, StateUnwritableError):
                self.complain(self._own.address, str(error))
            elif error is not None:
                # Whatever it is: what is not on the disk must not be acted on, nor waited for.
                report(error)
            self.act(lambda now: self.node.persisted(effect.number, error is None, now))

        writing.add_done_callback(written)

    def _shown_leader(self) -> str | None:
        """Whom electio's nodes are told of."""
        leader = None if self._shown is None else self.node.leaders.leader(self._shown)
        return None if leader is None else leader.node

    def _send(self, to: str, message: Message) -> None:
        if isinstance(message, Answering):
            header = message.header
            awaited = self._awaited.get((to, header.receiver_incarnation, header.number))
            # One that nobody waits for any more came too late to be of use.
            if awaited is not None:
                awaited.take(message)
            return
        if isinstance(message, (Release, Vote)) and message.ticket is not None:
            message = msgspec.structs.replace(message, ticket=self._seals.ticket(message.ticket))
        self._post.send(to, message)

    def _delivered(self, to: str, answers: list[Message]) -> None:
        """The answers of a peer that proved to be it."""
        self.node.legacy.discard(to)
        for answer in answers:
            if isinstance(answer, Answering) and answer.header.sender == to:
                self.act(functools.partial(self.node.receive, answer))

    # --- what is asked of this node ---

    async def _answer(self, asked: Asked) -> Answer:
        if asked.method == "POST" and "Origin" in asked.headers:
            # So says every browser, and no node: without a secret a page of a name that
            # leads here could vote, though nobody but this machine reaches us.
            self.complain(asked.came_from, "a page in a browser asks")
            return Answer(403)
        if asked.path == MESSAGES and asked.method == "POST":
            return await self._take_messages(asked)
        if asked.path == MEMBERS and asked.method == "POST":
            return await self.members.answer(asked)
        if asked.path == WHO and asked.method == "GET":
            return Answer(200, str(self._own.incarnation).encode())
        if asked.path == LEADER and asked.method == "GET":
            return await self.knowledge.answer(asked)
        shown = None if self.view is None else await self.view.answer(asked)
        if shown is not None:
            return shown
        reply = self.surface.answer(asked.method, asked.path, asked.query)
        return Answer(reply.status, reply.body, reply.headers)

    async def _take_messages(self, asked: Asked) -> Answer:
        stage = self.node.stage
        # Who was removed while it was away is heard, to be told of it: it is granted nothing.
        members = frozenset(stage.members + stage.joining + stage.retired)
        try:
            try:
                # Of the present members this node may not have heard yet: the secret speaks
                # for them, so that they can tell it.
                sealed = self._seals.open_request(
                    asked.headers, MESSAGES, None if self._settings.secrets else members
                )
            except OtherIncarnation:
                # Or closing the connection could overtake the answer.
                await asked.read()
                # So it learns who we are now; this has no other effect.
                return self._sealed(asked.headers, _NO_MESSAGES, 409)
            body = await asked.read()
            sealed.check(body)
            messages = _decoder.decode(body)
            self._check_names(messages, sealed.sender)
            present = any(m.header.configuration == self.node.configuration for m in messages)
            if present and sealed.sender.address not in members:
                raise Refused("the sender is no member")
        except Refused as error:
            self.complain(asked.came_from, str(error))
            return Answer(403)
        except UNREADABLE:
            self.complain(asked.came_from, "it cannot be read")
            return Answer(403)
        asked.is_member()
        self.node.legacy.discard(sealed.sender.address)
        if self._is_stale(asked):
            return DROPPED
        requests = [message for message in messages if isinstance(message, Request)]
        awaited = _Awaited([r for r in requests if _wants_answer(r)])
        for request in requests:
            header = request.header
            self._awaited[header.sender, header.incarnation, header.number] = awaited
        try:
            for request in requests:
                self._ignored = False
                self.act(functools.partial(self.node.receive, request))
                if self._ignored:
                    awaited.give_up(request)
            await self._clock.wait_for(
                awaited.complete.wait(), self._clock.now() + self._settings.timing.vote_window
            )
        finally:
            for request in requests:
                header = request.header
                self._awaited.pop((header.sender, header.incarnation, header.number), None)
        return self._sealed(asked.headers, awaited.answers, 200)

    def _sealed(self, to: Mapping[str, str], messages: list[Message], status: int) -> Answer:
        body = _encode(messages)
        return Answer(status, body, self._seals.answer(to, MESSAGES, body))

    def _check_names(self, messages: list[Any], sender: Node) -> None:
        for message in messages:
            header = message.header
            if (header.sender, header.incarnation) != (
                sender.address,
                f"{sender.incarnation:016x}",
            ):
                raise Refused("it speaks in another's name")
            ticket = getattr(message, "ticket", None)
            if ticket is not None and not self._seals.is_genuine(ticket):
                raise Refused("its ticket is not sealed with the secret of this cluster")

    def _is_stale(self, asked: Asked) -> bool:
        """Whether it may have waited unread while this process stood still.

        A promise given to it would help nobody, and hold others up.
        """
        self._notice_gap()
        return asked.has_gone() or self._clock.now() < self._drop_until

    def _notice_gap(self) -> None:
        now, heartbeat = self._clock.now(), self._settings.timing.heartbeat
        if now - self._alive_at > 2 * heartbeat:
            self._drop_until = now + heartbeat / 2
        self._alive_at = now

    async def _look_after_time(self) -> None:
        heartbeat = self._settings.timing.heartbeat
        while True:
            await self._clock.sleep(heartbeat / 2)
            self._notice_gap()
            self.knowledge.look()

    # --- which member this is ---

    @property
    def is_member(self) -> bool:
        """Whether this node is in the list, or about to join or to leave it."""
        return is_member(self._own.address, self.node.stage)

    @property
    def was_removed(self) -> bool:
        """Whether this node's address is out of use for good."""
        return self._own.address in self.node.stage.retired

    # --- complaints ---

    def complain(self, of: str, reason: str) -> None:
        """Tell of what had no effect: the same once in a while, however often it comes."""
        now = self._clock.now()
        recent = {which: at for which, at in self._complaints.items() if now - at < _QUIET}
        self._complaints = recent
        if (of, reason) in recent or len(recent) >= _MOST_COMPLAINTS:
            return
        recent[of, reason] = now
        self._context.emit(PeerRefused("", now, of, reason))


def _wants_answer(request: Message) -> bool:
    return not isinstance(request, Announcement)
