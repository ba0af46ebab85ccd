"""A node's correspondence: numbered headers, and which run of each peer is believed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from ._quorum_effects import Effect, Send, TwoIncarnations
from ._quorum_members import Quorum
from ._quorum_messages import WIRE_VERSION, Header, Message
from ._quorum_timing import Timing


@dataclass(slots=True)
class Peer:
    """What a node knows of another.

    Attributes:
        incarnation: the run that answered last, or "".
        run_before: the run that was heard of before this node took part, or "".
        former: other runs that answered before: none of them should be alive.
        believed_since: number of our first request that only this run can have answered.
        answered_at: when it last answered.
        ready: whether it said that it takes part.
        durable: whether it said that it stores its state.
        doubted_until: two runs answer in its name, and neither counts until then.
    """

    incarnation: str = ""
    run_before: str = ""
    former: set[str] = field(default_factory=set)
    believed_since: int = 0
    answered_at: float = -math.inf
    ready: bool = False
    durable: bool = False
    doubted_until: float = -math.inf
    doubted: bool = False


class Mail:
    """Collects effects; messages to the node itself stay inside.

    Args:
        id: of the node.
        incarnation: of this run of it.
        timing: the durations.
        quorum: the stage of the membership that the node acts under.
    """

    def __init__(self, id: str, incarnation: str, timing: Timing, quorum: Quorum) -> None:
        self.id = id
        self.incarnation = incarnation
        self.quorum = quorum
        self.peers: dict[str, Peer] = {}
        self.legacy: set[str] = set()
        self.inside: deque[Message] = deque()
        self._timing = timing
        self._effects: list[Effect] = []
        self._number = 0

    def peer(self, id: str) -> Peer:
        """What is known of a node."""
        peer = self.peers.get(id)
        if peer is None:
            peer = self.peers[id] = Peer()
        return peer

    def receivers(self) -> list[str]:
        """All that take part, this node last: what it sends leaves before it thinks.

        Nobody, where this node is no member: it has nothing to say to them.
        """
        if self.id not in self.quorum.everyone:
            return []
        away = {self.id, *self.legacy}
        others = [member for member in self.quorum.everyone if member not in away]
        return [*others, self.id]

    def runs(self) -> list[str]:
        """Which run of each receiver answered last."""
        return [self.peer(receiver).incarnation for receiver in self.receivers()]

    def next_number(self) -> int:
        """The number of a new request, which may go to many."""
        self._number += 1
        return self._number

    def header(self, to: str, number: int) -> Header:
        """For a request."""
        known = self.incarnation if to == self.id else self.peer(to).incarnation
        return Header(
            WIRE_VERSION,
            self.quorum.configuration,
            self.id,
            self.incarnation,
            to,
            known,
            number,
        )

    def reply_header(self, request: Header) -> Header:
        """For the answer to a request."""
        return Header(
            WIRE_VERSION,
            self.quorum.configuration,
            self.id,
            self.incarnation,
            request.sender,
            request.incarnation,
            request.number,
        )

    def send(self, message: Message) -> None:
        """On its way, as the header says."""
        receiver = message.header.receiver
        if receiver == self.id:
            self.inside.append(message)
        else:
            self._effects.append(Send(receiver, message))

    def emit(self, effect: Effect) -> None:
        """To the driver."""
        self._effects.append(effect)

    def take_effects(self) -> list[Effect]:
        """What there is for the driver, in order."""
        effects, self._effects = self._effects, []
        return effects

    # --- runs ---

    def believes_request(self, header: Header, now: float) -> bool:
        """Whether a request may come from the present run of its sender."""
        if header.sender == self.id:
            # A message in our own name that we did not send is from a twin.
            return header.incarnation == self.incarnation
        peer = self.peers.get(header.sender)
        if peer is None:
            return True
        return now >= peer.doubted_until and header.incarnation not in peer.former

    def believes_answer(self, header: Header, now: float) -> bool:
        """Whether an answer comes from the present run of its sender; learns of a new run.

        Only a request that was sent after we knew of the present run can show
        that an earlier one is alive beside it: all else is late mail.
        """
        if header.receiver_incarnation != self.incarnation or header.number > self._number:
            return False
        if header.sender == self.id:
            return header.incarnation == self.incarnation
        peer = self.peer(header.sender)
        if header.incarnation == peer.incarnation:
            peer.answered_at = now
            return now >= peer.doubted_until
        if header.number < peer.believed_since:
            return False
        if header.incarnation in peer.former:
            peer.former.discard(header.incarnation)
            peer.doubted_until = now + 4 * self._timing.idle_heartbeat
            if not peer.doubted:
                peer.doubted = True
                self.emit(TwoIncarnations(header.sender, True))
        if peer.incarnation:
            peer.former.add(peer.incarnation)
        peer.incarnation = header.incarnation
        peer.believed_since = self._number + 1
        peer.answered_at = now
        return now >= peer.doubted_until

    def clear_doubts(self, now: float) -> None:
        """Believe those again that answered as one for long enough."""
        for node, peer in self.peers.items():
            if peer.doubted and now >= peer.doubted_until:
                peer.doubted = False
                self.emit(TwoIncarnations(node, False))

    def reaches_quorum(self, now: float) -> bool:
        """Whether a majority answered lately."""
        return self.quorum.is_quorum(self.reached(now))

    def not_durable(self, joining: Collection[str], now: float) -> list[str]:
        """Which members may not store the change to `joining`, and would have to."""
        # Who is removed and is gone may be without: with a majority that stores the next
        # stage, there is none left that it could vote with.
        asked = (self.reached(now) | set(joining)) & set(self.quorum.everyone)
        return sorted(node for node in asked - {self.id} if not self.peer(node).durable)

    def reached(self, now: float) -> set[str]:
        """Who answered lately, and this node."""
        since = now - 2 * self._timing.idle_heartbeat
        lately = {node for node, peer in self.peers.items() if peer.answered_at >= since}
        return {self.id, *lately}
