"""By what each rule of the core is known to work: take it out, and something is caught.

    python -m tests.quorum_mutant_table [WORD ...]   # only those named so

prints for each mutant how many schedules, from seed 0 on, it takes until one
catches it, or the directed test that does. A rule that nothing catches would be
a rule that nobody knows to work, or one that another one makes redundant: then
the reason is told, and the pair of them is a mutant too.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leadership.backends._quorum_lease import QuorumLease

from .quorum_mutants import (
    AnswersBeforeItWrites,
    AppliesToUnknownSets,
    AsksNobodyBefore,
    BeginsAlone,
    BeginsUndecided,
    BeginsWithAMajority,
    BeginsWithAState,
    BeginsWithOldClocks,
    BelievesAnyTerm,
    BelievesTheForgetful,
    CampaignsTwiceInATerm,
    CampaignsUnwell,
    CarriesNoTerms,
    ChangesAtOnce,
    CompletesAtOnce,
    CountsFromAnswer,
    CountsLateVotes,
    CountsOwnTtl,
    CountsRenewalsFromAnswer,
    DecidesOnItsWayToTheNextStage,
    DeposedByHigherTerms,
    ForgetsEarlierCeilings,
    ForgetsThatItTookPart,
    GrowsDespiteRefusal,
    HearsFormerRuns,
    IgnoresPromises,
    KeepsLowTermsOfKnownKeys,
    KeepsReleasedTermsOpen,
    LeadsOnAfterLapse,
    LeadsTooLate,
    LeasesDespitePromise,
    LeasesInOldTerms,
    LeasesReplayed,
    LeasesToWhomItDidNotVoteFor,
    LegacyMembersDoNotCount,
    MutantNode,
    NeverLooksForEstablished,
    NoClockFloor,
    NoDrift,
    NoListIsRetired,
    NoPause,
    NoSilence,
    NoSkewWait,
    OldTerms,
    OneListIsEnough,
    PreVotesRaiseTerms,
    RecoversWithoutMemory,
    RefusesSuccessorsOfFarTerms,
    ReleasesAnybody,
    ReleasesOldTerms,
    RenewsLapsed,
    ResignsAndRenews,
    SilenceOfPromisesOnly,
    SilenceOfVotesOnly,
    SilentWithoutStateOnly,
    SmallMajority,
    StoresNoCarriedTerms,
    TellsOfMembersWhileRecovering,
    VotesDespitePromise,
    VotesInOldTerms,
    VotesTwice,
    VotesTwiceAndLeasesToAnybody,
    WeighsLeases,
    WeighsRecoveredTerms,
)
from .simulation import Plan, Violation, draw
from .simulation_faults import simulate


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
        directed: the test that fails with it, where no seed is needed.
        redundant: why nothing breaks without it alone.
        seed: the first that catches it.
    """

    rule: str
    node: type[QuorumLease]
    within: int = 100
    focus: Callable[[Plan], Plan] = lambda plan: plan
    directed: str = ""
    redundant: str = ""
    seed: int | None = None


def _focus(**changes: Any) -> Callable[[Plan], Plan]:
    timing = changes.pop("timing", {})

    def focus(plan: Plan) -> Plan:
        return dataclasses.replace(
            plan, **changes, timing=dataclasses.replace(plan.timing, **timing)
        )

    return focus


_DISKLESS = _focus(durable=False, wild_clocks=False, change_members=False, lost_disks=False)
_BEGINNING = _focus(
    durable=False,
    wild_clocks=False,
    change_members=False,
    lost_disks=False,
    bootstrap=True,
    some_without_bootstrap=False,
    timing={"wall_clock_skew": 0.0},
)
_WILD = _focus(wild_clocks=True, change_members=False, lost_disks=False)
_CHANGING = _focus(
    durable=True, change_members=True, wild_clocks=False, lost_disks=False, faults_per_second=1.5
)


def _skewed(plan: Plan) -> Plan:
    # The machines' wall clocks are drawn by the skew that the plan tells, which
    # the mutant's nodes then do not wait for.
    return dataclasses.replace(
        _DISKLESS(plan),
        timing=dataclasses.replace(plan.timing, wall_clock_skew=8.0),
        faults_until=30.0,
    )


def _skewed_beginning(plan: Plan) -> Plan:
    return dataclasses.replace(_skewed(plan), bootstrap=True, some_without_bootstrap=False)


MUTANTS: dict[str, Mutant] = {
    mutant.rule: mutant
    for mutant in (
        # --- promises and votes ---
        Mutant(
            "A2+A3 promises bind neither votes nor leases",
            _node(acceptor_kind=IgnoresPromises),
            seed=0,
        ),
        Mutant("A2 promises do not bind votes", _node(acceptor_kind=VotesDespitePromise), seed=1),
        Mutant(
            "A3 promises do not bind leases",
            _node(acceptor_kind=LeasesDespitePromise),
            redundant="the vote checked the promise before, and nobody leads without votes",
        ),
        Mutant(
            "A2 votes in terms below the highest",
            _node(acceptor_kind=VotesInOldTerms),
            directed="one_vote_per_term",
        ),
        Mutant(
            "A2+A3 leases in terms below the highest too",
            _node(acceptor_kind=OldTerms),
            directed="one_vote_per_term",
        ),
        Mutant(
            "A3 leases in terms below the highest",
            _node(acceptor_kind=LeasesInOldTerms),
            directed="one_vote_per_term",
        ),
        Mutant(
            "A2+A3 two votes, and leases to whom it did not vote for",
            _node(acceptor_kind=VotesTwiceAndLeasesToAnybody),
            directed="one_vote_per_term",
        ),
        Mutant(
            "A2 two votes in one term",
            _node(acceptor_kind=VotesTwice),
            directed="one_vote_per_term",
        ),
        Mutant(
            "A3 leases to whom it did not vote for",
            _node(acceptor_kind=LeasesToWhomItDidNotVoteFor),
            redundant="only who has a majority of the term's votes asks for a lease in it",
        ),
        Mutant(
            "A4 a release clears another's promise",
            _node(acceptor_kind=ReleasesAnybody),
            600,
            seed=0,
        ),
        Mutant(
            "A4 a release clears a later promise of the same owner",
            _node(acceptor_kind=ReleasesOldTerms),
            directed="a_release_clears_exactly_its_own_promise",
        ),
        Mutant(
            "A4 two campaigns in one term, the first of which is released late",
            _node(acceptor_kind=CampaignsTwiceInATerm),
            directed="a_late_release_of_a_failed_campaign_ends_no_later_term",
        ),
        Mutant(
            "A1 a pre-vote raises the term",
            _node(acceptor_kind=PreVotesRaiseTerms),
            directed="a_node_that_is_cut_off_raises_no_term_and_disturbs_nobody_when_it_returns",
        ),
        Mutant(
            "A3 repeated requests extend a promise",
            _node(acceptor_kind=LeasesReplayed),
            directed="a_repeated_or_overtaken_request_extends_no_promise",
        ),
        Mutant(
            "P3 a released term stays open",
            _node(acceptor_kind=KeepsReleasedTermsOpen),
            directed="a_released_term_is_closed_also_where_it_had_no_promise",
        ),
        # --- candidates ---
        Mutant(
            "C1 nobody is asked before votes are",
            _node(candidacy_kind=AsksNobodyBefore),
            directed="a_node_that_is_cut_off_raises_no_term_and_disturbs_nobody_when_it_returns",
        ),
        Mutant(
            "C1 no random delay",
            _node(candidacy_kind=NoPause),
            directed="two_who_campaign_in_the_same_moment_come_to_one_leader",
        ),
        Mutant(
            "C1 campaigns in ill health",
            CampaignsUnwell,
            directed="a_node_in_ill_health_does_not_campaign",
        ),
        Mutant(
            "C2 late votes count",
            _node(candidacy_kind=CountsLateVotes),
            directed="a_vote_that_comes_after_the_window_does_not_count",
        ),
        Mutant(
            "C3 leads although the time is over",
            _node(candidacy_kind=LeadsTooLate),
            directed="nobody_leads_whose_time_is_over_when_the_votes_come",
        ),
        Mutant(
            "P2 counts the ttl that was asked for, not what was promised",
            _node(candidacy_kind=CountsOwnTtl),
            directed="the_term_is_valid_for_the_shortest_promise_that_it_counts",
        ),
        Mutant(
            "C5+P7 one refusal deposes a leader",
            _node(holdings_kind=DeposedByHigherTerms),
            directed="a_higher_term_deposes_nobody_whom_a_majority_supports",
        ),
        # --- leading ---
        Mutant(
            "C3 the lease is counted from the answer",
            _node(candidacy_kind=CountsFromAnswer, holdings_kind=CountsRenewalsFromAnswer),
            directed="a_term_is_counted_from_the_sending_of_the_request",
        ),
        Mutant("C4 a lapsed leader goes on", _node(candidacy_kind=LeadsOnAfterLapse), 100, seed=3),
        Mutant(
            "C4 a grant after the lapse counts",
            _node(candidacy_kind=LeadsOnAfterLapse, holdings_kind=RenewsLapsed),
            100,
            seed=3,
        ),
        Mutant(
            "P3 who resigned counts grants on their way",
            _node(candidacy_kind=ResignsAndRenews),
            100,
            seed=3,
        ),
        Mutant(
            "P8 keys that were refused count as granted",
            _node(holdings_kind=GrowsDespiteRefusal),
            directed="a_key_that_is_not_granted_is_named_and_its_term_lapses_alone",
        ),
        Mutant(
            "P8 changes are applied to an unknown set",
            _node(granting_kind=AppliesToUnknownSets),
            600,
            seed=61,
        ),
        Mutant(
            "3.4 drift is ignored",
            _node(timing_kind=NoDrift),
            directed="the_leader_believes_for_less_than_the_slowest_promise_lasts",
        ),
        # --- restart ---
        Mutant(
            "3.5 no silence after a restart",
            _node(timing_kind=NoSilence),
            directed="an_acceptor_that_forgot_its_promise_helps_no_second_leader_up",
        ),
        Mutant(
            "P4 no silence with a stored state",
            SilentWithoutStateOnly,
            directed="an_acceptor_that_forgot_its_promise_helps_no_second_leader_up",
        ),
        Mutant(
            "3.5 silence for the vote window alone",
            _node(timing_kind=SilenceOfVotesOnly),
            directed="an_acceptor_that_forgot_its_promise_helps_no_second_leader_up",
        ),
        Mutant(
            "3.5 silence for the promises alone, without the vote window",
            _node(timing_kind=SilenceOfPromisesOnly),
            directed="a_restarted_node_is_silent_for_as_long_as_its_promises_may_last",
        ),
        Mutant(
            "P2 silence for the present ceiling, not the stored one",
            _node(timing_kind=ForgetsEarlierCeilings),
            directed="a_lowered_ceiling_shortens_no_silence",
        ),
        Mutant(
            "3.3 requests to an earlier run are obeyed",
            _node(granting_kind=HearsFormerRuns),
            directed="a_recording_of_what_an_earlier_run_was_asked_binds_nobody",
        ),
        Mutant(
            "3.5+3.6 neither recovery read nor clock floor",
            _node(recovering_kind=RecoversWithoutMemory, candidacy_kind=NoClockFloor),
            100,
            _DISKLESS,
            seed=0,
        ),
        Mutant(
            "3.5 no recovery read",
            _node(recovering_kind=RecoversWithoutMemory),
            redundant="the clock floor alone keeps tokens rising while clocks are right",
        ),
        Mutant(
            "P6+3.6 memory of nodes that recover themselves, no clock floor",
            _node(recovering_kind=BelievesTheForgetful, candidacy_kind=NoClockFloor),
            200,
            _DISKLESS,
            seed=22,
        ),
        Mutant("3.6 no clock floor", _node(candidacy_kind=NoClockFloor), 100, _DISKLESS, seed=0),
        Mutant(
            "P5 no clock floor where states are stored",
            _node(candidacy_kind=NoClockFloor),
            600,
            _focus(durable=True, lost_disks=True, change_members=False, wild_clocks=False),
            seed=231,
        ),
        # --- starting together ---
        Mutant(
            "bootstrap: whatever the others say",
            _node(recovering_kind=BeginsAlone),
            200,
            _BEGINNING,
            seed=44,
        ),
        Mutant(
            "bootstrap: a majority is enough",
            _node(recovering_kind=BeginsWithAMajority),
            200,
            _BEGINNING,
            seed=7,
        ),
        Mutant(
            "bootstrap: a node that takes part says that it began later",
            _node(granting_kind=ForgetsThatItTookPart),
            200,
            _BEGINNING,
            seed=62,
        ),
        Mutant(
            "bootstrap: no wait for the clocks' skew",
            _node(recovering_kind=BeginsWithOldClocks),
            1000,
            _skewed_beginning,
            seed=7,
        ),
        Mutant(
            "bootstrap: with a stored state, too",
            BeginsWithAState,
            directed="a_node_that_stored_a_state_is_silent_for_it_may_have_promised_"
            "under_another_list",
        ),
        Mutant("3.5 no wait for the clocks' skew", NoSkewWait, 1000, _skewed, seed=85),
        Mutant(
            "3.6 a vote is answered before it is stored",
            _node(storage_kind=AnswersBeforeItWrites),
            directed="a_node_that_cannot_store_refuses_to_vote",
        ),
        Mutant(
            "3.5 the floor that is read back is for unknown keys alone",
            _node(acceptor_kind=KeepsLowTermsOfKnownKeys),
            directed="the_floor_that_another_tells_holds_for_each_key_that_it_does_not_name",
        ),
        # --- wrong wall clocks ---
        Mutant("P5 any term is believed", _node(acceptor_kind=BelievesAnyTerm), 100, _WILD, seed=0),
        Mutant(
            "P5 successors of far terms are refused",
            _node(
                acceptor_kind=RefusesSuccessorsOfFarTerms, candidacy_kind=NeverLooksForEstablished
            ),
            300,
            _WILD,
            seed=3,
        ),
        Mutant(
            "P5 far terms never come to be established",
            _node(candidacy_kind=NeverLooksForEstablished),
            1000,
            _WILD,
            seed=45,
        ),
        Mutant(
            "P5 leases are weighed like votes",
            _node(acceptor_kind=WeighsLeases),
            directed="a_term_that_a_majority_voted_for_is_supported_by_all_however_far_ahead",
        ),
        Mutant(
            "P5 terms read back are weighed",
            _node(recovering_kind=WeighsRecoveredTerms),
            directed="a_restarted_node_takes_over_terms_however_far_ahead",
        ),
        # --- who counts ---
        Mutant(
            "P6 legacy members do not count in the size",
            LegacyMembersDoNotCount,
            directed="one_node_among_legacy_members_is_no_majority",
        ),
        Mutant("P6 half of the members are a majority", _node(quorum_kind=SmallMajority), seed=0),
        Mutant(
            "P1 a change without a joint stage",
            _node(membership_kind=ChangesAtOnce),
            1000,
            _CHANGING,
            seed=0,
        ),
        Mutant(
            "P1 in the joint stage the new list decides",
            _node(quorum_kind=OneListIsEnough),
            directed="who_led_under_the_old_list_is_over_before_the_new_list_leads",
        ),
        Mutant(
            "P1 the joint stage ends at once",
            _node(change_kind=CompletesAtOnce),
            directed="who_led_under_the_old_list_is_over_before_the_new_list_leads",
        ),
        Mutant(
            "P1 a list begins without the terms of the one before",
            _node(membership_kind=CarriesNoTerms),
            directed="a_new_list_begins_with_the_terms_of_the_old_one",
        ),
        Mutant(
            "P1 the carried terms are not stored",
            _node(storage_kind=StoresNoCarriedTerms),
            directed="carried_terms_survive_a_restart_of_all_new_members",
        ),
        Mutant(
            "P1 who recovers counts among those who carried terms",
            _node(membership_kind=TellsOfMembersWhileRecovering),
            directed="who_is_recovering_does_not_count_among_those_who_tell_their_terms",
        ),
        Mutant(
            "P1 a change begins undecided",
            _node(membership_kind=BeginsUndecided),
            directed="two_changes_on_two_sides_of_a_cut_come_to_one_list",
        ),
        Mutant(
            "P1 decides on its way to the next stage",
            _node(membership_kind=DecidesOnItsWayToTheNextStage),
            directed="what_was_accepted_is_told_also_when_the_disk_fails_at_the_next_stage",
        ),
        Mutant(
            "P1 removed ids come back",
            _node(membership_kind=NoListIsRetired),
            directed="a_member_is_added_and_removed_while_a_leader_leads",
        ),
    )
}


def is_caught(mutant: Mutant, seed: int) -> str:
    """What the schedule of this seed says of it, or ""."""
    try:
        simulate(mutant.focus(draw(seed)), mutant.node)
    except Violation as violation:
        return str(violation).partition(": ")[2]
    return ""


def verdict(rule: str) -> str:
    """A line of the table."""
    mutant = MUTANTS[rule]
    if mutant.directed:
        return f"{rule:62} directed: {mutant.directed}"
    limit = 100 if mutant.redundant else mutant.within
    for seed in range(limit):
        told = is_caught(mutant, seed)
        if told:
            return f"{rule:62} {seed + 1:5} seeds: {told}"
    if mutant.redundant:
        return f"{rule:62} redundant: {mutant.redundant}"
    return f"{rule:62} NOT CAUGHT within {limit} seeds"


def main() -> None:
    """The table, on all cores."""
    words = sys.argv[1:] or [""]
    rules = [rule for rule in MUTANTS if any(word in rule for word in words)]
    with multiprocessing.Pool() as pool:
        for line in pool.imap_unordered(verdict, rules):
            print(line, flush=True)


if __name__ == "__main__":
    main()
