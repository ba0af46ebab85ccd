"""The durations of the peers protocol, and the inequalities between them that safety rests on."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError

LARGEST_LEASE_CEILING = 30.0
"""Seconds. No node of any configuration promises for longer."""

_TERM_EPOCH = 1_577_836_800_000
"""2020-01-01 UTC in milliseconds, where terms begin to count."""

FAR_AHEAD = 1 << 20
"""How many terms above its own a node accepts without looking at its wall clock."""


def floor_term(wall_milliseconds: float) -> int:
    """The smallest term that may be campaigned for at this wall time; stays below 2**53 until 2089.

    A term never follows from the wall clock alone: promises decide who may
    lead. The floor keeps terms rising where all memory of them was lost.
    """
    return max(0, int(wall_milliseconds) - _TERM_EPOCH) << 12


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds, on clocks that count suspend.

    The first three and the drift must be the same on all members: they are
    part of the configuration's hash, so that members which differ refuse each other.

    Attributes:
        lease_ceiling: the longest promise that any node gives, and so the largest ttl.
        vote_window: votes that arrive later than this after they were asked for do not count.
        max_clock_drift: how far the rate of any clock may be from true time (0.01 is 1 %).
        heartbeat: pause between two renewals; three must be able to fail within a term's validity.
        guard: taken off each term's validity, for timers that fire late and for the work to end.
        backoff: largest random delay before a campaign; about ten round trips per member.
        wall_clock_skew: how far the members' wall clocks may differ, which counts only when
            a majority forgot its terms (all restarted without a stored state).
        wall_clock_limit: terms further than this ahead of the own wall clock are refused.
        earlier_lease_ceiling: the largest lease ceiling that this node may have run with before
            it was restarted; where a state is stored, that tells it. None: the present one is
            the only one that this cluster's name ever had.

    Raises:
        ConfigurationError: they contradict each other.
    """

    lease_ceiling: float = 5.0
    vote_window: float = 1.0
    max_clock_drift: float = 0.01
    heartbeat: float = 0.2
    guard: float = 0.05
    backoff: float = 0.15
    wall_clock_skew: float = 2.0
    wall_clock_limit: float = 86_400.0
    earlier_lease_ceiling: float | None = None

    def __post_init__(self) -> None:
        for name in ("lease_ceiling", "vote_window", "heartbeat", "guard", "backoff"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be above 0 seconds: {getattr(self, name)}")
        for name in ("wall_clock_skew", "wall_clock_limit"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name} must not be negative: {getattr(self, name)}")
        if not 0 <= self.max_clock_drift < 0.5:
            raise ConfigurationError(
                f"max_clock_drift is a share, from 0 to below 0.5: {self.max_clock_drift}"
            )
        largest = max(self.earlier_lease_ceiling or 0, self.lease_ceiling)
        if not largest <= LARGEST_LEASE_CEILING:
            raise ConfigurationError(
                f"a lease ceiling is at most {LARGEST_LEASE_CEILING} s, not {largest}: each "
                "restarted node must stay silent for that long"
            )
        if self.vote_window > self.lease_ceiling:
            raise ConfigurationError(
                f"vote_window ({self.vote_window} s) must not be longer than lease_ceiling "
                f"({self.lease_ceiling} s)"
            )
        if self.wall_clock_skew > self.wall_clock_limit:
            raise ConfigurationError(
                f"wall_clock_limit ({self.wall_clock_limit} s) must not be shorter than "
                f"wall_clock_skew ({self.wall_clock_skew} s)"
            )
        self.check_ttl(self.lease_ceiling)

    def check_ttl(self, ttl: float) -> None:
        """Whether terms of this ttl can be promised and renewed.

        Raises:
            ConfigurationError: it is over the ceiling, or too short for the heartbeat.
        """
        if ttl > self.lease_ceiling:
            raise ConfigurationError(
                f"a ttl of {ttl} s is longer than these peers promise: raise lease_ceiling "
                f"({self.lease_ceiling} s) on all of them, or use a shorter ttl"
            )
        if self.heartbeat * 4 > self.validity(ttl):
            shortest = (self.heartbeat * 4 + self.guard) / self._slowest_share
            raise ConfigurationError(
                f"a ttl of {ttl} s leaves no room for three lost heartbeats of "
                f"{self.heartbeat} s: use a ttl of {shortest:.3g} s or more, or a shorter heartbeat"
            )

    @property
    def _slowest_share(self) -> float:
        return (1 - self.max_clock_drift) / (1 + self.max_clock_drift)

    def validity(self, promised: float) -> float:
        """Seconds that a leader believes, from the sending on, in a promise of `promised` seconds.

        The leader's clock may run slow and the acceptor's fast. Counted from
        the sending, the leader's last instant comes before the promise ends:
        validity / (1 - drift) <= promised / (1 + drift).
        """
        return promised * self._slowest_share - self.guard

    def outlasting(self, seconds: float) -> float:
        """How long to wait on the own clock until `seconds` have passed on any other."""
        return seconds / self._slowest_share

    def silence(self, stored_ceiling: float | None) -> float:
        """Seconds for which a restarted node grants nothing.

        Its promises (the longest that it may have given) have ended by then,
        and so has each vote round that counted an answer from before.
        """
        earlier = stored_ceiling if stored_ceiling is not None else self.earlier_lease_ceiling
        ceiling = max(self.lease_ceiling, earlier or 0)
        return ceiling + self.outlasting(self.vote_window)

    @property
    def idle_heartbeat(self) -> float:
        """Pause between two heartbeats of a node that leads nothing."""
        return 4 * self.heartbeat
