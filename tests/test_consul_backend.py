"""What the Consul backend asks for, and what it makes of strange answers: seen at a relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leadership import Candidate, Store, new_store
from leadership.backends._consul_requests import LOCK_FLAGS, duration_of, seconds_of
from leadership.errors import ConfigurationError, KeyModified, StoreError, StoreUnavailable
from leadership.events import (
    Elected,
    Event,
    LeaseRenewed,
    Released,
    StoreTrouble,
    TtlGranted,
)

from .consul_elections import contender, opened, places, until_waiting, win
from .etcd_elections import CLOCK, told
from .leaks import footprint
from .servers.consul_client import ConsulClient
from .servers.consul_relay import Asked, ConsulRelay, LostReplyError, Told
from .servers.fault_proxy import FaultProxy
from .waiting import async_wait_until, wait_until


@pytest.fixture
def relayed(
    consul: ConsulClient, consul_relay: ConsulRelay, events: list[Event]
) -> Iterator[Store]:
    """A store behind the relay."""
    with new_store(consul.url_of(consul_relay.endpoint), hooks=[events.append]) as store:
        yield store


def writes(relay: ConsulRelay) -> list[Asked]:
    return [asked for asked in relay.asked if asked.writes]


class TestHandingOver:
    def test_who_just_waited_is_handed_the_key_in_one_commit_and_not_twice_in_a_row(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        relayed: Store,
        key: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with new_store(consul.url_of(consul_relay.endpoint)) as other:
            leader = Candidate(relayed, key, "a", ttl=30)
            waiter = Candidate(other, key, "b", ttl=30)
            tokens = [leader.campaign(timeout=10).token]
            for handed in (True, False, True):
                self.until_witnessed(leader)
                waiting = pool.submit(waiter.campaign)
                until_waiting(consul, key)
                self.until_witnessed(leader, 1)
                consul_relay.asked.clear()
                leader.resign()
                tokens.append(waiting.result(10).token)
                release = writes(consul_relay)[0]
                assert release.does("delete", key)
                assert release.does("lock", key) is handed
                assert places(consul, key) == []
                leader, waiter = waiter, leader
            assert tokens == sorted(set(tokens))
            leader.stop()

    def until_witnessed(self, candidate: Candidate, count: int = 0) -> None:
        assert candidate._candidacy is not None
        part: Any = candidate._candidacy._contender
        wait_until(lambda: len(part._attendance._seen) == count, 10, "the leader's notice")

    def test_who_waits_on_shows_that_it_is_alive(
        self,
        consul: ConsulClient,
        consul_relay: ConsulRelay,
        relayed: Store,
        consul_store: Store,
        key: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        with Candidate(consul_store, key, "b", ttl=2).campaign(timeout=10):
            waiting = pool.submit(Candidate(relayed, key, "a", ttl=2).campaign)
            until_waiting(consul, key)
            (place,) = consul.keys(f"{key}.waiting/")
            first = consul.entry(place)["ModifyIndex"]  # type: ignore[index]
            wait_until(
                lambda: consul.entry(place)["ModifyIndex"] > first + 2,  # type: ignore[index]
                10,
                "refreshments",
            )
        waiting.result(10)

    def test_who_was_not_seen_alive_of_late_is_not_handed_the_key(
        self, consul: ConsulClient, consul_store: Store, key: str, pool: ThreadPoolExecutor
    ) -> None:
        sessions = [
            consul.api("PUT", "session/create", {"Behavior": each, "LockDelay": "0s"})["ID"]
            for each in ("release", "delete")
        ]
        leader = Candidate(consul_store, key, "a", ttl=1)
        leader.campaign(timeout=10)
        self.until_witnessed(leader)
        dead = json.dumps({"session": sessions[0], "value": "", "refreshed": 0}).encode()
        consul.put(f"{key}.waiting/{sessions[0]}", dead, acquire=sessions[1])
        self.until_witnessed(leader, 1)
        with new_store(consul.url) as other:
            second = Candidate(other, key, "b", ttl=1)
            waiting = pool.submit(second.campaign)
            until_waiting(consul, key, 2)
            assert leader._candidacy is not None
            part: Any = leader._candidacy._contender
            wait_until(lambda: part._attendance.successor(1 / 3) is None, 10, "its silence")
            leader.stop()
            # It gives the one before it its time, and then goes on.
            assert waiting.result(10).is_valid()
            second.stop()
        for session in sessions:
            consul.destroy_session(session)
        assert consul.keys(key) == []

    def test_who_resigned_leaves_other_clients_the_time_to_try(
        self, consul: ConsulClient, consul_store: Store, key: str, events: list[Event]
    ) -> None:
        session = consul.api("PUT", "session/create", {"LockDelay": "0s"})["ID"]
        candidate = Candidate(consul_store, key, "ours", ttl=10)
        with candidate.run_for_election() as standings:
            assert [next(standings), next(standings)] == [False, True]
            candidate.resign()
            assert [next(standings), next(standings)] == [False, True]
            wait_until(lambda: len(told(events, Elected)) == 2, 10, "the second term")
            released, elected = told(events, Released)[0], told(events, Elected)[1]
            assert 0.4 < elected.at - released.at < 5
            candidate.resign()
            assert consul.put(key, b"theirs", acquire=session, flags=str(LOCK_FLAGS))
            assert next(standings) is False
        consul.destroy_session(session)
        consul.delete(key)


class TestSessions:
    def test_a_ttl_that_the_server_raises_is_obeyed_with_one_warning(
        self, consul_relay: ConsulRelay, relayed: Store, key: str, events: list[Event]
    ) -> None:
        consul_relay.after = raised_ttl
        with Candidate(relayed, key, "a", ttl=2).campaign(timeout=10) as term:
            assert 15 < term.remaining() < 20
            (granted,) = wait_until(lambda: told(events, TtlGranted), 10, "the warning")
            assert (granted.asked, granted.granted) == (2, 20)

    def test_with_strict_ttl_a_raised_one_is_an_error(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        consul_relay.after = raised_ttl
        with new_store(consul.url_of(consul_relay.endpoint), strict_ttl=True) as store:
            with pytest.raises(ConfigurationError, match="ask for 20"):
                Candidate(store, key, "a", ttl=2).campaign(timeout=10)

    def test_a_renewal_that_finds_no_session_ends_the_term_at_once(
        self, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        with Candidate(relayed, key, "a", ttl=6).campaign(timeout=10) as term:

            def before(asked: Asked) -> Told | None:
                return Told(404, b"") if "/session/renew/" in asked.path else None

            consul_relay.before = before
            assert term.wait_lost(4)
            assert term.reason is not None
            assert "ended the session" in term.reason

    def test_the_key_is_released_before_the_session_is_destroyed(
        self, consul: ConsulClient, consul_relay: ConsulRelay, consul_store: Store, key: str
    ) -> None:
        # Else a lock-delay would keep everybody out for its time.
        address = consul.url_of(consul_relay.endpoint) + "&lock_delay=30"
        with new_store(address) as store:
            term = Candidate(store, key, "a", ttl=15).campaign(timeout=10)
        order = [
            "destroy" if "/destroy/" in asked.path else "release"
            for asked in consul_relay.asked
            if "/destroy/" in asked.path or asked.does("delete", key)
        ]
        assert order == ["release", "destroy"]
        with Candidate(consul_store, key, "b", ttl=15).campaign(timeout=5) as new:
            assert new.token > term.token

    def test_a_lock_delay_keeps_the_next_out_after_a_session_was_destroyed(
        self, consul: ConsulClient, consul_store: Store, key: str
    ) -> None:
        with new_store(consul.url + "&lock_delay=1.5") as store:
            term = Candidate(store, key, "a", ttl=15).campaign(timeout=10)
            session = consul.holder(key)
            assert session is not None
            began = CLOCK.now()
            consul.destroy_session(session)
            with Candidate(consul_store, key, "b", ttl=15).campaign(timeout=10) as new:
                assert new.elected_at - began > 1.4
                assert new.token > term.token

    def test_a_session_ends_by_its_ttl_alone_unless_the_nodes_health_is_asked_for(
        self, consul: ConsulClient, consul_store: Store, key: str
    ) -> None:
        for address, checks in (("", []), ("&node_health=true", ["serfHealth"])):
            with new_store(consul.url + address) as store:
                with Candidate(store, key, "a", ttl=15).campaign(timeout=10):
                    session = consul.sessions()[str(consul.holder(key))]
                    assert session["NodeChecks"] == checks
                    assert session["Behavior"] == "release"
                    assert session["LockDelay"] == 0

    def test_keys_with_a_ttl_leave_no_session(
        self, consul: ConsulClient, consul_store: Store, key: str
    ) -> None:
        before = set(consul.sessions())
        store = consul_store
        first = store.put(key, "1", ttl=30)
        second = store.put(key, "2", ttl=60)
        with pytest.raises(KeyModified):
            store.atomic_put(key, "3", first, ttl=30)
        store.atomic_put(key, "3", second, ttl=30)
        assert len(set(consul.sessions()) - before) == 1
        store.put(key, "stays")
        assert set(consul.sessions()) == before
        store.put(key, "4", ttl=30)
        store.delete(key)
        assert set(consul.sessions()) == before

    def test_nothing_is_left_behind_after_many_cycles(self, consul: ConsulClient, key: str) -> None:
        def cycle() -> None:
            with new_store(consul.url) as store:
                with Candidate(store, key, "a", ttl=15).campaign(timeout=10):
                    pass

        counts = []
        for number in range(1, 26):
            cycle()
            if number in (3, 25):
                counts.append((footprint(), len(consul.sessions()), consul.keys(key)))
        assert counts[0] == counts[1]

    def test_the_lease_counts_from_the_send_however_late_the_answer_comes(
        self, consul: ConsulClient, key: str, events: list[Event]
    ) -> None:
        host, _, port = consul.endpoint.rpartition(":")
        with (
            FaultProxy(int(port), host) as relay,
            new_store(consul.url_of(relay.endpoint), hooks=[events.append]) as store,
            Candidate(store, key, "a", ttl=4).campaign(timeout=10),
        ):
            relay.set("delay", 0.15)
            slow = wait_until(
                lambda: [each for each in told(events, LeaseRenewed) if each.round_trip > 0.3],
                20,
                "a renewal with a slow answer",
            )
            for each in slow:
                # Sent `round_trip` ago at the earliest: ttl and what is taken off count from there.
                assert each.valid_until <= each.at - each.round_trip + 4 * 0.99


def raised_ttl(asked: Asked, answer: Told) -> Told:
    if "/session/renew/" in asked.path and answer.status == 200:
        content = answer.content
        content[0]["TTL"] = "20s"
        return Told(answer.status, json.dumps(content).encode(), answer.headers)
    return answer


class TestBlockingQueries:
    def test_an_index_that_goes_backwards_begins_anew_and_loses_nothing(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        consul.put(key, b"1")

        def backwards(asked: Asked, answer: Told) -> Told:
            if "index" in asked.query and asked.path.endswith(key):
                consul_relay.after = lambda asked, answer: answer
                # As it would be after a restore: an older state, and a lower index.
                return Told(404, b"", {"X-Consul-Index": "2"})
            return answer

        consul_relay.after = backwards
        with relayed.watch(key) as states:
            assert next(states).value == b"1"  # type: ignore[union-attr]
            consul.put(key, b"2")
            assert next(states).value == b"2"  # type: ignore[union-attr]
            consul.put(key, b"3")
            assert next(states).value == b"3"  # type: ignore[union-attr]
            consul.delete(key)
            assert next(states) is None

    def test_a_store_that_was_restored_to_an_older_index_is_followed_from_there(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        ahead = 1000

        def before(asked: Asked) -> None:
            if "index" in asked.query:
                asked.query["index"] = str(max(1, int(asked.query["index"]) - ahead))

        def after(asked: Asked, answer: Told) -> Told:
            if "X-Consul-Index" in answer.headers:
                index = int(answer.headers["X-Consul-Index"]) + ahead
                answer.headers["X-Consul-Index"] = str(index)
            return answer

        consul_relay.before, consul_relay.after = before, after
        consul.put(key, b"1")
        with relayed.watch(key) as states:
            assert next(states).value == b"1"  # type: ignore[union-attr]
            wait_until(
                lambda: any("index" in asked.query for asked in consul_relay.asked), 10, "a query"
            )
            ahead = 0
            for value in (b"2", b"3"):
                consul.put(key, value)
                assert next(states).value == value  # type: ignore[union-attr]
        consul.delete(key)

    def test_an_index_that_goes_backwards_ends_no_term(
        self, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        lies: list[Asked] = []

        def backwards(asked: Asked) -> Told | None:
            if "index" in asked.query and asked.path.endswith(key) and len(lies) < 5:
                lies.append(asked)
                return Told(404, b"", {"X-Consul-Index": "2"})
            return None

        consul_relay.before = backwards
        with Candidate(relayed, key, "a", ttl=15).campaign(timeout=10) as term:
            wait_until(lambda: len(lies) == 5, 10, "five lies")
            assert term.wait_lost(0.3) is False

    def test_other_keys_changes_wake_one_who_waits_for_an_absent_key_only_now_and_then(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        with relayed.watch(key) as states:
            assert next(states) is None
            began, consul_relay.asked[:] = CLOCK.now(), []
            for number in range(300):
                consul.put(f"{key}-other", str(number).encode())
            elapsed = CLOCK.now() - began
            assert len(consul_relay.asked) < 8 + 8 * elapsed
            consul.put(key, b"here")
            assert next(states).value == b"here"  # type: ignore[union-attr]
        consul.delete(f"{key}-other")
        consul.delete(key)

    def test_one_query_serves_all_who_follow_one_key(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(relayed.watch(key)) for _ in range(10)]
            assert [next(stream) for stream in streams] == [None] * 10
            consul.put(key, b"1")
            for stream in streams:
                assert next(stream).value == b"1"  # type: ignore[union-attr]
            queries = [asked for asked in consul_relay.asked if "index" in asked.query]
            assert len(queries) <= 3
        consul.delete(key)

    @pytest.mark.parametrize("mode", ["default", "consistent", "stale"])
    def test_queries_ask_for_the_consistency_of_the_option_and_reads_for_the_present(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str, mode: str
    ) -> None:
        address = consul.url_of(consul_relay.endpoint) + f"&consistency={mode}"
        with new_store(address) as store, store.watch(key) as states:
            assert next(states) is None
            consul.put(key, b"1")
            assert next(states) is not None
            for asked in consul_relay.asked:
                wanted = mode if "index" in asked.query else "consistent"
                assert {"consistent", "stale"} & set(asked.query) == {wanted} - {"default"}
        consul.delete(key)


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (429, b"Your IP is issuing too many concurrent connections"),
            (500, b"No cluster leader"),
            (503, b"busy"),
        ],
    )
    def test_a_rate_limit_or_a_cluster_without_a_leader_is_ridden_out(
        self,
        consul_relay: ConsulRelay,
        relayed: Store,
        key: str,
        events: list[Event],
        status: int,
        body: bytes,
    ) -> None:
        refusals: list[Asked] = []

        def refuse(asked: Asked) -> Told | None:
            if asked.writes and len(refusals) < 4:
                refusals.append(asked)
                return Told(status, body)
            return None

        consul_relay.before = refuse
        with pytest.raises(StoreUnavailable, match=body.decode()):
            relayed.put(f"{key}-x", "1")
        with Candidate(relayed, key, "a", ttl=15).campaign(timeout=20) as term:
            assert term.is_valid()
            wait_until(lambda: told(events, StoreTrouble), 10, "its being told")

    def test_what_is_no_consul_is_said(
        self, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        consul_relay.before = lambda asked: Told(200, b"<html>hello</html>")
        with pytest.raises(StoreError, match="check the address"):
            relayed.get(key)

    def test_a_swap_whose_connection_is_lost_is_not_sent_again_out_of_sight(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed: Store, key: str
    ) -> None:
        def lose(asked: Asked, answer: Told) -> Told:
            if asked.does("cas", key):
                raise LostReplyError
            return answer

        consul_relay.after = lose
        with pytest.raises(StoreUnavailable):
            relayed.atomic_put(key, "1")
        assert sum(asked.does("cas", key) for asked in consul_relay.asked) == 1
        assert consul.entry(key)["Value"] == b"1"  # type: ignore[index]
        consul.delete(key)


class TestContenders:
    def test_an_entry_whose_removal_was_sent_does_not_lead_again(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        async def scenario() -> None:
            def lose(asked: Asked) -> None:
                if asked.does("delete", key):
                    raise LostReplyError

            async with opened(consul_relay.endpoint) as backend:
                part = contender(backend, key)
                first, _ = await win(part)
                consul_relay.before = lose
                with pytest.raises(StoreUnavailable):
                    await part.leave()
                consul_relay.before = lambda asked: None
                again, _ = await win(part)
                assert again.token > first.token
                await part.leave()
                await part.close()

        asyncio.run(scenario())
        assert consul.keys(key) == []

    async def scenario(self, consul: ConsulClient, key: str) -> None:
        async with opened(consul.endpoint) as one, opened(consul.endpoint) as two:
            first, second = contender(one, key), contender(two, key, b"b")
            claim, lost = await win(first)
            waiting = asyncio.ensure_future(win(second))
            await async_wait_until(lambda: places(consul, key), 10, "the second's place")
            # Given up between the hand-over and the moment in which it is heard of.
            await async_wait_until(lambda: first._attendance._seen, 10, "the leader's notice")
            (place, _) = next(iter(first._attendance._seen.values()))
            held = consul.entry(key)
            assert held is not None
            waiting.cancel()
            assert await first._hand_over(first._held, place) is True
            await asyncio.wait([waiting])
            await second.leave()
            assert consul.keys(key) == []
            assert lost
            assert claim.token == held["CreateIndex"]
            for each in (first, second):
                await each.close()

    def test_one_who_is_handed_the_key_while_it_leaves_lets_go_of_it(
        self, consul: ConsulClient, key: str
    ) -> None:
        asyncio.run(self.scenario(consul, key))


@pytest.mark.backend("consul")
@pytest.mark.parametrize(
    ("written", "seconds"),
    [("15s", 15.0), ("1m30s", 90.0), ("1.5s", 1.5), ("500ms", 0.5), ("24h0m0s", 86400.0)],
)
def test_durations_are_read_as_consul_writes_them(written: str, seconds: float) -> None:
    assert seconds_of(written) == pytest.approx(seconds)
    assert seconds_of(duration_of(seconds)) == pytest.approx(seconds)


@pytest.mark.backend("consul")
@pytest.mark.parametrize("wrong", ["", "15", "s", "15 s", "1x"])
def test_what_is_no_duration_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_of(wrong)
