"""What load balancers and orchestrators ask: does this process lead, is it well, its metrics.

Nothing here does I/O, so it may be answered by any server: `Health.answer`
takes a path, and returns a status and a body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from .candidate import CandidateBase
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .metrics import Metrics
    from .term import TermBase

PATHS = ("/leader", "/follower", "/healthz", "/metrics")

_OK, _NOT_FOUND, _UNAVAILABLE = 200, 404, 503
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"

NOT_RENEWED = "it leads, and its lease is not renewed"
OUTLIVED = "its term is over, and its code still works as leader"


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer with.

    Attributes:
        status: the HTTP status.
        body: of that type, never long.
        content_type: for the header of that name.
    """

    status: int
    body: bytes
    content_type: str = _JSON


class _Election(msgspec.Struct, frozen=True, omit_defaults=True):
    """One candidate in a body."""

    key: str
    id: str
    leading: bool
    token: int | None = None
    seconds_left: float | None = None
    trouble: str | None = None


class Health:
    """Answers for some candidates of this process, exactly by the clock at the call.

    - `/leader`: 200 only while this process leads, else 503;
    - `/follower`: 200 only while it does not, else 503;
    - `/healthz`: 503 only if it believes that it leads and cannot renew;
    - `/metrics`: in Prometheus' format, where `metrics` is given.

    Of several candidates `/leader` wants all to lead, `/follower` none;
    `?key=KEY` asks for one election only.

    Args:
        candidates: sync or async ones.
        metrics: what `/metrics` shows; 404 without.
    """

    def __init__(self, *candidates: CandidateBase[Any], metrics: Metrics | None = None) -> None:
        if not candidates:
            raise ConfigurationError("give the candidates to answer for: Health(candidate)")
        self._candidates = candidates
        self._metrics = metrics

    def answer(self, path: str) -> Answer:
        """The answer to a GET of `path`, which may have a query. From any thread, without I/O."""
        parts = urlsplit(path)
        if parts.path not in PATHS:
            return Answer(_NOT_FOUND, f"ask for one of {', '.join(PATHS)}\n".encode(), _TEXT)
        if parts.path == "/metrics":
            return self._exposition()
        keys = parse_qs(parts.query).get("key", [])
        asked = [each for each in self._candidates if not keys or each.key in keys]
        if not asked:
            return Answer(_NOT_FOUND, b"no candidate of this process has that key\n", _TEXT)
        elections = [_state(each) for each in asked]
        match parts.path:
            case "/leader":
                good = all(each.leading for each in elections)
            case "/follower":
                good = not any(each.leading for each in elections)
            case _:
                good = all(each.trouble is None for each in elections)
        return Answer(_OK if good else _UNAVAILABLE, msgspec.json.encode(elections) + b"\n")

    def _exposition(self) -> Answer:
        if self._metrics is None:
            return Answer(_NOT_FOUND, b"no metrics: pip install 'leadership[metrics]'\n", _TEXT)
        return Answer(_OK, *self._metrics.exposition())


def _state(candidate: CandidateBase[Any]) -> _Election:
    term: TermBase | None = candidate.term
    if term is None:
        return _Election(candidate.key, candidate.id, False)
    trouble = _trouble(term)
    if not term.is_valid():
        return _Election(candidate.key, candidate.id, False, trouble=trouble)
    return _Election(
        candidate.key, candidate.id, True, term.token, round(term.remaining(), 3), trouble
    )


def _trouble(term: TermBase) -> str | None:
    if term.is_overdue():
        return NOT_RENEWED
    return OUTLIVED if term.is_outlived() else None
