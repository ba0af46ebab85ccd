"""Metrics for Prometheus: what elections did, and how they stand at the moment of the question."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import ConfigurationError, MissingExtra
from .events import (
    Elected,
    Event,
    LeaderChanged,
    LeaseRenewed,
    Released,
    StoreTrouble,
    TermEnded,
    Withdrawn,
    WorkOverran,
)

try:
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Histogram, generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
    from prometheus_client.registry import CollectorRegistry as CollectorRegistry
except ImportError as error:
    raise MissingExtra(
        f"metrics need a package that is not installed ({error}): pip install 'leadership[metrics]'"
    ) from error

if TYPE_CHECKING:
    from .core import Core
    from .store import StoreBase

OTHER = "(other)"
"""The label of all keys beyond the first `max_keys`."""

_LABELS = ("key", "backend")
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts what happens in the stores that it watches, labelled by key and backend.

    Times are in seconds. A key's label is "" for what concerns the whole
    store, such as a lease that several elections share. The gauges are
    computed at each scrape, by the clock, like `is_leader()`.

    Args:
        registry: where the metrics are registered; prometheus_client's own if None.
        max_keys: how many keys get a label of their own; the rest shares `OTHER`,
            so that an application with ever new keys does not fill a time-series database.

    Raises:
        ConfigurationError: there is one on this registry already.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, max_keys: int = 100) -> None:
        if not max_keys >= 0:
            raise ConfigurationError(f"max_keys={max_keys}: give a number from 0 on")
        self._registry = REGISTRY if registry is None else registry
        self._max_keys = max_keys
        self._keys: set[str] = set()
        self._cores: weakref.WeakSet[Core] = weakref.WeakSet()
        self._seen: set[tuple[str, str]] = set()
        try:
            self._register(self._registry)
        except ValueError as error:
            raise ConfigurationError(
                "this registry has these metrics already: make one Metrics, "
                "and let it watch all your stores"
            ) from error

    def _register(self, registry: CollectorRegistry) -> None:
        counter = functools.partial(Counter, registry=registry)
        histogram = functools.partial(Histogram, registry=registry)
        self._transitions = counter(
            "leadership_transitions",
            "Terms of this process that began (to=leader) or ended (to=follower).",
            (*_LABELS, "to"),
        )
        self._hand_over = histogram(
            "leadership_hand_over_seconds",
            "From the end of a term of this process until the key was free: "
            "its work has ended, and the store has confirmed the release.",
            _LABELS,
            buckets=_LONG,
        )
        self._leaderless = histogram(
            "leadership_leaderless_seconds",
            "From no leader to the next one, as a follower in this process was told.",
            _LABELS,
            buckets=_LONG,
        )
        self._renewal = histogram(
            "leadership_renewal_seconds",
            "From the sending of a lease's renewal to its confirmation.",
            _LABELS,
            buckets=_SHORT,
        )
        self._errors = counter(
            "leadership_store_errors", "Requests to the store that failed.", _LABELS
        )
        self._overran = counter(
            "leadership_work_overran",
            "Terms whose work had not ended at the deadline: two may have been at work.",
            _LABELS,
        )
        registry.register(_Standing(self))

    def watch(self, store: StoreBase) -> None:
        """Count what happens in `store` from now on; a store that is watched already stays so."""
        core = store.core
        if core not in self._cores:
            self._cores.add(core)
            store.add_hook(_Watched(self, core.backend.address.scheme).told)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics of the registry in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def label(self, key: str) -> str:
        """The label of `key`: itself, or `OTHER` when others have taken all places."""
        if key and key not in self._keys:
            if len(self._keys) >= self._max_keys:
                return OTHER
            self._keys.add(key)
        return key

    def standing(self) -> dict[tuple[str, str], tuple[int, float]]:
        """For each label and backend: how many elections we lead now, and seconds left at least."""
        standing: dict[tuple[str, str], tuple[int, float]] = dict.fromkeys(
            list(self._seen), (0, 0.0)
        )
        for core in list(self._cores):
            for run in list(core.runs):
                place = (self.label(run.wish.key), core.backend.address.scheme)
                led, left = standing.get(place, (0, 0.0))
                term = run.term
                if term is not None and term.is_valid():
                    left = min(left, term.remaining()) if led else term.remaining()
                    led += 1
                standing[place] = (led, left)
        # Whoever was seen once is told as 0 later, rather than gone.
        self._seen.update(standing)
        return standing


class _Standing(Collector):
    """The gauges."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        leader = GaugeMetricFamily(
            "leadership_leader",
            f"1 while this process leads, else 0; for {OTHER} how many elections it leads.",
            labels=_LABELS,
        )
        left = GaugeMetricFamily(
            "leadership_lease_seconds_left",
            f"Until the term ends unless renewed, 0 without a term; for {OTHER} the least.",
            labels=_LABELS,
        )
        for place, (led, seconds) in sorted(self._metrics.standing().items()):
            leader.add_metric(place, led)
            left.add_metric(place, seconds)
        yield leader
        yield left

    def describe(self) -> Iterator[GaugeMetricFamily]:
        # Without it a registry would collect, to learn our names.
        yield GaugeMetricFamily("leadership_leader", "")
        yield GaugeMetricFamily("leadership_lease_seconds_left", "")


class _Watched:
    """One store's events, told on the hooks' thread."""

    def __init__(self, metrics: Metrics, backend: str) -> None:
        self._metrics = metrics
        self._backend = backend
        self._ended_at: dict[str, float] = {}
        self._leaderless_since: dict[str, float] = {}

    def told(self, event: Event) -> None:
        metrics, key, at = self._metrics, event.key, event.at
        place = (metrics.label(key), self._backend)
        match event:
            case Elected():
                metrics._transitions.labels(*place, "leader").inc()
            case TermEnded():
                metrics._transitions.labels(*place, "follower").inc()
                self._ended_at[key] = at
            case Released():
                ended_at = self._ended_at.pop(key, None)
                if ended_at is not None:
                    metrics._hand_over.labels(*place).observe(at - ended_at)
            case Withdrawn():
                self._ended_at.pop(key, None)
            case LeaderChanged(value=None):
                # Other followers of the same key tell the same; of keys without a label of
                # their own nothing is kept, for there may be any number of them.
                if place[0] != OTHER:
                    self._leaderless_since.setdefault(key, at)
            case LeaderChanged():
                since = self._leaderless_since.pop(key, None)
                if since is not None:
                    metrics._leaderless.labels(*place).observe(at - since)
            case LeaseRenewed(round_trip=seconds):
                metrics._renewal.labels(*place).observe(seconds)
            case StoreTrouble():
                metrics._errors.labels(*place).inc()
            case WorkOverran():
                metrics._overran.labels(*place).inc()
