"""What the guarantees rest on: each rule of the code, with the test that fails without it.

`broken_rules` breaks them one by one; `docs/guarantees.md` shows the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One line or two of the code that a guarantee rests on, and how it is broken.

    Attributes:
        guarantee: its number.
        broken: what the code does where the rule is broken.
        file: that has the rule.
        right: the text of the rule, once in its file.
        wrong: what stands there instead.
        test: fails then, `file::test`.
    """

    guarantee: int
    broken: str
    file: str
    right: str
    wrong: str
    test: str


RULES: Sequence[Rule] = (
    # --- 1. the deadline ---
    Rule(
        1,
        "a lease is counted from the answer",
        "leadership/lease.py",
        "self.extend(sent_at + seconds",
        "self.extend(self._clock.now() + seconds",
        "test_lease.py::TestDeadline::test_it_is_counted_from_the_send_and_not_from_the_answer",
    ),
    Rule(
        1,
        "drift is not taken off",
        "leadership/lease.py",
        "seconds * (1 - self._drift)",
        "seconds",
        "test_lease.py::TestDeadline::test_drift_and_guard_are_taken_off",
    ),
    Rule(
        1,
        "a term is valid until somebody ends it, whatever the clock says",
        "leadership/term.py",
        "and self._now() < until\n",
        "and until > 0\n",
        "test_candidate.py::TestSafety::test_the_deadline_holds_though_no_other_thread_could_run",
    ),
    Rule(
        1,
        "a renewal that is stored late brings a term back",
        "leadership/term.py",
        "self._standing = False\n            self.candidacy",
        "self.candidacy",
        "test_candidate.py::TestSafety::test_who_was_told_false_is_never_told_true_again",
    ),
    Rule(
        1,
        "a renewal after the lapse makes the term valid, until somebody is told of its end",
        "leadership/term.py",
        "generation == self._generation",
        "generation >= self._generation",
        "test_candidate.py::TestSafety::"
        "test_a_renewal_after_the_lapse_is_no_news_to_the_term_before_it",
    ),
    Rule(
        1,
        "a forked child leads on",
        "leadership/term.py",
        "and _this_process() == self._pid",
        "and self._pid",
        "test_engine.py::test_a_forked_child_does_not_lead_and_says_what_to_do",
    ),
    Rule(
        1,
        "the clock stands still in suspend",
        "leadership/clock.py",
        "_CLOCK_ID: int | None = time.CLOCK_BOOTTIME",
        "_CLOCK_ID: int | None = time.CLOCK_MONOTONIC",
        "test_clock.py::TestSystemClock::test_it_counts_suspend_where_the_platform_can",
    ),
    Rule(
        1,
        "etcd: a late answer is taken for that to a later keep-alive",
        "backends/_etcd_session.py",
        "        except TimeoutError:\n            self._drop_stream()\n",
        "        except TimeoutError:\n",
        "test_etcd_requests.py::TestKeepAlives::"
        "test_an_answer_that_comes_after_its_time_is_not_taken_for_that_to_a_later_request",
    ),
    Rule(
        1,
        "etcd: a renewal is counted from its answer",
        "backends/_etcd_session.py",
        "self.lease.confirm(sent_at, seconds)\n",
        "self.lease.confirm(self._clock.now(), seconds)\n",
        "test_etcd_election.py::test_the_lease_counts_from_the_send_however_late_the_answer_comes",
    ),
    Rule(
        1,
        "Consul: a renewal is counted from its answer",
        "backends/_consul_session.py",
        "self._confirm(sent_at, granted)",
        "self._confirm(self._clock.now(), granted)",
        "test_consul_outages.py::TestSilence::"
        "test_the_lease_counts_from_the_send_however_late_the_answer_comes",
    ),
    Rule(
        1,
        "ZooKeeper: a renewal is counted from its answer",
        "backends/_zookeeper_session.py",
        "self.lease.confirm(min(sent_at, latest), half)",
        "self.lease.confirm(self._clock.now(), half)",
        "test_zookeeper_outages.py::TestOneServer::"
        "test_the_lease_counts_from_the_send_however_late_the_answer_comes",
    ),
    Rule(
        1,
        "ZooKeeper: the whole session timeout is trusted in an ensemble",
        "backends/_zookeeper_session.py",
        "half = self.ttl / 2",
        "half = self.ttl",
        "test_zookeeper_sessions.py::TestSessions::"
        "test_half_of_the_timeout_is_trusted_and_all_of_it_only_on_request",
    ),
    Rule(
        1,
        "ZooKeeper: a silence before the write costs nothing",
        "backends/_zookeeper_session.py",
        "self.lease.confirm(min(sent_at, latest), half)",
        "self.lease.confirm(sent_at, half)",
        "test_zookeeper_contender.py::TestTheSession::"
        "test_after_a_silence_the_ensembles_leader_may_only_have_heard_of_us_before_it",
    ),
    Rule(
        1,
        "peers: a term is counted from the answers",
        "backends/_quorum_candidacy.py",
        "valid_until = ballot.sent_at + ",
        "valid_until = now + ",
        "test_quorum_lease.py::test_a_term_is_counted_from_the_sending_of_the_request",
    ),
    Rule(
        1,
        "peers: a leader believes in the ttl that it asked for, not in what was promised",
        "backends/_quorum_candidacy.py",
        "validity(min(ballot.granted.values()))",
        "validity(contender.ttl)",
        "test_quorum_lease.py::test_the_term_is_valid_for_the_shortest_promise_that_it_counts",
    ),
    # --- 2. the token ---
    Rule(
        2,
        "etcd: the token is not the revision of the entry's creation",
        "backends/_etcd_contender.py",
        "return claim(self.revision, session.lease)",
        "return claim(1, session.lease)",
        "test_conformance.py::TestEtcd::"
        "test_one_leads_and_resigning_hands_over_with_a_greater_token",
    ),
    Rule(
        2,
        "Consul: the token is the count of acquisitions, which a deletion sets back",
        "backends/_consul_requests.py",
        "return self.create_index if self.lock_index <= 1 else self.modify_index",
        "return self.lock_index",
        "test_conformance.py::TestConsul::"
        "test_a_deleted_entry_is_told_and_the_next_term_has_a_greater_token",
    ),
    Rule(
        2,
        "ZooKeeper: the token is the version of the node",
        "backends/_zookeeper_contender.py",
        "self._token = stat.czxid",
        "self._token = stat.version + 1",
        "test_zookeeper_election.py::TestTwoProcesses::"
        "test_after_resign_the_other_leads_at_once_and_the_token_rises",
    ),
    Rule(
        2,
        "elections of keys: the token is the index of the last write",
        "leadership/contention.py",
        "return pair.index if envelope.token is None else envelope.token",
        "return pair.index",
        "test_contention.py::TestObserving::"
        "test_a_late_observer_is_told_the_token_of_the_term_and_not_of_its_renewal",
    ),
    Rule(
        2,
        "peers: a node votes in a term that is not higher",
        "backends/_quorum_acceptor.py",
        "        if term <= record.max_term:\n            return OLD_TERM\n",
        "",
        "test_quorum_lease.py::test_one_vote_per_term",
    ),
    # --- 3. loss is told, and work ends first ---
    Rule(
        3,
        "the loss is told at the deadline, with no grace",
        "leadership/lease.py",
        "now >= until - watcher.grace",
        "now >= until",
        "test_lease.py::TestWatchers::test_it_is_told_once_at_the_deadline_less_its_grace",
    ),
    Rule(
        3,
        "an end that the store tells is told at the deadline",
        "leadership/loss.py",
        "            self._end(self.term, reason)\n",
        "            pass\n",
        "test_etcd_election.py::TestOperators::test_the_leaders_lease_is_revoked",
    ),
    Rule(
        3,
        "the key is released while the work goes on",
        "leadership/election.py",
        "                await self._join(term)\n",
        "",
        "test_candidate.py::TestRun::test_the_work_is_joined_before_the_key_is_released",
    ),
    Rule(
        3,
        "who gives way leads until it is released",
        "leadership/term.py",
        "self._reason = reason\n        self._standing = False",
        "self._reason = reason",
        "test_candidate.py::TestSafety::test_no_longer_leader_before_the_release_is_sent",
    ),
    Rule(
        3,
        "the next term begins while the old body still runs",
        "leadership/election.py",
        "                await self._wanted.wait()\n                self._wanted.clear()\n",
        "",
        "test_candidate.py::TestTheLoop::test_the_next_term_waits_until_the_body_has_ended_the_old_one",
    ),
    Rule(
        3,
        "a candidate may run again under a body that outlasted its stop",
        "leadership/election.py",
        "        if self._works.alive:\n            # Stopped or not",
        "        if False:\n            # Stopped or not",
        "test_leaders_code.py::test_after_a_stop_that_the_body_outlasted_it_may_not_run_again",
    ),
    Rule(
        3,
        "work that overruns is joined for ever",
        "leadership/election.py",
        "await self._clock.wait_for(self._works.wait_ended(), term.valid_until)",
        "await self._works.wait_ended()",
        "test_candidate.py::TestRun::"
        "test_work_that_overruns_is_reported_and_keeps_the_key_until_the_deadline",
    ),
    Rule(
        3,
        "a renewal gives more time to work that was told to end",
        "leadership/term.py",
        "return self._claim.valid_until if self._reason is None else self._deadline",
        "return self._claim.valid_until",
        "test_leaders_code.py::test_work_that_is_told_to_end_gets_no_more_time_by_a_renewal",
    ),
    Rule(
        3,
        "a function that stops its own run waits for itself",
        "leadership/work.py",
        "any(work.kind is Kind.FUNCTION for work in own)",
        "False",
        "test_candidate.py::TestRun::test_stop_and_resign_from_inside_only_request",
    ),
    Rule(
        3,
        "the watchdog never looks",
        "leadership/election.py",
        "if now - idle_since >= limit:",
        "if False:",
        "test_candidate.py::TestSafety::test_the_watchdog_resigns_for_code_that_does_not_answer",
    ),
    Rule(
        3,
        "a command that is asked to end has no deadline",
        "leadership/runner.py",
        "return min(until - self._margin, job.stopping_since + self._drain)",
        "return until + 5",
        "test_cli.py::TestRun::test_a_cut_store_kills_a_deaf_command_before_its_deadline",
    ),
    Rule(
        3,
        "the guardian does not look at the clock",
        "leadership/_guardian.py",
        "is_overdue = self._until is not None and self._clock() >= self._until",
        "is_overdue = False",
        "test_guardian_run.py::"
        "test_while_the_runner_stands_still_the_command_ends_before_the_deadline",
    ),
    # --- 4. at most one valid term ---
    Rule(
        4,
        "the key of a dead leader is believed in for longer than it stands",
        "leadership/lease.py",
        "self.extend(sent_at + seconds * (1 - self._drift) - guard)",
        "self.extend(sent_at + seconds * (1 + self._drift) + guard)",
        "test_contention.py::TestWinning::"
        "test_a_dead_leaders_key_is_taken_when_it_lapses_and_not_before",
    ),
    Rule(
        4,
        "a renewal after the lapse brings the old claim back",
        "leadership/lease.py",
        "            generation += 1\n",
        "            pass\n",
        "test_lease.py::TestClaims::"
        "test_a_lapse_voids_older_claims_for_ever_also_when_the_store_renews_after_it",
    ),
    Rule(
        4,
        "etcd: who is not first leads too",
        "backends/_etcd_contender.py",
        "                if view.predecessor is None:\n",
        "                if True:\n",
        "test_etcd_election.py::TestTwoProcesses::test_exactly_one_leads",
    ),
    Rule(
        4,
        "etcd: an entry that was deleted is not told",
        "backends/_etcd_contender.py",
        "if gone and event.kv.mod_revision > self.revision:",
        "if False:",
        "test_etcd_election.py::TestOperators::test_the_leaders_key_is_deleted",
    ),
    Rule(
        4,
        "Consul: a key that was deleted is not told",
        "backends/_consul_contender.py",
        "                            self._tell(_what_became(entry))\n",
        "",
        "test_consul_election.py::TestWhatGoesMissing::test_the_leaders_key_is_deleted",
    ),
    Rule(
        4,
        "ZooKeeper: a node that was deleted is not told",
        "backends/_zookeeper_contender.py",
        "        if self._session is not None and self._name and self._told is None:\n",
        "        if False:\n",
        "test_zookeeper_election.py::TestOperators::"
        "test_a_deleted_entry_is_told_and_a_new_one_leads_on_the_same_session",
    ),
    Rule(
        4,
        "peers: promises bind neither votes nor leases",
        "backends/_quorum_acceptor.py",
        "            and record.promised_to != owner\n            and now < record.promised_until",
        "            and False",
        "test_quorum_lease.py::test_no_vote_and_no_lease_while_a_promise_to_another_lasts",
    ),
    Rule(
        4,
        "peers: a restarted node votes at once",
        "backends/_quorum_timing.py",
        "return ceiling + self.outlasting(self.vote_window)",
        "return 0.0",
        "test_quorum_lease.py::test_an_acceptor_that_forgot_its_promise_helps_no_second_leader_up",
    ),
    Rule(
        4,
        "peers: a leader believes for as long as it asked for",
        "backends/_quorum_timing.py",
        "return promised * self._slowest_share - self.guard",
        "return promised",
        "test_quorum_lease.py::test_the_leader_believes_for_less_than_the_slowest_promise_lasts",
    ),
    # --- 5. no phantom, no zombie ---
    Rule(
        5,
        "etcd: after the wait the entry is not read again",
        "backends/_etcd_contender.py",
        "            if not own.kvs or own.kvs[0].create_revision != self.revision:\n"
        "                self.entry_gone(DELETED)\n"
        "                return _View(None, answer.header.revision)\n",
        "",
        "test_etcd_outages.py::TestEachProofAlone::"
        "test_the_read_after_a_wait_finds_a_deleted_entry",
    ),
    Rule(
        5,
        "etcd: renewals do not read an entry",
        "backends/_etcd_session.py",
        "        await self._prove(limit)\n",
        "",
        "test_etcd_outages.py::TestEachProofAlone::"
        "test_the_read_at_each_renewal_finds_a_deleted_entry",
    ),
    Rule(
        5,
        "etcd: an entry that appears after a lost reply stays",
        "backends/_etcd_contender.py",
        "                self._backend.sweep(session, self.name, removed_at + 1)\n",
        "                pass\n",
        "test_etcd_outages.py::TestLostReplies::"
        "test_an_entry_that_appears_after_we_left_does_not_stay",
    ),
    Rule(
        5,
        "Consul: who saw itself in the key leads by what it reads, whoever holds it",
        "backends/_consul_contender.py",
        "if entry is None or entry.session != session.id or entry.flags != LOCK_FLAGS:",
        "if entry is None:",
        "test_consul_handover.py::TestContenders::"
        "test_one_who_saw_itself_in_the_key_reads_it_before_it_leads",
    ),
    Rule(
        5,
        "Consul: an acquisition that arrives after we left stays",
        "backends/_consul_contender.py",
        "            if self._unsure and session.lease.ended is None:\n",
        "            if False:\n",
        "test_consul_outages.py::TestLostReplies::"
        "test_an_acquisition_that_arrives_after_we_left_does_not_stay",
    ),
    Rule(
        5,
        "Consul: a session that lapsed is led on again once it is renewed",
        "backends/_consul_session.py",
        "        if self._clock.now() > self._kept_until:\n",
        "        if False:\n",
        "test_consul_lapses.py::test_a_session_that_a_server_may_be_about_to_end_is_not_led_on_again",
    ),
    Rule(
        5,
        "ZooKeeper: any node with our name is ours, whatever its session",
        "backends/_zookeeper_contender.py",
        "if stat is None or stat.ephemeralOwner != session.id:",
        "if stat is None:",
        "test_zookeeper_contender.py::TestTheEntry::"
        "test_who_finds_anothers_node_in_place_of_its_entry_enters_anew_behind_it",
    ),
    Rule(
        5,
        "ZooKeeper: who sees itself first leads unproved",
        "backends/_zookeeper_contender.py",
        "(seen,) = await connection.request(ask, NoNodeError, repeatable=True)",
        "seen = True",
        "test_zookeeper_election.py::TestLostReplies::"
        "test_who_sees_itself_first_is_proved_by_a_quorum_before_it_leads",
    ),
    Rule(
        5,
        "elections of keys: each attempt has a nonce of its own",
        "leadership/contention.py",
        "        if self._nonce is None:\n            self._nonce = f",
        "        if True:\n            self._nonce = f",
        "test_contention.py::TestUnknownOutcomes::"
        "test_a_lost_reply_of_the_winning_write_is_found_again_and_renewed",
    ),
    Rule(
        5,
        "two contenders for one key share a session",
        "leadership/session.py",
        "if None not in slot.users and key not in slot.users and not own:",
        "if None not in slot.users and not own:",
        "test_session.py::test_the_kth_contender_for_a_key_uses_the_kth_session",
    ),
    Rule(
        5,
        "peers: a released term stays open",
        "backends/_quorum_acceptor.py",
        "        record.max_term = ticket.term\n        record.voted_for = _NOBODY\n",
        "",
        "test_quorum_lease.py::test_a_released_term_is_closed_also_where_it_had_no_promise",
    ),
    Rule(
        5,
        "peers: what a cancelled leave gave back is led on by the next attempt",
        "backends/peers.py",
        "won, self._won = self._won, None\n",
        "won = self._won\n",
        "test_peers_claims.py::test_what_was_given_back_by_a_cancelled_leave_is_not_led",
    ),
    # --- 6. fair, no herd ---
    Rule(
        6,
        "etcd: all who wait watch the leader",
        "backends/_etcd_contender.py",
        "sort_order=etcdrpc.RangeRequest.DESCEND",
        "sort_order=etcdrpc.RangeRequest.ASCEND",
        "test_etcd_election.py::test_of_two_hundred_who_wait_one_is_woken_when_the_leader_resigns",
    ),
    Rule(
        6,
        "ZooKeeper: all who wait watch the leader",
        "backends/_zookeeper_contender.py",
        "return contenders[position - 1] if position else None",
        "return contenders[0] if position else None",
        "test_zookeeper_sessions.py::TestMany::"
        "test_of_five_hundred_who_wait_one_is_woken_when_the_leader_resigns",
    ),
    Rule(
        6,
        "Consul: all who wait try at once",
        "backends/_consul_contender.py",
        "steps, longest = _STEP * len(self._ahead), _LONGEST_STEPS * session.ttl",
        "steps, longest = 0.0, _LONGEST_STEPS * session.ttl",
        "test_consul_handover.py::test_who_is_further_back_looks_before_it_tries_and_keeps_its_rank",
    ),
    Rule(
        6,
        "elections of keys: who waits tries although somebody leads",
        "leadership/contention.py",
        "                    if envelope is None or envelope.nonce != self._nonce:\n"
        "                        continue\n",
        "                    if envelope is None or envelope.nonce != self._nonce:\n"
        "                        await self._create()\n"
        "                        continue\n",
        "test_contention.py::TestWinning::test_who_waits_writes_nothing",
    ),
    Rule(
        6,
        "elections of keys: who resigned wins straight back",
        "leadership/contention.py",
        "        await self._give_others_a_chance()\n",
        "",
        "test_contention.py::TestManners::test_who_resigned_gives_way_to_who_waits",
    ),
    # --- 7. clear errors ---
    Rule(
        7,
        "a ttl below what the store takes is found out by the store",
        "leadership/checks.py",
        "    if seconds < backend.minimum_ttl:\n",
        "    if False:\n",
        "test_consul_election.py::test_a_ttl_below_what_the_agents_take_is_told",
    ),
    Rule(
        7,
        "a missing capability is found out at work",
        "leadership/candidate.py",
        '        core.need(f"this {self._what}", *needed)\n',
        "",
        "test_candidate.py::TestBadInput::test_a_capability_that_is_missing_is_refused_at_start",
    ),
    Rule(
        7,
        "what the server granted is not told",
        "leadership/renewal.py",
        'self._context.emit(TtlGranted("", self._context.clock.now(), asked, granted))',
        "pass",
        "test_etcd_election.py::TestLeases::"
        "test_a_ttl_that_the_server_raises_is_obeyed_with_a_warning",
    ),
    Rule(
        7,
        "an outage ends a run that has a retry",
        "leadership/retry.py",
        "    if retry is None:\n        return await attempt()\n",
        "    if True:\n        return await attempt()\n",
        "test_etcd_waiting.py::TestWithARetry::test_an_outage_in_which_the_leader_goes_is_ridden_out",
    ),
    Rule(
        7,
        "an outage is ridden out with `retry=None` too",
        "leadership/retry.py",
        "    if retry is None:\n        return await attempt()\n    begun",
        "    retry = retry or DEFAULT_RETRY\n    begun",
        "test_retry.py::TestRidingOut::test_without_a_retry_the_first_failure_is_raised",
    ),
)
