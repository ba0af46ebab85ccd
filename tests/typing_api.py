"""The whole public interface as a user's code has it, for mypy: `make check` reads it, nobody runs.

Each `assert_type` is what an editor shows; a change of it is a change of the interface.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from leadership import (
    Candidate,
    Capability,
    Follower,
    KVPair,
    Leader,
    LeaderState,
    Lock,
    NewCandidate,
    NewFollower,
    NewStore,
    Retry,
    Store,
    Term,
    aio,
    errors,
    events,
    new_store,
)
from leadership.clock import Clock, ManualClock


def hook(event: events.Event) -> None:
    if isinstance(event, events.Elected):
        assert_type(event.token, int)


def stores() -> None:
    assert_type(new_store("etcd://127.0.0.1:2379", request_timeout=2.0, ca="ca.pem"), Store)
    assert_type(new_store("etcd", ["a:1", "b:2"], hooks=[hook]), Store)
    assert_type(NewStore("memory", "name", clock=ManualClock()), Store)
    with new_store("memory://x") as store:
        assert_type(store.capabilities, frozenset[Capability])
        assert_type(store.clock, Clock)
        assert_type(store.connect(), None)
        assert_type(store.put("k", b"value"), KVPair)
        assert_type(store.put("k", "value", ttl=5), KVPair)
        pair = store.get("k")
        assert_type(pair, KVPair | None)
        if pair is not None:
            assert_type(pair.key, str)
            assert_type(pair.value, bytes)
            assert_type(pair.index, int)
            assert_type(store.atomic_put("k", b"", pair, ttl=1.5), KVPair)
            assert_type(store.atomic_delete("k", pair), None)
        assert_type(store.atomic_put("k", b"value"), KVPair)
        assert_type(store.exists("k"), bool)
        assert_type(store.delete("k"), bool)
        assert_type(store.list("directory"), list[KVPair])
        assert_type(store.delete_tree("directory"), None)
        with store.watch("k") as states:
            for state in states:
                assert_type(state, KVPair | None)
        for tree in store.watch_tree("directory"):
            assert_type(tree, list[KVPair])
    assert_type(store.close(), None)


def candidates(store: Store) -> None:
    candidate = Candidate(
        store,
        "service/leader",
        "a",
        ttl=15,
        value=b"10.0.0.5:80",
        grace=2,
        retry=Retry(initial=0.2, maximum=2, multiplier=1.5),
        watchdog=10,
        require={Capability.FENCING, "fifo"},
        own_session=True,
        guardian=True,
    )
    assert_type(NewCandidate(store, "k", "a", 15, value="v", retry=None), Candidate)
    for elected in candidate.run_for_election():
        assert_type(elected, bool)
    with candidate.run_for_election() as elections:
        assert_type(next(elections), bool)
        assert_type(elections.close(), None)
    with candidate.campaign(timeout=5) as term:
        assert_type(term, Term)
    assert_type(candidate.campaign(), Term)
    assert_type(candidate.run(work), None)
    assert_type(candidate.run(lambda term: term.token), None)
    assert_type(candidate.term, Term | None)
    assert_type(candidate.is_leader(), bool)
    assert_type(candidate.proclaim("elsewhere"), None)
    assert_type(candidate.proclaim(b"elsewhere"), None)
    assert_type(candidate.resign(), bool)
    assert_type(candidate.resign(to="b"), bool)
    assert_type(candidate.stop(), None)
    assert_type(candidate.close(), None)
    with candidate as same:
        assert_type(same, Candidate)


def work(term: Term) -> None:
    assert_type((term.key, term.id, term.value), tuple[str, str, str])
    assert_type(term.token, int)
    assert_type(term.elected_at, float)
    assert_type(term.valid_until, float)
    assert_type(term.reason, str | None)
    assert_type(term.is_valid(), bool)
    assert_type(term.remaining(), float)
    assert_type(term.check(), None)
    assert_type(term.wait_lost(timeout=1), bool)
    assert_type(term.resign(), bool)


def followers(store: Store) -> Iterator[str | None]:
    follower = Follower(store, "service/leader", retry=None, patience=2)
    assert_type(NewFollower(store, "service/leader"), Follower)
    for value in follower.follow_election():
        assert_type(value, str | None)
    with follower.observe() as leaders:
        for leader in leaders:
            assert_type(leader, Leader)
            assert_type(leader.state, LeaderState)
            assert_type(leader.value, str | None)
            assert_type(leader.token, int | None)
            assert_type(leader.since, float)
            assert_type(leader.confirmed_at, float)
    assert_type(follower.leader(max_age=5), str | None)
    assert_type(follower.wait_for_leader(timeout=5), str)
    assert_type(follower.stop(), None)
    # What it returns is an iterator also where one is asked for by its general name.
    return follower.follow_election()


def locks(store: Store) -> None:
    lock = store.lock("jobs/nightly", value="a", ttl=30)
    assert_type(lock, Lock)
    assert_type(lock.acquire(timeout=5), int)
    assert_type(lock.token, int | None)
    assert_type(lock.is_held(), bool)
    assert_type(lock.check(), None)
    assert_type(lock.wait_lost(timeout=5), bool)
    assert_type(lock.release(), bool)
    with lock as held:
        assert_type(held, Lock)


async def async_stores() -> None:
    async with aio.new_store("etcd://127.0.0.1:2379", hooks=[hook]) as store:
        assert_type(store, aio.Store)
        await store.connect()
        assert_type(await store.put("k", "value", ttl=5), KVPair)
        pair = await store.get("k")
        assert_type(pair, KVPair | None)
        if pair is not None:
            assert_type(await store.atomic_put("k", b"", pair), KVPair)
            await store.atomic_delete("k", pair)
        assert_type(await store.exists("k"), bool)
        assert_type(await store.delete("k"), bool)
        assert_type(await store.list("directory"), list[KVPair])
        await store.delete_tree("directory")
        async with store.watch("k") as states:
            async for state in states:
                assert_type(state, KVPair | None)
        async for tree in store.watch_tree("directory"):
            assert_type(tree, list[KVPair])
    await store.close()


async def async_candidates(store: aio.Store) -> None:
    candidate = aio.Candidate(store, "service/leader", "a", ttl=15, value="v", watchdog=10)
    assert_type(aio.NewCandidate(store, "k", "a", 15), aio.Candidate)
    async for elected in candidate.run_for_election():
        assert_type(elected, bool)
    async with candidate.run_for_election() as elections:
        assert_type(await anext(elections), bool)
        await elections.close()
    async with candidate.campaign(timeout=5) as term:
        assert_type(term, aio.Term)
    assert_type(await candidate.campaign(), aio.Term)
    await candidate.run(async_work)
    assert_type(candidate.term, aio.Term | None)
    assert_type(candidate.is_leader(), bool)
    await candidate.proclaim("elsewhere")
    assert_type(await candidate.resign(), bool)
    assert_type(await candidate.resign(to="b"), bool)
    await candidate.stop()
    await candidate.close()
    async with candidate as same:
        assert_type(same, aio.Candidate)


async def async_work(term: aio.Term) -> None:
    term.check()
    assert_type(term.token, int)
    assert_type(term.is_valid(), bool)
    assert_type(await term.wait_lost(timeout=1), bool)
    assert_type(await term.resign(), bool)


async def async_followers(store: aio.Store) -> AsyncIterator[str | None]:
    follower = aio.Follower(store, "service/leader", patience=2)
    assert_type(aio.NewFollower(store, "service/leader"), aio.Follower)
    async for value in follower.follow_election():
        assert_type(value, str | None)
    async with follower.observe() as leaders:
        async for leader in leaders:
            assert_type(leader, Leader)
    assert_type(await follower.leader(max_age=5), str | None)
    assert_type(await follower.wait_for_leader(timeout=5), str)
    await follower.stop()
    return follower.follow_election()


async def async_locks(store: aio.Store) -> None:
    lock = store.lock("jobs/nightly", ttl=30)
    assert_type(lock, aio.Lock)
    assert_type(await lock.acquire(timeout=5), int)
    assert_type(lock.token, int | None)
    assert_type(lock.is_held(), bool)
    lock.check()
    assert_type(await lock.wait_lost(timeout=5), bool)
    assert_type(await lock.release(), bool)
    async with lock as held:
        assert_type(held, aio.Lock)


def failures(candidate: Candidate, store: Store) -> None:
    try:
        candidate.campaign(timeout=1)
    except errors.LeadershipLost as error:
        assert_type(error, errors.LeadershipLost)
    except (errors.StoreUnavailable, errors.AccessDenied) as error:
        told: errors.StoreError = error
        raise errors.LeadershipError("…") from told
    # A backend's mistakes are the caller's, so they are Python's own kinds as well.
    value_errors: list[type[ValueError]] = [errors.ConfigurationError, errors.ValueTooLarge]
    import_errors: list[type[ImportError]] = [errors.MissingExtra]
    del value_errors, import_errors
