"""The core of the peers backend: a node of a quorum of leases, without clock, socket or chance.

A majority of the member list votes once per term and promises, for a bounded
time, to vote for nobody else. The leader believes in its term for less than
the promises last, counted from the moment when it asked for them.

A driver feeds a `QuorumLease` and carries out what it returns:

    node = QuorumLease(id="10.0.0.5:7000", incarnation=random_hex, members=[...], ...)
    effects = node.receive(message, now)     # a decoded and authenticated message
    effects = node.tick(now)                 # not later than node.next_tick
    effects = node.campaign(key, uid, value, ttl, now)
    effects = node.withdraw(key, uid, now)   # leave, at whatever point; Released follows
    effects = node.resign(key, uid, now, successor=id)   # the leader only; Released follows
    effects = node.proclaim(key, uid, value, now)
    effects = node.change_members(members, now)
    effects = node.persisted(number, succeeded, now)     # the answer to Persist

- Each call returns a list of effects (`_quorum_effects`), to be carried out in
  their order: `Send`, `Persist`, `Elected`, `Renewed`, `Lost`, `Released`,
  `LeaderSeen`, `Ready`, `TwoIncarnations`, `MembersChanged`, `Ignored`. What waits for
  a `Persist` comes out of `persisted`, so no effect waits for the one before it.
- `now` is in seconds on a clock that counts suspend and never goes back; it may
  be read a moment before the call, never after it. For a request that is sent,
  it must be read before the sending: terms are counted from it.
- An answer is a message like any other: `Send(to, answer)` bears the number of
  the request (`header.number`), by which a driver finds the HTTP request to
  answer. With a `Persist` between, it comes later than the call that received it.
- Messages may be lost, repeated, replayed, reordered and delayed at will. The
  driver authenticates each one over all of its content (sender and receiver are
  in the header), and seals and checks `Ticket.seal`. It should drop requests
  that waited unread while the process stood still, or whose client has gone: a
  promise given to them helps nobody and holds others up; it is not unsafe.
- After `Lost`, and after `resign` or `withdraw`, the contender is out of the
  queue, and enters again with `campaign`. A term ends at its `valid_until`,
  whether or not `Lost` was told yet. `resign` and `withdraw` come after the work is joined.
- Followers: `node.leaders.leader(key)` tells what is known, `LeaderSeen` each change,
  and `node.reaches_quorum(now)` whether this node would have heard.
- `node.queues.waiting(key, now)` names who waits to lead: hints for `resign`.
- `node.ready` is False until a (re)started node takes part. `node.healthy = False`
  keeps it from campaigning. `node.legacy` names members that speak electio's
  protocol alone: they count in the size of the majority and are sent nothing.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ConfigurationError, NotLeader
from ._quorum_acceptor import Acceptor
from ._quorum_candidacy import Candidacy, Commons, Contender
from ._quorum_effects import Effect, Ignored, Ready, StoredState
from ._quorum_granting import Granting
from ._quorum_holdings import Holdings
from ._quorum_leaders import Leaders
from ._quorum_mail import Mail
from ._quorum_members import Quorum, first_stage
from ._quorum_membership import Membership
from ._quorum_messages import (
    SPOKEN_VERSIONS,
    Announcement,
    Answer,
    HeartbeatAnswer,
    LeaseAnswer,
    Members,
    MembersAnswer,
    MembersNotice,
    Message,
    PreVoteAnswer,
    RecoveryAnswer,
    Release,
    ReleaseAnswer,
    VoteAnswer,
)
from ._quorum_recovery import Recovering
from ._quorum_releases import Releases
from ._quorum_storage import Storage
from ._quorum_timing import Timing
from ._quorum_waiting import Queues


class QuorumLease:
    """One node.

    Args:
        id: the node's id, as in the member list. A node that is not in it waits
            to be added by a change.
        incarnation: random, another one at each start.
        members: ids of all members.
        cluster: name; nodes of different names refuse each other.
        timing: the durations.
        random: the only source of chance.
        wall_clock: milliseconds since 1970; need not be right.
        now: seconds on the node's clock.
        durable: whether `Persist` is carried out; else the effect never comes.
        stored: what was stored before this start, or None.
        bootstrap: no earlier run of this node, nor of any that another one answers for
            or that is in the list no more, is left: where all start together, they
            take part without a silence. Not for
            a node that stored a state: under another member list it may have promised
            to a leader that is no member any more.
        keys_limit: how many keys are kept; more are refused.
        forget_after: seconds after which a key that nobody asks for is dropped.

    Raises:
        ConfigurationError: what was given contradicts itself.
    """

    def __init__(
        self,
        *,
        id: str,
        incarnation: str,
        members: Iterable[str],
        cluster: str,
        timing: Timing,
        random: random.Random,
        wall_clock: Callable[[], float],
        now: float,
        durable: bool = False,
        stored: StoredState | None = None,
        bootstrap: bool = False,
        keys_limit: int = 10_000,
        forget_after: float = 600.0,
    ) -> None:
        if not incarnation:
            raise ConfigurationError("the incarnation is empty: choose a random one at each start")
        if stored is not None and not durable:
            raise ConfigurationError("a stored state needs durable=True")
        stage = stored.stage if stored is not None else first_stage(members)
        self.id = id
        self.incarnation = incarnation
        self.cluster = cluster
        self.timing = timing
        self._mail = Mail(id, incarnation, timing, Quorum(cluster, timing, stage))
        self._acceptor = Acceptor(timing, wall_clock, keys_limit)
        self.queues = Queues(self._mail, timing)
        self._holdings = Holdings(self._mail, timing, self.queues)
        self._holdings.next_at = now
        self._releases = Releases(self._mail, timing)
        self._commons = Commons(
            timing,
            random,
            wall_clock,
            self._mail,
            self._acceptor,
            self._holdings,
            self._releases,
            self.queues,
        )
        # Each key has two acceptors at least, so no member leads as many.
        told_limit = 2 * keys_limit
        self.leaders = Leaders(self._mail, timing.lease_ceiling, told_limit)
        self._candidacies: dict[str, Candidacy] = {}
        self._timers: list[tuple[float, str]] = []
        self._scheduled: dict[str, float] = {}
        self._keys_limit = keys_limit
        self._forget_after = max(forget_after, timing.silence(None))
        self._forget_at = now + self._forget_after
        state = stored or StoredState(0, timing.lease_ceiling, stage)
        self._storage = Storage(self._mail, state, durable=durable)
        self._granting = Granting(
            self._mail,
            timing,
            self._acceptor,
            self._storage,
            self.leaders,
            self.queues,
            told_limit,
            is_ready=lambda: self.ready,
        )
        self._membership = Membership(
            self._mail,
            timing,
            self._storage,
            self._acceptor,
            random,
            cluster,
            now,
            is_ready=lambda: self.ready,
            entered=self._enter_stage,
        )
        self._recovering: Recovering | None = Recovering(
            self._mail, self._acceptor, timing, stored, now, bootstrap=bootstrap and stored is None
        )
        self._healthy = True
        self._becoming_ready = False
        self._handlers: dict[type[Message], Callable[[Any, float], None]] = {
            PreVoteAnswer: self._on_pre_vote_answer,
            VoteAnswer: self._on_vote_answer,
            LeaseAnswer: self._on_lease_answer,
            HeartbeatAnswer: self._on_heartbeat_answer,
            Release: self._on_release,
            ReleaseAnswer: self._on_release_answer,
            Announcement: self._on_announcement,
            RecoveryAnswer: self._on_recovery_answer,
            **self._granting.handlers,
            **self._membership.handlers,
        }

    # --- what the driver reads ---

    @property
    def ready(self) -> bool:
        """The node votes and may lead: a rolling restart waits for it before the next node."""
        return self._recovering is None

    @property
    def stage(self) -> Members:
        """The membership that the node acts under."""
        return self._membership.stage

    @property
    def configuration(self) -> str:
        """The hash that goes into each header."""
        return self._mail.quorum.configuration

    @property
    def legacy(self) -> set[str]:
        """Members that speak electio's protocol alone. Add to it, and take from it."""
        return self._mail.legacy

    @property
    def healthy(self) -> bool:
        """Whether the node may campaign. After a change, `next_tick` may be earlier."""
        return self._healthy

    @healthy.setter
    def healthy(self, healthy: bool) -> None:
        self._healthy = healthy
        self._update_campaigning()
        for candidacy in self._candidacies.values():
            self._schedule(candidacy)

    def reaches_quorum(self, now: float) -> bool:
        """Whether a majority answered lately: this node would know of a leader."""
        return self._mail.reaches_quorum(now)

    def is_silent(self, now: float) -> bool:
        """Whether the silence that follows a start still lasts."""
        return self._recovering is not None and now < self._recovering.silent_until

    def valid_until(self, key: str, uid: str) -> float:
        """When the contender's term ends unless renewed; minus infinity: it does not lead."""
        candidacy = self._candidacies.get(key)
        return candidacy.valid_until if candidacy and candidacy.leads(uid) else -math.inf

    @property
    def next_tick(self) -> float:
        """When `tick` must be called, at the latest."""
        return min(
            self._timers[0][0] if self._timers else math.inf,
            self._holdings.next_at,
            self._releases.next_at,
            self.leaders.next_at,
            self._recovering.next_at if self._recovering is not None else math.inf,
            self._membership.next_at,
        )

    # --- what the driver tells ---

    def receive(self, message: Message, now: float) -> list[Effect]:
        """A message came, authenticated and decoded."""
        self._handle(message, now)
        return self._finish(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        if self._recovering is not None and self._recovering.tick(now):
            self._become_ready(now)
        self._membership.tick(now)
        self._releases.tick(now)
        self.leaders.tick(now)
        while self._timers and self._timers[0][0] <= now:
            when, key = heapq.heappop(self._timers)
            if self._scheduled.get(key) != when:
                continue
            del self._scheduled[key]
            candidacy = self._candidacies[key]
            candidacy.tick(now)
            if candidacy.is_idle:
                self._candidacies.pop(key, None)
            else:
                self._schedule(candidacy)
        if now >= self._holdings.next_at:
            self._holdings.beat(now)
            self._mail.clear_doubts(now)
        if now >= self._forget_at:
            self._acceptor.forget_idle(now - self._forget_after, now)
            self._forget_at = now + self._forget_after
        return self._finish(now)

    def campaign(
        self,
        key: str,
        uid: str,
        value: bytes,
        ttl: float,
        now: float,
        *,
        rank: int = 0,
        name: str = "",
    ) -> list[Effect]:
        """Contend for `key` until `withdraw`, `resign` or `Lost`; `Elected` tells of success.

        Args:
            uid: of the contender, unique on this node; the same in all its terms.
            value: told to followers.
            ttl: seconds that the others wait for a leader that has died.
            rank: 0 campaigns first, each further one a little later.
            name: what the user calls the contender, for `queues`.

        Raises:
            ConfigurationError: the ttl is out of bounds.
        """
        self.timing.check_ttl(ttl)
        candidacy = self._candidacies.get(key)
        if candidacy is None:
            candidacy = self._candidacies[key] = Candidacy(key, self._commons)
        if not candidacy.has(uid):
            candidacy.enter(Contender(uid, value, ttl, rank, name=name), now)
        self._schedule(candidacy)
        return self._finish(now)

    def withdraw(self, key: str, uid: str, now: float) -> list[Effect]:
        """Stop contending; a leader resigns. `Released` tells when nothing of it is left."""
        candidacy = self._candidacies.get(key)
        if candidacy is not None and candidacy.has(uid):
            candidacy.withdraw(uid, now)
            self._schedule(candidacy)
        return self._finish(now)

    def resign(
        self, key: str, uid: str, now: float, *, successor: str | None = None, contender: str = ""
    ) -> list[Effect]:
        """Give up the term; a successor leads 1.5 round trips later. The work has ended before.

        Args:
            successor: its id; None: that of who waits longest, as far as is known.
            contender: which one of that node's is meant; "": the first.

        Raises:
            NotLeader: the contender does not lead.
        """
        candidacy = self._candidacies.get(key)
        if candidacy is None or not candidacy.leads(uid):
            raise NotLeader(f"{uid!r} does not lead {key!r}")
        candidacy.resign(successor, contender, now)
        self._schedule(candidacy)
        return self._finish(now)

    def runs(self) -> tuple[str, ...]:
        """The configuration, and which run of each other member answered last."""
        return self.configuration, *self._mail.runs()

    def releases(self, key: str, uid: str) -> list[Release]:
        """What to tell the others when this node has died while the contender led."""
        candidacy = self._candidacies.get(key)
        return [] if candidacy is None else candidacy.releases(uid)

    def proclaim(self, key: str, uid: str, value: bytes, now: float) -> list[Effect]:
        """Change the contender's value, for this term and for later ones.

        Raises:
            NotLeader: it does not contend.
        """
        candidacy = self._candidacies.get(key)
        if candidacy is None or not candidacy.proclaim(uid, value):
            raise NotLeader(f"{uid!r} does not contend for {key!r}")
        return self._finish(now)

    def change_members(self, members: Iterable[str], now: float) -> list[Effect]:
        """Begin to change the member list; `MembersChanged` tells of each stage.

        Removed ids never come back. A leader that is removed loses its terms: let
        it resign to a successor first.

        Raises:
            NotSupported: a member is not known to store its state.
            ConfigurationError: another change is under way, or an id is retired.
        """
        self._membership.change(members, now)
        return self._finish(now)

    def stop_changing_members(self) -> None:
        """Propose it no more; what was accepted may still come about."""
        self._membership.give_up()

    def persisted(self, number: int, succeeded: bool, now: float) -> list[Effect]:
        """The `Persist` of this number, and all before it, are done, or the last one failed."""
        self._storage.persisted(number, succeeded, now)
        return self._finish(now)

    # --- messages ---

    def _finish(self, now: float) -> list[Effect]:
        inside = self._mail.inside
        while inside:
            self._handle(inside.popleft(), now)
        return self._mail.take_effects()

    def _handle(self, message: Message, now: float) -> None:
        header = message.header
        if header.version not in SPOKEN_VERSIONS or header.receiver != self.id:
            self._ignore(header.sender, "another wire version, or meant for another node")
            return
        about_members = isinstance(message, (MembersNotice, MembersAnswer))
        ours = header.configuration == self._mail.quorum.configuration
        if not ours and self._recovering is not None:
            self._recovering.another_configuration()
        if not about_members and not ours:
            self._ignore(header.sender, "another configuration")
            self._membership.tell(header.sender, now)
            return
        if isinstance(message, Answer):
            believed = self._mail.believes_answer(header, now)
        else:
            believed = self._mail.believes_request(header, now)
        if believed:
            self._handlers[type(message)](message, now)
        else:
            self._ignore(header.sender, "another run of the node")

    def _ignore(self, sender: str, reason: str) -> None:
        self._mail.emit(Ignored(sender, reason))

    def _on_release(self, message: Release, now: float) -> None:
        ticket = message.ticket
        freed = self._granting.release(ticket, now)
        self._mail.send(
            ReleaseAnswer(self._mail.reply_header(message.header), ticket.key, ticket.term)
        )
        candidacy = self._candidacies.get(ticket.key)
        if candidacy is not None:
            named = self._granting.names(ticket, self.id, self.incarnation)
            if not freed:
                # This node had promised nothing, but it may have been refused by who had.
                candidacy.promise_returned(now)
            elif not (named and candidacy.take_over(ticket, message.contender, now)):
                candidacy.released(ticket, now)
            self._schedule(candidacy)

    def _on_announcement(self, message: Announcement, now: float) -> None:
        entry = message.entry
        self.leaders.note(message.header.sender, entry, now)
        self.queues.remove(message.header.sender, entry.key, entry.uid)
        candidacy = self._candidacies.get(entry.key)
        if candidacy is not None and message.header.sender != self.id:
            candidacy.another_leads(entry.term)
            self._schedule(candidacy)

    # --- answers ---

    def _on_pre_vote_answer(self, answer: PreVoteAnswer, now: float) -> None:
        candidacy = self._candidacies.get(answer.key)
        if candidacy is not None:
            candidacy.pre_vote_answered(answer, now)
            self._schedule(candidacy)

    def _on_vote_answer(self, answer: VoteAnswer, now: float) -> None:
        candidacy = self._candidacies.get(answer.key)
        if candidacy is not None:
            candidacy.vote_answered(answer, now)
            self._schedule(candidacy)

    def _on_lease_answer(self, answer: LeaseAnswer, now: float) -> None:
        candidacy = self._candidacies.get(answer.key)
        if candidacy is not None:
            candidacy.lease_answered(answer, now)
            self._schedule(candidacy)

    def _on_heartbeat_answer(self, answer: HeartbeatAnswer, now: float) -> None:
        peer = self._mail.peer(answer.header.sender)
        peer.ready, peer.durable = answer.ready, answer.durable
        self.queues.learn(answer, now)
        self._holdings.answered(answer, now, lambda key: self._lapse(key, now))

    def _on_release_answer(self, answer: ReleaseAnswer, now: float) -> None:
        self._releases.answered(answer)

    def _on_recovery_answer(self, answer: RecoveryAnswer, now: float) -> None:
        if self._recovering is not None and self._recovering.answered(answer, now):
            self._become_ready(now)

    # --- small means ---

    def _become_ready(self, now: float) -> None:
        if self._recovering is None or self._becoming_ready:
            return
        self._becoming_ready = True

        def take_part(now: float) -> None:
            if self._recovering is not None:
                self._recovering.finish(now)
                self._recovering = None
                self._mail.emit(Ready())
                self._update_campaigning()
                for candidacy in self._candidacies.values():
                    candidacy.become_ready(now)
                    self._schedule(candidacy)

        def try_again(now: float) -> None:
            self._becoming_ready = False

        # A higher ceiling must be on disk before the first promise up to it.
        self._storage.keep_ceiling(self.timing.lease_ceiling, take_part, try_again, now)

    def _enter_stage(self, now: float) -> None:
        self._update_campaigning()
        for candidacy in self._candidacies.values():
            if self.id in self._mail.quorum.everyone:
                candidacy.abort(now)
            else:
                candidacy.remove_all(now)
            self._schedule(candidacy)

    def _update_campaigning(self) -> None:
        is_member = self.id in self._mail.quorum.everyone
        self._commons.may_campaign = self.ready and self._healthy and is_member

    def _lapse(self, key: str, now: float) -> None:
        candidacy = self._candidacies[key]
        candidacy.lapse(now)
        self._schedule(candidacy)

    def _schedule(self, candidacy: Candidacy) -> None:
        key, wake_at = candidacy.key, candidacy.wake_at
        self.queues.note(key, candidacy.waiters)
        if wake_at < self._scheduled.get(key, math.inf):
            self._scheduled[key] = wake_at
            heapq.heappush(self._timers, (wake_at, key))
