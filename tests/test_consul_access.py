"""The way into Consul: tokens, TLS, datacenters, and addresses that can never work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leadership import Candidate, Follower, new_store
from leadership.errors import (
    AccessDenied,
    ConfigurationError,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)

from .conftest import MakeConsul
from .consul_elections import places, until_waiting
from .servers.consul import ConsulServer
from .servers.consul_client import ConsulClient
from .waiting import wait_until

SESSIONS = 'session_prefix "" { policy = "write" }\n'


@pytest.fixture(scope="module")
def guarded(consul: ConsulClient) -> Iterator[ConsulServer]:
    """A Consul that lets nobody in without a token."""
    with ConsulServer(acl=True) as server:
        yield server


class TestTokens:
    def test_a_token_with_rights_below_a_prefix_can_lead_there_and_not_elsewhere(
        self, guarded: ConsulServer, key: str, pool: ThreadPoolExecutor
    ) -> None:
        token = guarded.make_token(f'{SESSIONS} key_prefix "{key}/" {{ policy = "write" }}')
        with new_store(guarded.url, token=token) as store:
            store.connect()
            here = f"{key}/leader"
            leader = Candidate(store, here, "a", ttl=15)
            first = leader.campaign(timeout=10)
            assert Follower(store, here).leader() == "a"
            waiting = pool.submit(Candidate(store, here, "b", ttl=15).campaign)
            until_waiting(guarded, here)
            leader.resign()
            assert waiting.result(10).token > first.token
            with pytest.raises(AccessDenied, match="permission denied"):
                Candidate(store, "elsewhere", "a", ttl=15).campaign(timeout=10)
            with pytest.raises(AccessDenied, match="key_prefix"):
                next(store.watch("elsewhere"))
            with pytest.raises(AccessDenied, match="key_prefix"):
                store.put("elsewhere", "1")

    def test_a_token_for_one_key_alone_leads_and_hands_over_without_places(
        self, guarded: ConsulServer, key: str, pool: ThreadPoolExecutor
    ) -> None:
        token = guarded.make_token(f'{SESSIONS} key "{key}" {{ policy = "write" }}')
        with (
            new_store(guarded.url, token=token) as store,
            new_store(guarded.url, token=token) as other,
        ):
            leader = Candidate(store, key, "a", ttl=15)
            second = Candidate(other, key, "b", ttl=15)
            term = leader.campaign(timeout=10)
            waiting = pool.submit(second.campaign)
            backend = other.core.backend
            denied = backend._election.places._denied  # type: ignore[attr-defined]
            wait_until(lambda: key in denied, 10, "a refused place")
            assert places(guarded, key) == []
            assert term.is_valid()
            leader.resign()
            won = waiting.result(10)
            assert won.token > term.token
            again = pool.submit(leader.campaign)
            second.resign()
            assert again.result(10).token > won.token
            leader.stop()
            assert guarded.keys(key) == []

    def test_without_the_right_token_it_is_said_clearly_and_no_secret_is_shown(
        self, guarded: ConsulServer, key: str
    ) -> None:
        wrong = "0b5cd8d9-9999-4000-8000-000000000000"
        with new_store(guarded.url + f"&token={wrong}") as store:
            with pytest.raises(AccessDenied, match="check the token") as refused:
                store.connect()
            assert wrong not in str(refused.value)
            assert wrong not in repr(store)
            with pytest.raises(AccessDenied, match="check the token"):
                Candidate(store, key, "a", ttl=15).campaign(timeout=10)
        with new_store(guarded.url) as store:
            with pytest.raises(AccessDenied, match="give the token"):
                Candidate(store, key, "a", ttl=15).campaign(timeout=10)

    def test_the_environments_token_does_not_take_the_place_of_the_given_one(
        self,
        guarded: ConsulServer,
        key: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", "0b5cd8d9-9999-4000-8000-000000000000")
        with new_store(guarded.url, token=guarded.token) as store:
            store.put(key, "1")
            assert store.delete(key)


class TestTls:
    def test_certificates_are_shown_and_checked(self, make_consul: MakeConsul, key: str) -> None:
        server = make_consul(tls=True)
        paths = server.certificates
        assert paths is not None
        options: dict[str, Any] = {
            "ca": str(paths.authority),
            "cert": str(paths.client),
            "key": str(paths.client_key),
        }
        with new_store(server.url, **options) as store:
            with Candidate(store, key, "a", ttl=15).campaign(timeout=10):
                assert Follower(store, key).leader() == "a"
        strange = {**options, "ca": str(paths.stranger_authority)}
        for wrong in (strange, {"ca": options["ca"]}, {"tls": True}):
            with new_store(server.url, request_timeout=2, **wrong) as store:
                with pytest.raises(AccessDenied, match="check ca, cert and key"):
                    store.get(key)
                with pytest.raises(AccessDenied, match="check ca, cert and key"):
                    store.put(key, "1")
        with new_store(server.url, request_timeout=2) as store:
            with pytest.raises(StoreError):
                store.get(key)

    def test_a_file_that_is_missing_is_said_at_construction(self) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            new_store("consul://127.0.0.1?ca=/nothing.pem")


class TestPlaces:
    def test_the_agents_own_datacenter_may_be_named_and_an_unknown_one_is_said(
        self, consul: ConsulClient, key: str
    ) -> None:
        with new_store(consul.url + "&datacenter=dc1") as store:
            assert Candidate(store, key, "a", ttl=15).campaign(timeout=10).is_valid()
        with new_store(consul.url + "&datacenter=elsewhere") as store:
            with pytest.raises(StoreError, match="check the option datacenter"):
                store.get(key)

    def test_a_namespace_where_the_server_has_none_is_said(
        self, consul: ConsulClient, key: str
    ) -> None:
        with new_store(consul.url + "&namespace=team") as store:
            with pytest.raises(StoreError, match=r"[Nn]amespaces?"):
                Candidate(store, key, "a", ttl=15).campaign(timeout=10)

    def test_nobody_listens(self, key: str) -> None:
        with new_store("consul://127.0.0.1:1") as store:
            with pytest.raises(StoreUnavailable):
                store.get(key)

    def test_a_value_above_the_servers_limit_is_refused(
        self, consul: ConsulClient, key: str
    ) -> None:
        with new_store(consul.url) as store:
            limit = int(store.core.backend.maximum_value_size)
            store.put(key, b"x" * limit)
            assert len(store.get(key).value) == limit  # type: ignore[union-attr]
            with pytest.raises(ValueTooLarge):
                store.put(key, b"x" * (limit + 1))
            store.delete(key)


BAD_ADDRESSES = [
    ("consul://", "at least one agent"),
    ("consul://host:port", "no host:port"),
    ("consul://host:99999", "no host:port"),
    ("consul://::1:8500", "as \\[address\\]:port"),
    ("consul://host/path", "takes no path"),
    ("consul://host?tokn=x", "did you mean 'token'"),
    ("consul://host?tls=perhaps", "does not fit"),
    ("consul://host?consistency=strong", "does not fit"),
    ("consul://host?lock_delay=61", "from 0 to 60"),
    ("consul://host?lock_delay=-1", "from 0 to 60"),
    ("consul://host?session_ttl_min=0", "above 0"),
    ("consul://host?cert=/x", "both cert and key"),
    ("consl://host", "did you mean 'consul'"),
]


@pytest.mark.backend("consul")
@pytest.mark.parametrize(("address", "says"), BAD_ADDRESSES)
def test_a_bad_address_fails_at_construction(address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        new_store(address)
