"""The core with one rule taken out, or two: each must be caught by the simulation.

    python -m tests.quorum_mutants [WORD]   # the seeds that each one took; only those named so

A rule that nothing catches would be a rule that nobody knows to work.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from leadership.backends._quorum_acceptor import Acceptor, Record
from leadership.backends._quorum_candidacy import Candidacy, Contender
from leadership.backends._quorum_change import Change
from leadership.backends._quorum_effects import Effect
from leadership.backends._quorum_holdings import Holding, Holdings, KeySet, _Renewal
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import Quorum, final_stage, joint_stage
from leadership.backends._quorum_messages import (
    Heartbeat,
    Members,
    MembersAnswer,
    Message,
    Owner,
    Ticket,
    VoteAnswer,
)
from leadership.backends._quorum_recovery import Recovering
from leadership.backends._quorum_storage import Act, Storage
from leadership.backends._quorum_timing import Timing

from .simulation import Plan, Violation, draw
from .simulation_faults import simulate


def become(thing: object, kind: type | None) -> None:
    """Turn a part of a node into its mutant."""
    if kind is not None:
        object.__setattr__(thing, "__class__", kind)


class MutantNode(QuorumLease):
    """A node whose parts are replaced."""

    timing_kind: ClassVar[type[Timing]] = Timing
    acceptor_kind: ClassVar[type[Acceptor] | None] = None
    candidacy_kind: ClassVar[type[Candidacy] | None] = None
    holdings_kind: ClassVar[type[Holdings] | None] = None
    recovering_kind: ClassVar[type[Recovering] | None] = None
    storage_kind: ClassVar[type[Storage] | None] = None
    quorum_kind: ClassVar[type[Quorum] | None] = None
    change_kind: ClassVar[type[Change] | None] = None
    key_set_kind: ClassVar[type[KeySet] | None] = None
    mail_kind: ClassVar[type[Mail] | None] = None

    def __init__(self, **arguments: Any) -> None:
        timing = arguments["timing"]
        fields = {f.name: getattr(timing, f.name) for f in dataclasses.fields(timing)}
        arguments["timing"] = self.timing_kind(**fields)
        super().__init__(**arguments)
        become(self._acceptor, self.acceptor_kind)
        become(self._holdings, self.holdings_kind)
        become(self._storage, self.storage_kind)
        become(self._mail, self.mail_kind)
        become(self._mail.quorum, self.quorum_kind)
        if self._recovering is not None:
            become(self._recovering, self.recovering_kind)
        if self._change is not None:
            become(self._change, self.change_kind)

    def campaign(self, key: str, *arguments: Any, **options: Any) -> list[Effect]:
        effects = super().campaign(key, *arguments, **options)
        become(self._candidacies[key], self.candidacy_kind)
        return effects

    def _act_under(self, stage: Members, *arguments: Any) -> None:
        super()._act_under(stage, *arguments)
        become(self._mail.quorum, self.quorum_kind)
        if self._change is not None:
            become(self._change, self.change_kind)

    def _on_heartbeat(self, message: Heartbeat, now: float) -> None:
        header = message.header
        if self.key_set_kind is not None:
            keys = self._key_sets.get(header.sender)
            if keys is None or keys.incarnation != header.incarnation:
                self._key_sets[header.sender] = self.key_set_kind(header.incarnation)
        super()._on_heartbeat(message, now)


# --- acceptors ---


class VotesDespitePromise(Acceptor):
    def _refusal_to_vote(
        self, record: Record, owner: Owner, term: int, now: float, established: bool
    ) -> str:
        until, record.promised_until = record.promised_until, -math.inf
        refusal = super()._refusal_to_vote(record, owner, term, now, established)
        record.promised_until = until
        return refusal


class LeasesDespitePromise(Acceptor):
    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        until, record.promised_until = record.promised_until, -math.inf
        refusal = super()._refusal_to_lease(record, owner, term, number, now)
        record.promised_until = until
        return refusal


class IgnoresPromises(VotesDespitePromise, LeasesDespitePromise):
    pass


class VotesTwice(Acceptor):
    def _refusal_to_vote(
        self, record: Record, owner: Owner, term: int, now: float, established: bool
    ) -> str:
        record.max_term -= 1
        refusal = super()._refusal_to_vote(record, owner, term, now, established)
        record.max_term += 1
        return refusal


class VotesInOldTerms(Acceptor):
    def _refusal_to_vote(
        self, record: Record, owner: Owner, term: int, now: float, established: bool
    ) -> str:
        known, record.max_term = record.max_term, 0
        refusal = super()._refusal_to_vote(record, owner, term, now, established)
        record.max_term = known
        return refusal


class LeasesInOldTerms(Acceptor):
    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        known, voted = record.max_term, record.voted_for
        record.max_term, record.voted_for = 0, None
        refusal = super()._refusal_to_lease(record, owner, term, number, now)
        record.max_term, record.voted_for = known, voted
        return refusal


class LeasesToWhomItDidNotVoteFor(Acceptor):
    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        voted, record.voted_for = record.voted_for, None
        refusal = super()._refusal_to_lease(record, owner, term, number, now)
        record.voted_for = voted
        return refusal


class VotesTwiceAndLeasesToAnybody(VotesTwice, LeasesToWhomItDidNotVoteFor):
    pass


class OldTerms(VotesInOldTerms, LeasesInOldTerms):
    pass


class ReleasesAnybody(Acceptor):
    def release(self, ticket: Ticket, now: float) -> bool:
        record = self.records.get(ticket.key)
        if record is not None:
            record.promised_to = None
        return super().release(ticket, now)


class ReleasesOldTerms(Acceptor):
    def release(self, ticket: Ticket, now: float) -> bool:
        record = self.records.get(ticket.key)
        if record is not None and record.promised_to == ticket.owner:
            record.promised_to = None
        return super().release(ticket, now)


class LeasesReplayed(Acceptor):
    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        return super()._refusal_to_lease(record, owner, term, 1 << 60, now)


class KeepsReleasedTermsOpen(Acceptor):
    def release(self, ticket: Ticket, now: float) -> bool:
        done = super().release(ticket, now)
        if done:
            self.records[ticket.key].voted_for = None
        return done


class BelievesAnyTerm(Acceptor):
    def is_far_ahead(self, term: int) -> bool:
        return False


class RefusesSuccessorsOfFarTerms(Acceptor):
    def _too_far(self, record: Record, term: int) -> bool:
        return self.is_far_ahead(term)


class WeighsLeases(Acceptor):
    def _refusal_to_lease(
        self, record: Record, owner: Owner, term: int, number: int, now: float
    ) -> str:
        if self._too_far(record, term):
            return "too far"
        return super()._refusal_to_lease(record, owner, term, number, now)


# --- candidates and leaders ---


class NoClockFloor(Candidacy):
    def _next_term(self) -> int:
        return self._known_term() + 1


class NoPause(Candidacy):
    def _delay(self) -> float:
        return 0.0


class CountsFromAnswer(Candidacy):
    def vote_answered(self, answer: VoteAnswer, now: float) -> None:
        if self._ballot is not None:
            self._ballot.sent_at = now
        super().vote_answered(answer, now)

    def lease_answered(self, answer: Any, now: float) -> None:
        if self._ballot is not None:
            self._ballot.sent_at = now
        super().lease_answered(answer, now)


class CountsRenewalsFromAnswer(Holdings):
    def _count(self, renewal: _Renewal, now: float, lapse: Callable[[str], None]) -> None:
        renewal.sent_at = now
        super()._count(renewal, now, lapse)


class RenewsLapsed(Holdings):
    def _renew(
        self,
        holding: Holding,
        renewal: _Renewal,
        ceiling: float,
        now: float,
        lapse: Callable[[str], None],
    ) -> None:
        holding.valid_until = max(holding.valid_until, now + 1e-9)
        super()._renew(holding, renewal, ceiling, now, lapse)


class LeadsOnAfterLapse(Candidacy):
    """Lets the others keep the promises of a term that lapsed, and goes on with it."""

    def lapse(self, now: float, reason: str = "") -> None:
        held = self._commons.holdings.held[self.key]
        if held.valid_until + 5 > now:
            self._lapsed_at = now
            return
        super().lapse(now, reason)


class NeverLooksForEstablished(Candidacy):
    def _look_for_established(self, ballot: Any) -> None:
        pass


class ResignsAndRenews(Candidacy):
    def _end_term(self, contender: Contender) -> None:
        holdings = self._commons.holdings
        holding = holdings.held[self.key]
        super()._end_term(contender)
        holdings.held[self.key] = holding


class CountsLateVotes(Candidacy):
    def vote_answered(self, answer: VoteAnswer, now: float) -> None:
        if self._ballot is not None:
            sent_at, self._ballot.sent_at = self._ballot.sent_at, now
            super().vote_answered(answer, now)
            if self._ballot is not None and self.phase.name == "VOTING":
                self._ballot.sent_at = sent_at
        else:
            super().vote_answered(answer, now)


class GrowsDespiteRefusal(Holdings):
    """Takes an answer that names refused keys for a grant of all."""

    def answered(self, answer: Any, now: float, lapse: Callable[[str], None]) -> None:
        from msgspec.structs import replace

        super().answered(replace(answer, refused=()), now, lapse)


class BelievesKeySets(KeySet):
    """Applies changes to whatever it has, and does not compare digests."""

    __slots__ = ()

    def apply(self, heartbeat: Heartbeat) -> Any:
        for key in heartbeat.removed:
            self.entries.pop(key, None)
        for entry in heartbeat.changes:
            self.entries.setdefault(entry.key, entry)
        self.version = heartbeat.target
        return []


# --- restarts, clocks, numbers ---


class NoSilence(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return 0.0


class SilenceOfVotesOnly(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return self.outlasting(self.vote_window)


class NoDrift(Timing):
    def validity(self, promised: float) -> float:
        return promised


class RecoversWithoutMemory(Recovering):
    def _memory_suffices(self) -> bool:
        return True


class BelievesTheForgetful(Recovering):
    def _memory_suffices(self) -> bool:
        return self._mail.quorum.meets_every_quorum(list(self._answers))


class WeighsRecoveredTerms(Recovering):
    def finish(self, now: float) -> None:
        acceptor = self._acceptor
        self._answers = {
            node: answer
            for node, answer in self._answers.items()
            if not any(acceptor.is_far_ahead(term) for term in answer.terms.values())
        }
        super().finish(now)


class AnswersBeforeItWrites(Storage):
    def keep_term(self, term: int, then: Act, otherwise: Act, now: float) -> None:
        then(now)
        super().keep_term(term, lambda now: None, lambda now: None, now)


class SilentWithoutStateOnly(MutantNode):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self._recovering is not None and arguments["stored"] is not None:
            self._recovering.silent_until = self._recovering.next_at = arguments["now"]
            self._recovering._forgetting_until = arguments["now"]


class SmallMajority(Quorum):
    def is_quorum(self, nodes: Collection[str]) -> bool:
        members = self.stage.members
        return sum(node in members for node in nodes) >= max(1, len(members) // 2)


class MajorityOfThoseThatAnswer(Mail):
    """n is the number of nodes that answered lately."""

    def reaches(self) -> set[str]:
        since = self.peer(self.id).answered_at - 0.5
        return {node for node, peer in self.peers.items() if peer.answered_at >= since}


class ForgetsRuns(MutantNode):
    """An owner is a node, whichever run of it."""

    def _handle(self, message: Message, now: float) -> None:
        super()._handle(message, now)


class HearsFormerRuns(MutantNode):
    """Obeys what was meant for an earlier run of it."""

    def _refusal(self, message: Message) -> str:
        refusal = super()._refusal(message)
        return "" if "another run" in refusal else refusal


# --- members ---


class OneListIsEnough(Quorum):
    """In the joint stage, a majority of the new list decides."""

    def is_quorum(self, nodes: Collection[str]) -> bool:
        return self._majorities[-1](nodes)


class ChangesAtOnce(MutantNode):
    """From the old list to the new, without the stage in between."""

    def change_members(self, members: Any, now: float) -> list[Effect]:
        self._go_to(final_stage(joint_stage(self.stage, members)), 0, {}, now)
        return self._finish(now)


class CompletesAtOnce(Change):
    """Does not wait for what was promised under the old list."""

    def answered(self, answer: MembersAnswer, now: float) -> None:
        super().answered(answer, now)
        if self._complete_at < math.inf:
            self._complete_at = self.next_at = now


class CarriesNoTerms(MutantNode):
    """The new list begins without what the old one knew."""

    def _go_to(self, stage: Members, floor: int, terms: dict[str, int], now: float) -> None:
        super()._go_to(stage, 0, {}, now)


def _node(**parts: Any) -> type[MutantNode]:
    return type("Mutant", (MutantNode,), parts)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule less.

    Attributes:
        rule: what was taken out.
        node: the node without it.
        within: seeds within which it must be caught.
        focus: the part of the adversary that the rule is there for, for rare cases.
        instead: where no random schedule can catch it: the argument, or the directed test.
    """

    rule: str
    node: type[QuorumLease]
    within: int = 100
    focus: Callable[[Plan], Plan] = lambda plan: plan
    instead: str = ""


def _focus(**changes: Any) -> Callable[[Plan], Plan]:
    timing = changes.pop("timing", {})

    def focus(plan: Plan) -> Plan:
        return dataclasses.replace(
            plan, **changes, timing=dataclasses.replace(plan.timing, **timing)
        )

    return focus


_DISKLESS = _focus(durable=False, wild_clocks=False, change_members=False, lost_disks=False)
_WILD = _focus(wild_clocks=True, change_members=False, lost_disks=False)
_CHANGING = _focus(
    durable=True, change_members=True, wild_clocks=False, lost_disks=False, faults_per_second=1.5
)


_CLOSE = _focus(faults_per_second=0.5, loss=0.3, timing={"backoff": 0.001}, wild_clocks=False)
_REPLAYING = _focus(replays=0.3, wishes_per_second=2.0, slow=0.1, longest_delay=3.0)
_HARSH = {"faults_per_second": 3.0, "change_members": False, "wild_clocks": False}
_DELAYED = _focus(nodes=3, slow=0.5, longest_delay=1.0, timing={"backoff": 0.01}, **_HARSH)
_DRIFTING = _focus(nodes=3, loss=0.0, timing={"guard": 0.001, "backoff": 0.005}, **_HARSH)


def _skewed(plan: Plan) -> Plan:
    # The machines' wall clocks are drawn by the skew that the plan tells, which
    # the mutant's nodes then do not wait for.
    return dataclasses.replace(
        _DISKLESS(plan),
        timing=dataclasses.replace(plan.timing, wall_clock_skew=8.0),
        faults_until=30.0,
    )


class NoSkewWait(MutantNode):
    """Does not wait for as long as wall clocks may differ."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self._recovering is not None:
            self._recovering._forgetting_until = self._recovering.silent_until


MUTANTS: dict[str, Mutant] = {
    mutant.rule: mutant
    for mutant in (
        # --- promises and votes ---
        Mutant(
            "A2+A3 promises bind neither votes nor leases", _node(acceptor_kind=IgnoresPromises)
        ),
        Mutant(
            "A2 promises do not bind votes",
            _node(acceptor_kind=VotesDespitePromise),
            instead="the lease checks the promise again, and nobody leads without leases",
        ),
        Mutant(
            "A3 promises do not bind leases",
            _node(acceptor_kind=LeasesDespitePromise),
            instead="the vote checked the promise before, and nobody leads without votes",
        ),
        Mutant("A2 votes in terms below the highest", _node(acceptor_kind=VotesInOldTerms), 600),
        Mutant("A2+A3 leases in terms below the highest too", _node(acceptor_kind=OldTerms), 300),
        Mutant("A3 leases in terms below the highest", _node(acceptor_kind=LeasesInOldTerms), 600),
        Mutant(
            "A2+A3 two votes, and leases to whom it did not vote for",
            _node(acceptor_kind=VotesTwiceAndLeasesToAnybody),
            600,
            _CLOSE,
        ),
        Mutant("A2 two votes in one term", _node(acceptor_kind=VotesTwice), 600, _CLOSE),
        Mutant(
            "A3 leases to whom it did not vote for",
            _node(acceptor_kind=LeasesToWhomItDidNotVoteFor),
            instead="only who has a majority of the term's votes asks for a lease in it",
        ),
        Mutant("A4 a release clears another's promise", _node(acceptor_kind=ReleasesAnybody), 600),
        Mutant(
            "A4 a release clears a later promise of the same owner",
            _node(acceptor_kind=ReleasesOldTerms),
            600,
            _REPLAYING,
        ),
        # --- leading ---
        Mutant(
            "C3 the lease is counted from the answer",
            _node(candidacy_kind=CountsFromAnswer, holdings_kind=CountsRenewalsFromAnswer),
            400,
            _DELAYED,
        ),
        Mutant("C4 a lapsed leader goes on", _node(candidacy_kind=LeadsOnAfterLapse), 100),
        Mutant(
            "C4 a grant after the lapse counts",
            _node(candidacy_kind=LeadsOnAfterLapse, holdings_kind=RenewsLapsed),
            100,
        ),
        Mutant(
            "P3 who resigned counts grants on their way",
            _node(candidacy_kind=ResignsAndRenews),
            100,
        ),
        Mutant(
            "P8 keys that were refused count as granted",
            _node(holdings_kind=GrowsDespiteRefusal),
            600,
        ),
        Mutant(
            "P8 changes are applied to an unknown set", _node(key_set_kind=BelievesKeySets), 600
        ),
        Mutant("3.4 drift is ignored", _node(timing_kind=NoDrift), 2000, _DRIFTING),
        # --- restart ---
        Mutant("3.5 no silence after a restart", _node(timing_kind=NoSilence), 600),
        Mutant(
            "P4 no silence with a stored state", SilentWithoutStateOnly, 600, _focus(durable=True)
        ),
        Mutant(
            "3.5 silence for the vote window alone", _node(timing_kind=SilenceOfVotesOnly), 2000
        ),
        Mutant(
            "3.5+3.6 neither recovery read nor clock floor",
            _node(recovering_kind=RecoversWithoutMemory, candidacy_kind=NoClockFloor),
            100,
            _DISKLESS,
        ),
        Mutant(
            "3.5 no recovery read",
            _node(recovering_kind=RecoversWithoutMemory),
            instead="the clock floor alone keeps tokens rising while clocks are right",
        ),
        Mutant(
            "P6+3.6 memory of nodes that recover themselves, no clock floor",
            _node(recovering_kind=BelievesTheForgetful, candidacy_kind=NoClockFloor),
            200,
            _DISKLESS,
        ),
        Mutant("3.6 no clock floor", _node(candidacy_kind=NoClockFloor), 100, _DISKLESS),
        Mutant(
            "P5 no clock floor where states are stored",
            _node(candidacy_kind=NoClockFloor),
            600,
            _focus(durable=True, lost_disks=True, change_members=False, wild_clocks=False),
        ),
        Mutant("3.5 no wait for the clocks' skew", NoSkewWait, 1000, _skewed),
        Mutant(
            "3.6 a vote is answered before it is stored",
            _node(storage_kind=AnswersBeforeItWrites, candidacy_kind=NoClockFloor),
            1500,
            _focus(durable=True, lost_disks=False, change_members=False, wild_clocks=False),
        ),
        # --- wrong wall clocks ---
        Mutant("P5 any term is believed", _node(acceptor_kind=BelievesAnyTerm), 100, _WILD),
        Mutant(
            "P5 successors of far terms are refused",
            _node(
                acceptor_kind=RefusesSuccessorsOfFarTerms, candidacy_kind=NeverLooksForEstablished
            ),
            300,
            _WILD,
        ),
        Mutant(
            "P5 far terms never come to be established",
            _node(candidacy_kind=NeverLooksForEstablished),
            1000,
            _WILD,
        ),
        # --- who counts ---
        Mutant("P6 half of the members are a majority", _node(quorum_kind=SmallMajority), 100),
        Mutant("P1 a change without a joint stage", ChangesAtOnce, 1000, _CHANGING),
        Mutant(
            "P1 in the joint stage the new list decides",
            _node(quorum_kind=OneListIsEnough),
            2000,
            _CHANGING,
        ),
        Mutant(
            "P1 the joint stage ends at once", _node(change_kind=CompletesAtOnce), 3000, _CHANGING
        ),
    )
}


def hunt(mutant: Mutant, limit: int) -> tuple[int, str] | None:
    """How many seeds it takes until one catches the mutant, and what it says; None: too many."""
    for seed in range(limit):
        try:
            simulate(mutant.focus(draw(seed)), mutant.node)
        except Violation as violation:
            return seed + 1, str(violation)
    return None


def verdict(rule: str) -> str:
    """A line of the table."""
    mutant = MUTANTS[rule]
    caught = hunt(mutant, 100 if mutant.instead else mutant.within)
    if mutant.instead and caught is None:
        told = f"redundant: {mutant.instead}"
    elif caught is None:
        told = f"NOT CAUGHT within {mutant.within} seeds"
    else:
        told = f"{caught[0]:5} seeds: {caught[1].partition(': ')[2]}"
    return f"{rule:70} {told}"


def main() -> None:
    """The table, on all cores."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    rules = [rule for rule in MUTANTS if word in rule]
    with multiprocessing.Pool() as pool:
        for line in pool.imap(verdict, rules):
            print(line, flush=True)


if __name__ == "__main__":
    main()
