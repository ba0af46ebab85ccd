"""What the Consul backend asks for, and what it makes of strange answers: seen at a relay."""

from __future__ import annotations

import contextlib
import json

import pytest

from leadership import Candidate, Follower, Store, new_store
from leadership.backends._consul_requests import duration_of, seconds_of
from leadership.errors import ConfigurationError, KeyModified, StoreError, StoreUnavailable
from leadership.events import (
    Event,
    LeaseRenewed,
    StoreTrouble,
    TtlGranted,
)
from leadership.following import LeaderState

from .etcd_elections import CLOCK, told
from .leaks import footprint
from .servers.consul_client import ConsulClient
from .servers.consul_relay import Asked, ConsulRelay, LostReplyError, Told
from .servers.fault_proxy import FaultProxy
from .waiting import wait_until


class TestSessions:
    def test_a_ttl_that_the_server_raises_is_obeyed_with_one_warning(
        self, consul_relay: ConsulRelay, relayed_store: Store, key: str, events: list[Event]
    ) -> None:
        consul_relay.after = raised_ttl
        with Candidate(relayed_store, key, "a", ttl=2).campaign(timeout=10) as term:
            assert 15 < term.remaining() < 20
            wait_until(lambda: told(events, TtlGranted), 10, "the warning")
            # By a session of its own.
            lone = Candidate(relayed_store, f"{key}-x", "b", ttl=2, own_session=True)
            with lone.campaign(timeout=10):
                wait_until(lambda: len(told(events, LeaseRenewed)) == 2, 10, "its renewal")
            assert [(each.asked, each.granted) for each in told(events, TtlGranted)] == [(2, 20)]

    def test_with_strict_ttl_a_raised_one_is_an_error(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        consul_relay.after = raised_ttl
        with new_store(consul.url_of(consul_relay.endpoint), strict_ttl=True) as store:
            with pytest.raises(ConfigurationError, match="ask for 20"):
                Candidate(store, key, "a", ttl=2).campaign(timeout=10)

    def test_a_renewal_that_finds_no_session_ends_the_term_at_once(
        self, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        with Candidate(relayed_store, key, "a", ttl=6).campaign(timeout=10) as term:

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
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        consul.put(key, b"1")

        def backwards(asked: Asked, answer: Told) -> Told:
            if "index" in asked.query and asked.path.endswith(key):
                consul_relay.after = lambda asked, answer: answer
                # As it would be after a restore: an older state, and a lower index.
                return Told(404, b"", {"X-Consul-Index": "2"})
            return answer

        consul_relay.after = backwards
        with relayed_store.watch(key) as states:
            assert next(states).value == b"1"  # type: ignore[union-attr]
            consul.put(key, b"2")
            assert next(states).value == b"2"  # type: ignore[union-attr]
            consul.put(key, b"3")
            assert next(states).value == b"3"  # type: ignore[union-attr]
            consul.delete(key)
            assert next(states) is None

    def test_a_store_that_was_restored_to_an_older_index_is_followed_from_there(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
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
        with relayed_store.watch(key) as states:
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
        self, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        lies: list[Asked] = []

        def backwards(asked: Asked) -> Told | None:
            if "index" in asked.query and asked.path.endswith(key) and len(lies) < 5:
                lies.append(asked)
                return Told(404, b"", {"X-Consul-Index": "2"})
            return None

        consul_relay.before = backwards
        with Candidate(relayed_store, key, "a", ttl=15).campaign(timeout=10) as term:
            wait_until(lambda: len(lies) == 5, 10, "five lies")
            assert term.wait_lost(0.3) is False

    def test_other_keys_changes_wake_one_who_waits_for_an_absent_key_only_now_and_then(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        with relayed_store.watch(key) as states:
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
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(relayed_store.watch(key)) for _ in range(10)]
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
        relayed_store: Store,
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
            relayed_store.put(f"{key}-x", "1")
        with Candidate(relayed_store, key, "a", ttl=15).campaign(timeout=20) as term:
            assert term.is_valid()
            wait_until(lambda: told(events, StoreTrouble), 10, "its being told")

    @pytest.mark.parametrize(
        "answer",
        [
            Told(200, b"<html>hello</html>"),
            Told(200, b"\xff", {"X-Consul-Index": "now"}),
            Told(307, b"", {"Location": "http://127.0.0.1:1/"}),
        ],
    )
    def test_what_is_no_consul_is_said(
        self, consul_relay: ConsulRelay, relayed_store: Store, key: str, answer: Told
    ) -> None:
        consul_relay.before = lambda asked: answer
        with pytest.raises(StoreError, match="check th"):
            relayed_store.get(key)

    def test_a_redirection_is_not_followed_with_our_token(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        address = f"http://{consul_relay.endpoint}/elsewhere"

        def redirect(asked: Asked) -> Told:
            return Told(307, b"", {"Location": address})

        consul_relay.before = redirect
        with new_store(consul.url_of(consul_relay.endpoint), token="secret") as store:
            with pytest.raises(StoreError, match="redirects"):
                store.get(key)
        assert [asked for asked in consul_relay.asked if asked.path == "/elsewhere"] == []

    def test_a_follower_of_stale_answers_knows_nothing_where_the_server_knows_no_leader(
        self, consul: ConsulClient, consul_relay: ConsulRelay, key: str
    ) -> None:
        alone = False

        def before(asked: Asked) -> Told | None:
            if "index" in asked.query:
                asked.query["wait"] = "50ms"
            return Told(500, b"No cluster leader") if alone and "stale" not in asked.query else None

        def after(asked: Asked, answer: Told) -> Told:
            # What a server that is cut from the others has is not news.
            answer.headers["X-Consul-KnownLeader"] = "false" if alone else "true"
            return answer

        consul_relay.before, consul_relay.after = before, after
        address = consul.url_of(consul_relay.endpoint) + "&consistency=stale"
        with new_store(address) as store:
            with Follower(store, key, patience=0.1).observe() as states:
                assert next(states).state is LeaderState.NONE
                alone = True
                assert next(states).state is LeaderState.UNKNOWN
                alone = False
                assert next(states).state is LeaderState.NONE

    def test_a_swap_whose_connection_is_lost_is_not_sent_again_out_of_sight(
        self, consul: ConsulClient, consul_relay: ConsulRelay, relayed_store: Store, key: str
    ) -> None:
        def lose(asked: Asked, answer: Told) -> Told:
            if asked.does("cas", key):
                raise LostReplyError
            return answer

        consul_relay.after = lose
        with pytest.raises(StoreUnavailable):
            relayed_store.atomic_put(key, "1")
        assert sum(asked.does("cas", key) for asked in consul_relay.asked) == 1
        assert consul.entry(key)["Value"] == b"1"  # type: ignore[index]
        consul.delete(key)


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
