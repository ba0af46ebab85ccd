"""The kit, on our own backends, and on one that lacks what the kit must then skip."""

from __future__ import annotations

import uuid
from typing import ClassVar

import pytest

from leadership import Store, new_store
from leadership.backend import Capability
from leadership.backends.memory import MemoryBackend
from leadership.testing import BackendConformance

from .servers.etcd_client import EtcdClient


@pytest.mark.backend("memory")
class TestMemory(BackendConformance):
    ttl = 0.5

    @pytest.fixture(autouse=True)
    def _space(self) -> None:
        self.name = uuid.uuid4().hex

    def make_store(self) -> Store:
        return new_store(f"memory://{self.name}")


class TestEtcd(BackendConformance):
    ttl = 1.0

    @pytest.fixture(autouse=True)
    def _server(self, etcd: EtcdClient) -> None:
        self.url = etcd.url

    def make_store(self) -> Store:
        return new_store(self.url)


class PlainBackend(MemoryBackend):
    """A store that has nothing but keys."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.KV})


def test_a_group_that_the_backend_does_not_offer_shows_as_skipped(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from leadership.backend import Address
        from leadership.core import Core
        from leadership.store import Store
        from leadership.testing import BackendConformance
        from tests.test_conformance import PlainBackend

        class TestPlain(BackendConformance):
            def make_store(self):
                return Store(Core(Address("plain", ("kit",)), PlainBackend))
        """
    )
    result = pytester.runpytest("-q", "-rs", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 15
    assert set(outcomes) == {"passed", "skipped"}
    result.stdout.fnmatch_lines(["*the backend does not offer lock*"])
