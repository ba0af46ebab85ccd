"""Every exception that `leadership` raises, in one tree rooted at `LeadershipError`.

Each message says what to do. Time-outs of blocking calls are Python's own
`TimeoutError`. A backend translates its client's exceptions into this tree
at its edge: no foreign exception passes.
"""

from __future__ import annotations


class LeadershipError(Exception):
    """The root of the tree: catch this to catch all that this library raises."""


class ConfigurationError(LeadershipError, ValueError):
    """What was asked for can never work: bad key, ttl, option, address."""


class UnknownBackend(ConfigurationError):
    """No installed backend has this scheme."""


class MissingExtra(ConfigurationError, ImportError):
    """The backend is known, but the packages that it needs are not installed."""


class NotSupported(LeadershipError):
    """The call is outside the capabilities of this backend."""


class AlreadyRunning(LeadershipError):
    """The candidate or lock already has an active run."""


class HandleClosed(LeadershipError):
    """The store was closed: make a new one."""


class ForkedHandle(HandleClosed):
    """The handle was made before a fork, and this is the child: make a new store here."""


class NotLeader(LeadershipError):
    """The call needs leadership (or the lock), and we do not have it."""


class LeadershipLost(NotLeader):
    """The term is over: stop what only a leader may do."""


class NoSuccessor(LeadershipError):
    """`resign(to=...)` names nobody who is known to wait: nothing was given up."""


class LeaderUnknown(LeadershipError):
    """The store cannot be asked now, and nothing recent enough is known."""


class StoreError(LeadershipError):
    """The store refused or could not be reached."""


class StoreUnavailable(StoreError):
    """The store did not answer, or said that it cannot now: worth another try.

    After a write the outcome is unknown: it may or may not have happened.
    """


class AccessDenied(StoreError):
    """The store knows us not, or does not let us: check user, password, token, rights."""


class KeyExists(StoreError):
    """`atomic_put` without `previous` found the key present."""


class KeyModified(StoreError):
    """The key is not as `previous` said: somebody changed or deleted it since."""


class ValueTooLarge(StoreError, ValueError):
    """The value is over the store's limit."""


class SessionLost(StoreError):
    """The store ended our session or lease; what hung on it is gone."""
