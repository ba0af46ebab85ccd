"""The core with one rule taken out, or two: `quorum_mutant_table` says by what each is caught."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from msgspec.structs import replace

from leadership.backends._quorum_acceptor import Acceptor, Record, Verdict
from leadership.backends._quorum_candidacy import Candidacy, Contender
from leadership.backends._quorum_change import Change
from leadership.backends._quorum_effects import Effect
from leadership.backends._quorum_granting import Granting
from leadership.backends._quorum_holdings import Holding, Holdings, KeySet, _Renewal
from leadership.backends._quorum_lease import QuorumLease
from leadership.backends._quorum_mail import Mail
from leadership.backends._quorum_members import Quorum, final_stage, joint_stage, majority_of
from leadership.backends._quorum_membership import Membership
from leadership.backends._quorum_messages import (
    Heartbeat,
    Members,
    MembersAnswer,
    MembersNotice,
    Message,
    Owner,
    Recovery,
    Ticket,
    VoteAnswer,
)
from leadership.backends._quorum_recovery import Recovering
from leadership.backends._quorum_storage import Act, Storage
from leadership.backends._quorum_timing import Timing


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
    granting_kind: ClassVar[type[Granting] | None] = None
    membership_kind: ClassVar[type[Membership] | None] = None
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
        become(self._membership, self.membership_kind)
        become(self._granting, self.granting_kind)
        # They were bound before it became another kind.
        self._handlers.update(self._membership.handlers)
        self._handlers.update(self._granting.handlers)
        if self._membership._change is not None:
            become(self._membership._change, self.change_kind)

    def campaign(self, key: str, *arguments: Any, **options: Any) -> list[Effect]:
        if self.candidacy_kind is not None and key not in self._candidacies:
            self._candidacies[key] = self.candidacy_kind(key, self._commons)
        return super().campaign(key, *arguments, **options)

    def _enter_stage(self, now: float) -> None:
        become(self._mail.quorum, self.quorum_kind)
        if self._membership._change is not None:
            become(self._membership._change, self.change_kind)
        super()._enter_stage(now)


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


class PreVotesRaiseTerms(Acceptor):
    def pre_vote(
        self, key: str, owner: Owner, term: int, now: float, *, established: bool = False
    ) -> Verdict:
        verdict = super().pre_vote(key, owner, term, now, established=established)
        record = self.records[key]
        record.max_term = max(record.max_term, term)
        return verdict


class KeepsLowTermsOfKnownKeys(Acceptor):
    def merge(self, floor: int, terms: Mapping[str, int], now: float) -> None:
        super().merge(floor, {**dict.fromkeys(self.records, 0), **terms}, now)


# --- candidates and leaders ---


class AsksNobodyBefore(Candidacy):
    """Goes for votes without asking whether they would be granted."""

    def _begin(self, now: float) -> None:
        super()._begin(now)
        if self.phase.name == "ASKING":
            self._ask_votes(now, None)


class LeadsTooLate(Candidacy):
    def _lead(self, ballot: Any, now: float) -> None:
        super()._lead(ballot, ballot.sent_at)


class CountsOwnTtl(Candidacy):
    """Believes in what it asked for, whatever was promised."""

    def _lead(self, ballot: Any, now: float) -> None:
        ballot.granted = dict.fromkeys(ballot.granted, self._active().ttl)
        super()._lead(ballot, now)


class NoClockFloor(Candidacy):
    def _next_term(self) -> int:
        return self._known_term() + 1


class NoPause(Candidacy):
    def _delay(self, widened: int = 1) -> float:
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

    _lapsed_at = -math.inf

    @property
    def wake_at(self) -> float:
        return max(super().wake_at, self._lapsed_at + 0.05)

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
        super().answered(replace(answer, refused=()), now, lapse)


class DeposedByHigherTerms(Holdings):
    """Gives up a term as soon as one acceptor refuses it."""

    def answered(self, answer: Any, now: float, lapse: Callable[[str], None]) -> None:
        for key in answer.refused:
            if key in self.held:
                lapse(key)
        super().answered(answer, now, lapse)


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


class AppliesToUnknownSets(Granting):
    def _on_heartbeat(self, message: Heartbeat, now: float) -> None:
        header = message.header
        keys = self._key_sets.get(header.sender)
        if keys is None or keys.incarnation != header.incarnation:
            self._key_sets[header.sender] = BelievesKeySets(header.incarnation, self._keys_limit)
        super()._on_heartbeat(message, now)


# --- restarts, clocks, numbers ---


class NoSilence(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return 0.0


class SilenceOfVotesOnly(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return self.outlasting(self.vote_window)


class SilenceOfPromisesOnly(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return self.lease_ceiling


class ForgetsEarlierCeilings(Timing):
    def silence(self, stored_ceiling: float | None) -> float:
        return super().silence(None)


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


class BeginsAlone(Recovering):
    def _look_whether_all_begin(self, now: float) -> None:
        self._began_after_us.update(self._mail.quorum.everyone)
        super()._look_whether_all_begin(now)


class BeginsWithAMajority(Recovering):
    def _look_whether_all_begin(self, now: float) -> None:
        if self._mail.quorum.is_quorum({self._mail.id, *self._began_after_us}):
            self._began_after_us.update(self._mail.quorum.everyone)
        super()._look_whether_all_begin(now)


class BeginsWithOldClocks(Recovering):
    def _look_whether_all_begin(self, now: float) -> None:
        super()._look_whether_all_begin(now)
        if self._begin_at < math.inf:
            self._begin_at = min(self._begin_at, now)


class ForgetsThatItTookPart(Granting):
    def _on_recovery(self, message: Recovery, now: float) -> None:
        self._mail.peer(message.header.sender).run_before = message.header.incarnation
        super()._on_recovery(message, now)


class BeginsWithAState(MutantNode):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self._recovering is not None and arguments["bootstrap"]:
            self._recovering._bootstrap = True
            self._recovering.next_at = arguments["now"]


class NoSkewWait(MutantNode):
    """Does not wait for as long as wall clocks may differ."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self._recovering is not None:
            self._recovering._forgetting_until = self._recovering.silent_until


class SmallMajority(Quorum):
    def is_quorum(self, nodes: Collection[str]) -> bool:
        members = self.stage.members
        return sum(node in members for node in nodes) >= max(1, len(members) // 2)


class HearsFormerRuns(Granting):
    """Obeys what was meant for an earlier run of it."""

    def _refusal(self, message: Message) -> str:
        refusal = super()._refusal(message)
        return "" if "another run" in refusal else refusal


class LegacyMembersDoNotCount(MutantNode):
    """The size of the majority is that of those who may vote."""

    def tick(self, now: float) -> list[Effect]:
        quorum = self._mail.quorum
        quorum._majorities = [majority_of(members - self.legacy) for members in quorum._lists]
        return super().tick(now)


class CampaignsUnwell(MutantNode):
    """Is not kept from campaigning by its own ill health."""

    def _update_campaigning(self) -> None:
        self._healthy = True
        super()._update_campaigning()


# --- members ---


class OneListIsEnough(Quorum):
    """In the joint stage, a majority of the new list decides."""

    def is_quorum(self, nodes: Collection[str]) -> bool:
        return self._majorities[-1](nodes)


class ChangesAtOnce(Membership):
    """From the old list to the new, without the stage in between."""

    def change(self, members: Any, now: float) -> None:
        self._go_to(final_stage(joint_stage(self.stage, members)), 0, {}, now)


class CompletesAtOnce(Change):
    """Does not wait for what was promised under the old list."""

    def answered(self, answer: MembersAnswer, now: float) -> None:
        super().answered(answer, now)
        if self._complete_at < math.inf:
            self._complete_at = self.next_at = now


class CarriesNoTerms(Membership):
    """The new list begins without what the old one knew."""

    def _go_to(self, stage: Members, floor: int, terms: dict[str, int], now: float) -> None:
        super()._go_to(stage, 0, {}, now)


class StoresNoCarriedTerms(Storage):
    """A member list is stored without the terms that it began with."""

    def keep_stage(self, stage: Members, term: int, then: Act, now: float) -> None:
        super().keep_stage(stage, 0, then, now)


class TellsOfMembersWhileRecovering(Membership):
    """Counts among those who carry terms into the next list, before it knows them again."""

    def _on_notice(self, message: MembersNotice, now: float) -> None:
        is_ready, self._is_ready = self._is_ready, lambda: True
        super()._on_notice(message, now)
        self._is_ready = is_ready


class BeginsUndecided(Membership):
    """Enters the joint stage without a decision of the old members."""

    def change(self, members: Any, now: float) -> None:
        self._go_to(joint_stage(self.stage, members), 0, {}, now)


class NoListIsRetired(Membership):
    """Forgets who was removed."""

    def _act_under(self, stage: Members, *arguments: Any) -> None:
        super()._act_under(replace(stage, retired=()), *arguments)


class CampaignsTwiceInATerm(Acceptor):
    """Does not remember the campaigns of its own that failed."""

    def note_campaign(self, key: str, term: int, now: float) -> None:
        pass


class DecidesOnItsWayToTheNextStage(Membership):
    """Goes on deciding when what it accepted is no longer kept."""

    def _decides(self, message: Message) -> bool:
        return not self.stage.joining
