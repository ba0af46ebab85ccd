"""Users, rights, certificates and addresses of etcd."""

from __future__ import annotations

import pytest

from leadership import Candidate, Follower, new_store
from leadership.errors import (
    AccessDenied,
    ConfigurationError,
    StoreUnavailable,
)
from leadership.events import Event, TermEnded

from .conftest import MakeEtcd
from .etcd_elections import told
from .servers.etcd import LIMITED, LIMITED_PREFIX, ROOT


class TestAuthentication:
    def test_leadership_is_kept_when_the_token_expires(
        self, make_etcd: MakeEtcd, key: str, events: list[Event]
    ) -> None:
        server = make_etcd(auth=True, auth_token_ttl=1)
        address = f"etcd://{ROOT.name}:{ROOT.password}@{server.endpoint}"
        with new_store(address, hooks=[events.append]) as store:
            # Between two renewals the token stands idle for longer than it lives.
            with Candidate(store, key, "a", ttl=9).campaign(timeout=10) as term:
                assert term.wait_lost(12) is False
                with Follower(store, key).follow_election() as leaders:
                    assert next(leaders) == "a"
            assert not told(events, TermEnded)[:-1]

    def test_a_wrong_password_is_said_clearly_and_never_shown(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(auth=True)
        with new_store(f"etcd://root:wrong-secret@{server.endpoint}") as store:
            with pytest.raises(AccessDenied, match="check user and password") as denied:
                store.get(key)
            assert "wrong-secret" not in str(denied.value)
            with pytest.raises(AccessDenied):
                Candidate(store, key, "a").campaign(timeout=10)
            assert "wrong-secret" not in repr(store) + repr(store.core.backend.address)

    def test_a_missing_password_is_said_clearly(self, make_etcd: MakeEtcd, key: str) -> None:
        server = make_etcd(auth=True)
        with new_store(server.url) as store, pytest.raises(AccessDenied, match="user and password"):
            store.get(key)


class TestTls:
    def test_client_certificates_are_shown_and_checked(self, make_etcd: MakeEtcd, key: str) -> None:
        server = make_etcd(client_certificates=True)
        paths = server.certificates
        assert paths is not None
        shown = {"ca": paths.authority, "cert": paths.client, "key": paths.client_key}
        options = {name: str(path) for name, path in shown.items()}
        query = "&".join(f"{name}={path}" for name, path in options.items())
        with new_store(f"{server.url}?{query}") as store:
            with Candidate(store, key, "a", ttl=5).campaign(timeout=10):
                assert Follower(store, key).leader() == "a"
        strange = {**options, "ca": str(paths.stranger_authority)}
        for wrong in (strange, {"ca": options["ca"]}, {"tls": "true"}, {}):
            query = "&".join(f"{name}={path}" for name, path in wrong.items())
            with new_store(f"{server.url}?{query}", request_timeout=1) as store:
                with pytest.raises(StoreUnavailable):
                    store.get(key)

    def test_a_file_that_is_missing_is_said_at_construction(self) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            new_store("etcd://127.0.0.1?ca=/nothing.pem")


class TestRights:
    def test_a_user_with_rights_on_its_prefix_can_lead_there_and_not_elsewhere(
        self, make_etcd: MakeEtcd, key: str
    ) -> None:
        server = make_etcd(auth=True)
        address = f"etcd://{LIMITED.name}:{LIMITED.password}@{server.endpoint}"
        with new_store(address) as store:
            store.connect()
            with Candidate(store, f"{LIMITED_PREFIX}x", "a", ttl=2).campaign(timeout=10) as term:
                assert Follower(store, f"{LIMITED_PREFIX}x").leader() == "a"
                assert term.wait_lost(3) is False
            with pytest.raises(AccessDenied, match="rights"):
                Candidate(store, key, "a", ttl=2).campaign(timeout=10)
            with pytest.raises(AccessDenied, match="rights"):
                next(store.watch(key))


BAD_ADDRESSES = [
    ("etcd://", "at least one server"),
    ("etcd://host:port", "no host:port"),
    ("etcd://host:99999", "no host:port"),
    ("etcd://::1:2379", "as \\[address\\]:port"),
    ("etcd://host/path", "takes no path"),
    ("etcd://host?usr=x", "did you mean 'user'"),
    ("etcd://host?tls=perhaps", "does not fit"),
    ("etcd://host?cert=/x", "both cert and key"),
    ("etcd://host?password=x", "without a user"),
    ("etc://host", "did you mean 'etcd'"),
]


@pytest.mark.backend("etcd")
@pytest.mark.parametrize(("address", "says"), BAD_ADDRESSES)
def test_a_bad_address_fails_at_construction(address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        new_store(address)
