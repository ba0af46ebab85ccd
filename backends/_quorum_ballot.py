"""Requests of one number to all members, and what came back: enough, too little, or hopeless."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._quorum_acceptor import PROMISED
from ._quorum_members import Quorum
from ._quorum_messages import Answer


@dataclass(slots=True)
class Ballot:
    """One round of a campaign.

    Attributes:
        number: of the requests.
        sent_at: before they were sent.
        deadline: when the candidate gives up waiting for answers.
        granted: seconds promised, by who granted.
        refused: reasons, and the seconds that a promise to another still lasts.
        terms: the highest that each knows, where that was asked for.
        rival: somebody heard of another candidate.
    """

    number: int
    sent_at: float
    deadline: float
    granted: dict[str, float] = field(default_factory=dict)
    refused: dict[str, tuple[str, float]] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    rival: bool = False

    def count(
        self, answer: Answer, granted: bool, promised: float, reason: str, remaining: float
    ) -> bool:
        """Take an answer down; whether it is one to these requests."""
        if answer.header.number != self.number:
            return False
        sender = answer.header.sender
        if granted:
            self.granted[sender] = promised
        else:
            # A duplicate of a granted request is refused: the grant stands.
            self.refused.setdefault(sender, (reason, remaining))
        return True

    def is_hopeless(self, quorum: Quorum) -> bool:
        """Whether no answer that is still to come could make a majority."""
        return not quorum.is_quorum(
            [node for node in quorum.everyone if node not in self.refused or node in self.granted]
        )

    def earliest_hope(self, quorum: Quorum) -> float:
        """Seconds, on the acceptors' clocks, until a majority can be free of its promises."""
        hopeful = set(self.granted)
        waits = sorted(
            (remaining, node)
            for node, (reason, remaining) in self.refused.items()
            if reason == PROMISED and node not in hopeful
        )
        for remaining, node in waits:
            hopeful.add(node)
            if quorum.is_quorum(hopeful):
                return remaining
        return 0.0
