"""The kit: what all groups share, and the groups for keys, compare-and-swap and watches."""

from __future__ import annotations

import contextlib
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from .backend import Capability
from .candidate import Campaigner
from .clock import SystemClock
from .errors import (
    ConfigurationError,
    HandleClosed,
    KeyExists,
    KeyModified,
)
from .store import Store
from .streams import Stream

T = TypeVar("T")

_PACE = 0.005


def eventually(predicate: Callable[[], T], within: float, what: str) -> T:
    """Wait until `predicate` returns something true, and return that.

    Args:
        within: seconds until it is given up.
        what: what was waited for, for the message.

    Raises:
        AssertionError: it did not come true in time.
    """
    clock = SystemClock()
    pause = threading.Event()
    deadline = clock.now() + within
    while True:
        late = clock.now() >= deadline
        seen = predicate()
        if seen:
            return seen
        if late:
            raise AssertionError(f"not within {within:g} s: {what} (last seen: {seen!r})")
        pause.wait(_PACE)


class Conformance(ABC):
    """What all groups share: stores, a directory of one's own, threads.

    Attributes:
        needs: the capabilities without which a group is skipped.
        ttl: seconds, for keys, locks and candidates that are meant to lapse.
        patience: seconds to wait for anything that is bound to happen.
        longest: seconds after which a test's stores are closed under it, so that one that
            waits for what never happens fails, and does not hang.
    """

    needs: frozenset[Capability] = frozenset()
    ttl: float = 2.0
    patience: float = 20.0
    longest: float = 90.0

    @property
    def lapse(self) -> float:
        """Seconds in which what nobody renews must have lapsed; a store may be slow to it."""
        return 3 * self.ttl + self.patience

    @abstractmethod
    def make_store(self) -> Store:
        """Open one more store on the same server; the kit closes it."""

    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        with self.bounded(self.make_store()) as opened:
            missing = self._needs_of(request) - opened.capabilities
            if missing:
                pytest.skip(f"the backend does not offer {', '.join(sorted(missing))}")
            yield opened

    def _needs_of(self, request: pytest.FixtureRequest) -> frozenset[Capability]:
        """What the group needs that the running test comes from."""
        # From the root: a subclass that overrides a test does not change what it needs.
        for group in reversed(type(self).__mro__):
            if request.node.originalname in vars(group) and issubclass(group, Conformance):
                return group.needs
        return self.needs

    @pytest.fixture
    def other(self, store: Store) -> Iterator[Store]:
        """A second store on the same server: another process, as far as it can tell."""
        with self.bounded(self.make_store()) as opened:
            yield opened

    @contextlib.contextmanager
    def bounded(self, store: Store) -> Iterator[Store]:
        """Close `store` at the end of the block, or when a test hangs."""
        timer = threading.Timer(self.longest, store.close)
        timer.daemon = True
        timer.start()
        try:
            with store:
                yield store
        finally:
            timer.cancel()

    @pytest.fixture
    def directory(self, store: Store) -> Iterator[str]:
        name = f"conformance/{uuid.uuid4().hex}"
        yield name
        if Capability.KV in store.capabilities and not store.core.closed:
            store.delete_tree(name)

    @pytest.fixture
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(max_workers=16) as pool:
            yield pool

    def until_told(
        self, stream: Stream[T], wanted: Callable[[T], bool], within: float | None = None
    ) -> T:
        """Read on until a state is the wanted one; earlier ones may be coalesced or not.

        Args:
            within: seconds that this may take; `patience` if not given.
        """
        limit = self.patience if within is None else within
        timer = threading.Timer(limit, stream.close)
        timer.start()
        try:
            for state in stream:
                if wanted(state):
                    return state
        finally:
            timer.cancel()
        raise AssertionError(f"the wanted state was not told within {limit:g} s")

    def until_waiting(self, contender: Campaigner) -> None:
        """Wait until a candidate's or lock's run, in another thread, has begun."""
        eventually(
            lambda: contender._candidacy is not None and contender._candidacy.active,
            self.patience,
            "the start of its run",
        )


class KeyValueConformance(Conformance):
    needs = frozenset({Capability.KV})

    def test_what_is_put_is_what_is_got(self, store: Store, other: Store, directory: str) -> None:
        key = f"{directory}/key"
        assert store.get(key) is None
        assert not store.exists(key)
        written = store.put(key, b"\x00\xff value")
        assert written.key == key
        assert store.get(key) == other.get(key) == written
        assert store.exists(key)

    def test_a_str_is_stored_as_utf_8_and_an_empty_value_is_a_value(
        self, store: Store, directory: str
    ) -> None:
        store.put(f"{directory}/text", "grün")
        store.put(f"{directory}/empty", b"")
        text, empty = store.get(f"{directory}/text"), store.get(f"{directory}/empty")
        assert text is not None
        assert text.value.decode() == "grün"
        assert empty is not None
        assert empty.value == b""

    def test_the_index_grows_with_every_change(self, store: Store, directory: str) -> None:
        indexes = [store.put(f"{directory}/key", str(n)).index for n in range(4)]
        assert indexes == sorted(set(indexes))

    def test_delete_says_whether_there_was_something(self, store: Store, directory: str) -> None:
        store.put(f"{directory}/key", "x")
        assert store.delete(f"{directory}/key") is True
        assert store.delete(f"{directory}/key") is False
        assert store.get(f"{directory}/key") is None

    def test_a_leading_and_a_trailing_slash_are_dropped(self, store: Store, directory: str) -> None:
        written = store.put(f"/{directory}/key/", "x")
        assert written.key == f"{directory}/key"
        assert store.get(f"{directory}/key") == written

    def test_list_gives_all_descendants_with_full_keys_in_order(
        self, store: Store, directory: str
    ) -> None:
        for name in ("b", "a", "c/d/e", "c/a"):
            store.put(f"{directory}/{name}", name)
        listed = store.list(directory)
        assert [pair.key for pair in listed] == [
            f"{directory}/{name}" for name in ("a", "b", "c/a", "c/d/e")
        ]
        assert [pair.value for pair in listed] == [b"a", b"b", b"c/a", b"c/d/e"]
        assert store.list(f"{directory}/nothing") == []
        assert [pair for pair in store.list() if pair.key.startswith(directory)] == listed

    def test_a_directory_is_a_path_and_no_prefix(self, store: Store, directory: str) -> None:
        for name in ("dir", "dir/a", "dir/b/c", "dirX", "dirX/a", "dir.a"):
            store.put(f"{directory}/{name}", name)
        inside = [pair.key for pair in store.list(f"{directory}/dir")]
        assert inside == [f"{directory}/dir/a", f"{directory}/dir/b/c"]
        store.delete_tree(f"{directory}/dir")
        left = {pair.key.removeprefix(f"{directory}/") for pair in store.list(directory)}
        assert left == {"dirX", "dirX/a", "dir.a"}
        store.delete_tree(f"{directory}/nothing")

    def test_keys_of_any_text_are_kept_as_they_are(self, store: Store, directory: str) -> None:
        names = sorted(
            [
                "with space",
                "ünïcödé/日本",
                "per%20cent/%2F",
                "a+b&c=d?e#f",
                "x:y@z;w,v",
                "dots.and-dashes_~!$()*'",
                "UPPER/lower",
                "back\\slash",
                '"quoted"',
            ]
        )
        for name in names:
            store.put(f"{directory}/{name}", name)
        assert [
            (pair.key.removeprefix(f"{directory}/"), pair.value.decode())
            for pair in store.list(directory)
        ] == [(name, name) for name in names]
        for name in names:
            pair = store.get(f"{directory}/{name}")
            assert pair is not None
            assert pair.key == f"{directory}/{name}"
            assert store.delete(f"{directory}/{name}") is True
        assert store.list(directory) == []

    def test_many_keys_and_a_large_value_are_given_whole(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        keys = [f"{directory}/{number:03}" for number in range(300)]
        for done in [threads.submit(store.put, key, key) for key in keys]:
            done.result(self.patience)
        assert [(pair.key, pair.value.decode()) for pair in store.list(directory)] == [
            (key, key) for key in keys
        ]
        large = bytes(range(256)) * 400
        large = large[: int(min(len(large), store.core.backend.maximum_value_size))]
        assert store.put(f"{directory}/large", large).value == large
        pair = store.get(f"{directory}/large")
        assert pair is not None
        assert pair.value == large
        store.delete_tree(directory)
        assert store.list(directory) == []

    def test_a_key_may_be_a_directory_too(self, store: Store, directory: str) -> None:
        store.put(f"{directory}/a", "1")
        store.put(f"{directory}/a/b", "2")
        assert [pair.value for pair in store.list(directory)] == [b"1", b"2"]
        assert store.delete(f"{directory}/a") is True
        assert [pair.key for pair in store.list(directory)] == [f"{directory}/a/b"]

    @pytest.mark.parametrize("key", ["", "/", "a//b", "a/../b", "a/./b", "a\x00b", b"bytes"])
    def test_a_bad_key_is_refused_with_advice(self, store: Store, key: str) -> None:
        for act in (store.get, store.exists, store.delete, store.delete_tree):
            with pytest.raises(ConfigurationError, match="key"):
                act(key)
        with pytest.raises(ConfigurationError, match="key"):
            store.put(key, "x")

    def test_a_closed_store_says_so_and_may_be_closed_again(
        self, store: Store, directory: str
    ) -> None:
        store.close()
        store.close()
        with pytest.raises(HandleClosed, match="make a new one"):
            store.get(f"{directory}/key")


class TtlConformance(Conformance):
    needs = frozenset({Capability.KV, Capability.TTL})

    def test_a_key_with_a_ttl_lapses(self, store: Store, other: Store, directory: str) -> None:
        began = store.clock.now()
        store.put(f"{directory}/key", "x", ttl=self.ttl)
        assert other.exists(f"{directory}/key")
        eventually(lambda: not other.exists(f"{directory}/key"), self.lapse, "the lapse")
        assert store.clock.now() >= began + self.ttl, "it lapsed too early"
        assert store.list(directory) == []

    def test_a_key_that_is_put_again_lives_on(self, store: Store, directory: str) -> None:
        clock = store.clock
        began = clock.now()
        while clock.now() < began + 2.5 * self.ttl:
            store.put(f"{directory}/key", "x", ttl=self.ttl)
            threading.Event().wait(self.ttl / 10)
            assert store.exists(f"{directory}/key")

    def test_a_put_without_a_ttl_makes_it_stay(self, store: Store, directory: str) -> None:
        store.put(f"{directory}/key", "x", ttl=self.ttl)
        store.put(f"{directory}/key", "y")
        store.put(f"{directory}/sign", "x", ttl=self.ttl)
        eventually(lambda: not store.exists(f"{directory}/sign"), self.lapse, "the lapse")
        assert store.exists(f"{directory}/key")

    def test_a_bad_ttl_is_refused_with_advice(self, store: Store, directory: str) -> None:
        minimum = store.core.backend.minimum_ttl
        for ttl in (0, -1, float("nan"), *([minimum / 2] if minimum else [])):
            with pytest.raises(ConfigurationError, match="ttl"):
                store.put(f"{directory}/key", "x", ttl=ttl)


class CompareAndSwapConformance(Conformance):
    needs = frozenset({Capability.KV, Capability.CAS})

    def test_without_previous_it_only_creates(self, store: Store, directory: str) -> None:
        key = f"{directory}/key"
        created = store.atomic_put(key, "1")
        assert store.get(key) == created
        with pytest.raises(KeyExists):
            store.atomic_put(key, "2")
        assert store.get(key) == created

    def test_with_previous_it_writes_only_what_is_unchanged(
        self, store: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        first = store.atomic_put(key, "1")
        second = store.atomic_put(key, "2", first)
        assert second.index > first.index
        with pytest.raises(KeyModified):
            store.atomic_put(key, "3", first)
        with pytest.raises(KeyModified):
            store.atomic_delete(key, first)
        assert store.get(key) == second
        store.atomic_delete(key, second)
        assert store.get(key) is None
        with pytest.raises(KeyModified):
            store.atomic_put(key, "4", second)
        with pytest.raises(KeyModified):
            store.atomic_delete(key, second)

    def test_a_key_deleted_and_made_again_is_not_the_same(
        self, store: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        first = store.atomic_put(key, "same")
        store.delete(key)
        again = store.atomic_put(key, "same")
        assert again.index != first.index
        with pytest.raises(KeyModified):
            store.atomic_put(key, "new", first)

    def test_any_pair_that_the_store_gave_serves_as_previous(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        store.put(key, "1")
        (listed,) = other.list(directory)
        store.atomic_put(key, "2", listed)
        if Capability.WATCH in store.capabilities:
            with other.watch(key) as states:
                watched = next(states)
            assert watched is not None
            store.atomic_put(key, "3", watched)
        read = other.get(key)
        assert read is not None
        store.atomic_delete(key, read)
        for act in (
            lambda: store.atomic_put(key, "4", read),
            lambda: store.atomic_delete(key, read),
        ):
            with pytest.raises(KeyModified):
                act()
            assert store.get(key) is None, "a failed swap has made the key"

    def test_a_swap_may_give_a_ttl_and_a_lapsed_key_is_an_absent_one(
        self, store: Store, directory: str
    ) -> None:
        if Capability.TTL not in store.capabilities:
            pytest.skip("the backend does not offer ttl")
        key = f"{directory}/key"
        created = store.atomic_put(key, "1", ttl=self.ttl)
        renewed = store.atomic_put(key, "2", created, ttl=self.ttl)
        eventually(lambda: not store.exists(key), self.lapse, "the lapse")
        with pytest.raises(KeyModified):
            store.atomic_put(key, "3", renewed)
        made_again = store.atomic_put(key, "4")
        assert made_again.index > renewed.index

    def test_concurrent_swaps_lose_nothing(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        key = f"{directory}/counter"
        store.put(key, "0")

        def add(through: Store) -> None:
            for _ in range(10):
                while True:
                    pair = through.get(key)
                    assert pair is not None
                    try:
                        through.atomic_put(key, str(int(pair.value) + 1), pair)
                    except KeyModified:
                        continue
                    break

        for done in [threads.submit(add, each) for each in (store, other) * 4]:
            done.result(10 * self.patience)
        last = store.get(key)
        assert last is not None
        assert last.value == b"80"

    def test_of_many_creators_one_succeeds(
        self, store: Store, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        def create(through: Store) -> bool:
            try:
                through.atomic_put(f"{directory}/key", "x")
            except KeyExists:
                return False
            return True

        results = [threads.submit(create, each) for each in (store, other) * 8]
        assert sum(each.result(self.patience) for each in results) == 1


class WatchConformance(Conformance):
    needs = frozenset({Capability.KV, Capability.WATCH})

    def test_the_present_state_comes_first_and_deletions_are_told(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        with store.watch(key) as states:
            assert next(states) is None
            first = other.put(key, "1")
            assert next(states) == first
            assert other.delete(key)
            assert next(states) is None
            again = other.put(key, "2")
            assert next(states) == again
            with other.watch(key) as late:
                assert next(late) == again

    def test_the_last_state_is_never_missed(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        with store.watch(key) as states:
            next(states)
            for number in range(200):
                last = other.put(key, str(number))
            assert self.until_told(states, lambda pair: pair == last) == last

    def test_two_watches_of_one_key_are_both_told_and_end_apart(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        with store.watch(key) as first:
            assert next(first) is None
            with store.watch(key) as second:
                assert next(second) is None
                written = other.put(key, "1")
                assert next(first) == next(second) == written
            written = other.put(key, "2")
            assert self.until_told(first, lambda pair: pair == written) == written

    def test_no_state_is_told_twice_and_none_after_a_newer_one(
        self, store: Store, other: Store, directory: str
    ) -> None:
        key = f"{directory}/key"
        indexes = []
        with store.watch(key) as states:
            next(states)
            for number in range(50):
                last = other.put(key, str(number))
            pair = None
            while pair != last:
                pair = next(states)
                assert pair is not None
                indexes.append(pair.index)
        assert indexes == sorted(set(indexes))

    def test_closing_the_store_ends_a_watch_that_waits(
        self, other: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        states = other.watch(f"{directory}/key")
        next(states)
        waiting = threads.submit(lambda: list(states))
        other.close()
        assert waiting.result(self.patience) == []

    def test_another_key_is_not_told(self, store: Store, other: Store, directory: str) -> None:
        with store.watch(f"{directory}/key") as states:
            next(states)
            other.put(f"{directory}/key2", "x")
            other.put(f"{directory}/key/below", "x")
            mine = other.put(f"{directory}/key", "x")
            assert next(states) == mine

    def test_a_tree_is_told_as_list_gives_it(
        self, store: Store, other: Store, directory: str
    ) -> None:
        tree = f"{directory}/tree"
        with store.watch_tree(tree) as trees:
            assert next(trees) == []
            for change in (
                lambda: other.put(f"{tree}/b", "1"),
                lambda: other.put(f"{tree}/a/deep", "2"),
                lambda: other.put(f"{tree}/b", "changed"),
                lambda: other.delete(f"{tree}/b"),
                lambda: other.delete_tree(tree),
            ):
                other.put(f"{directory}/treeX", "a sibling")
                change()
                self.until_told(trees, other.list(tree).__eq__)

    def test_closing_ends_a_watch_that_waits(
        self, store: Store, directory: str, threads: ThreadPoolExecutor
    ) -> None:
        states = store.watch(f"{directory}/key")
        next(states)
        waiting = threads.submit(lambda: list(states))
        states.close()
        states.close()
        assert waiting.result(self.patience) == []

    def test_a_lapse_is_told(self, store: Store, other: Store, directory: str) -> None:
        if Capability.TTL not in store.capabilities:
            pytest.skip("the backend does not offer ttl")
        with store.watch(f"{directory}/key") as states:
            next(states)
            other.put(f"{directory}/key", "x", ttl=self.ttl)
            assert next(states) is not None
            assert self.until_told(states, lambda pair: pair is None, self.lapse) is None
