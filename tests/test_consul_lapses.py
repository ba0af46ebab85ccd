"""Sessions on Consul whose renewals stayed away for longer than their ttl."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadership import Candidate, new_store

from .servers.consul import ConsulServer
from .servers.consul_client import ConsulError
from .servers.fault_proxy import Fate, FaultProxy, Mode
from .waiting import wait_until

TTL = 1.0


@pytest.mark.backend("consul")
def test_a_session_that_a_server_may_be_about_to_end_is_not_led_on_again(
    consul_server: ConsulServer, key: str, pool: ThreadPoolExecutor
) -> None:
    """A server that could not commit a session's end tries again 10 s later, renewed or not.

    One that stops leading while it renews wants to end it twice the ttl after that, though
    another renews it since: nothing tells this but that renewals stayed away for a while.
    """
    led: list[int] = []

    def contend(candidate: Candidate) -> None:
        for elected in candidate.run_for_election():
            term = candidate.term
            if elected and term is not None:
                led.append(term.token)

    with (
        FaultProxy(consul_server.http_port) as proxy,
        new_store(consul_server.url_of(proxy.endpoint)) as store,
        Candidate(store, key, "candidate", ttl=TTL) as candidate,
    ):
        pool.submit(contend, candidate)
        wait_until(lambda: led, 10, "the first term")
        session = consul_server.holder(key)
        assert session is not None

        def renew() -> None:
            # As if a server kept it that knows nothing of the other's plans.
            with contextlib.suppress(ConsulError):
                consul_server.api("PUT", f"session/renew/{session}")

        def cut_for_long() -> bool:
            renew()
            return store.core.context.clock.now() - since > 1.3 * TTL

        def led_again() -> bool:
            renew()
            return len(led) > 1

        since = store.core.context.clock.now()
        proxy.set(Mode.STALL)
        wait_until(cut_for_long, 10, "more than the ttl")
        assert session in consul_server.sessions()
        proxy.set(Mode.PASS)
        wait_until(led_again, 20, "the next term")
        assert led[1] > led[0]
        assert consul_server.holder(key) != session
        assert session not in consul_server.sessions()


@pytest.mark.backend("consul")
def test_a_session_that_ran_out_before_its_first_renewal_is_an_outage_to_ride_out(
    consul_server: ConsulServer, key: str, pool: ThreadPoolExecutor
) -> None:
    with (
        FaultProxy(consul_server.http_port) as proxy,
        new_store(consul_server.url_of(proxy.endpoint), request_timeout=10) as store,
        Candidate(store, key, "candidate", ttl=TTL) as candidate,
    ):
        proxy.catch(b"session/create", Fate.REPLY_LATE)
        won = pool.submit(candidate.campaign, 20)
        wait_until(lambda: proxy.has_caught, 5, "the session's making")
        wait_until(consul_server.sessions, 5, "the session")
        wait_until(lambda: not consul_server.sessions(), 10, "its end")
        proxy.set(Mode.PASS)
        assert won.result(20).is_valid()
