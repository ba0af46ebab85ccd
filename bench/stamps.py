"""This library as an entrant that stamps each step of a hand-over, for `bench.handover`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from bench.entrants import Place, Role
from bench.ours import Ours
from bench.process import now, say
from leadership.registry import parse_address


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens in one of the two processes.

    Attributes:
        what: for the reader.
        at: MODULE:CLASS.METHOD.
        done: at its end; else at its beginning.
    """

    what: str
    at: str
    done: bool = False


_ELECTION = "leadership.election:Candidacy"
_ETCD = "leadership.backends._etcd_contender:EtcdContender"
_ZOOKEEPER = "leadership.backends._zookeeper_contender:ZooKeeperContender"
_CONSUL = "leadership.backends._consul_contender:ConsulContender"
_ENTRY = "leadership.backends._entry_contender:EntryContender"

_RESIGNS = (
    Step("the engine has the request", f"{_ELECTION}.resign"),
    Step("the term is over, all told", f"{_ELECTION}._end_term", done=True),
)
RESIGNS = {
    "etcd": (
        *_RESIGNS,
        Step("the removal begins", f"{_ETCD}.leave"),
        Step("it is handed to gRPC", "leadership.backends._etcd_connection:Connection._send"),
        Step("it is answered", f"{_ETCD}.leave", done=True),
    ),
    "zookeeper": (
        *_RESIGNS,
        Step("the removal begins", f"{_ZOOKEEPER}.leave"),
        Step("it is handed to kazoo", "kazoo.client:KazooClient.delete_async"),
        Step("it is answered", f"{_ZOOKEEPER}.leave", done=True),
    ),
    "consul": (
        *_RESIGNS,
        Step("the release begins", f"{_CONSUL}.leave"),
        Step("its transaction is sent", "leadership.backends._consul_agents:Agents.transact"),
        Step("it is answered", f"{_CONSUL}.leave", done=True),
    ),
}
"""In the process that resigns; of each the first time counts."""

_WINS = (Step("the term is made", f"{_ELECTION}._win", done=True),)
WINS = {
    "etcd": (
        Step("the event is at the other's engine", f"{_ENTRY}._look_again"),
        Step("the proof begins", f"{_ETCD}._look"),
        Step("the proof is answered", f"{_ETCD}._look", done=True),
        *_WINS,
    ),
    "zookeeper": (
        Step(
            "the event is with the other's kazoo",
            "leadership.backends._zookeeper_watches:Watches.fired",
        ),
        Step("it is at its engine", f"{_ENTRY}._look_again"),
        Step("look and proof begin", f"{_ZOOKEEPER}._look_and_prove"),
        Step("both are answered", f"{_ZOOKEEPER}._look_and_prove", done=True),
        *_WINS,
    ),
    "consul": (
        Step("the event is at the other's engine", "leadership.backends._consul_watch:Feed.take"),
        Step("the key is taken (if free)", f"{_CONSUL}._take"),
        Step("taken", f"{_CONSUL}._take", done=True),
        Step("the proof begins (if handed over)", f"{_CONSUL}._prove"),
        Step("the proof is answered", f"{_CONSUL}._prove", done=True),
        *_WINS,
    ),
}
"""In the process that leads next; of each the last time counts."""


class Stamps:
    """When one process came to each of these steps, in the order of time."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.taken: list[tuple[str, float]] = []
        for step in steps:
            self._watch(step)

    def _watch(self, step: Step) -> None:
        module, _, place = step.at.partition(":")
        owner_name, _, name = place.partition(".")
        owner = getattr(importlib.import_module(module), owner_name)
        setattr(owner, name, self._stamped(getattr(owner, name), step))

    def _stamped(self, act: Callable[..., Any], step: Step) -> Callable[..., Any]:
        def take() -> None:
            self.taken.append((step.what, now()))

        if inspect.iscoroutinefunction(act):

            @wraps(act)
            async def later(*args: Any, **kwargs: Any) -> Any:
                if not step.done:
                    take()
                result = await act(*args, **kwargs)
                if step.done:
                    take()
                return result

            return later

        @wraps(act)
        def at_once(*args: Any, **kwargs: Any) -> Any:
            if not step.done:
                take()
            result = act(*args, **kwargs)
            if step.done:
                take()
            return result

        return at_once


class Stamped(Ours):
    """This library, with a stamp at each step."""

    title = "leadership, with stamps"
    role = Role.OURS

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        scheme = parse_address(place.url, None, {}).scheme
        self._resigns, self._wins = Stamps(RESIGNS[scheme]), Stamps(WINS[scheme])

    def contend(self, elected: Callable[[], None], resigning: Callable[[], None]) -> None:
        def won() -> None:
            elected()
            say("won", stamps=dict(self._wins.taken))

        def called() -> None:
            resigning()
            self._resigns.taken.clear()

        super().contend(won, called)
        say("resigned", stamps=dict(reversed(self._resigns.taken)))
        self._wins.taken.clear()
