"""The faults: each breaks something, for seconds, and mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.servers.fault_proxy import Fate, Mode

from . import by_operators, on_lines, on_processes, on_servers
from .ground import Ground
from .scene import Scene, Steps
from .wall_clock import can_be_stepped

PROCESS, NETWORK, CLOCK, STORE, OPERATOR = (
    frozenset({area}) for area in ("process", "network", "clock", "store", "operator")
)

Play = Callable[[Scene, int], Steps]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        does: it in a line.
        play: the fault, for a scene and the slot that it is aimed at.
        areas: what it breaks; two faults that break the same never run at a time.
        possible: whether it can be had on a ground.
        leader: it is aimed at whoever leads, since nobody else would notice.
        alone: at a calm time, and nothing else meanwhile.
        removal: an operator takes a live leader's entry, session or rights.
    """

    name: str
    does: str
    play: Play
    areas: frozenset[str]
    possible: Callable[[Ground], bool] = lambda ground: True
    leader: bool = False
    alone: bool = False
    removal: bool = False

    @property
    def concerns_one(self) -> bool:
        """Candidate: the others have their store, and one of them can lead."""
        return not self.areas & (STORE | OPERATOR)


def _has_servers(ground: Ground) -> bool:
    return bool(ground.servers)


def _has_cluster(ground: Ground) -> bool:
    return len(ground.servers) > 1


def _is_store_itself(ground: Ground) -> bool:
    return not ground.servers


def _on_processes() -> Iterator[Kind]:
    yield Kind("killed", "SIGKILL, and a new one later", on_processes.killed, PROCESS)
    yield Kind("paused for half the ttl", "SIGSTOP, short", on_processes.paused_shortly, PROCESS)
    yield Kind(
        "paused for longer than the ttl",
        "SIGSTOP until another leads",
        on_processes.paused_for_long,
        PROCESS,
    )
    yield Kind(
        "terminated, drains", "SIGTERM: it ends its work and stops", on_processes.drained, PROCESS
    )
    yield Kind(
        "user's code blocked",
        "the leader's thread or event loop stands still for twice the ttl",
        on_processes.blocked,
        PROCESS,
        leader=True,
    )
    yield Kind(
        "interpreter seized",
        "the leader's code holds the interpreter, so that nothing renews, until another leads",
        on_processes.seized,
        PROCESS,
        leader=True,
    )
    yield Kind("resigns", "the leader gives way", on_processes.resigned, PROCESS, leader=True)
    yield Kind(
        "withdraws",
        "it stops contending, keeps its store, and comes back",
        on_processes.withdrawn,
        PROCESS,
    )
    yield Kind(
        "forked", "the leader's child asks who leads", on_processes.forked, PROCESS, leader=True
    )
    yield Kind(
        "exits without stop",
        "the leader's interpreter ends, and nothing was stopped",
        on_processes.exited,
        PROCESS,
        leader=True,
    )
    yield Kind(
        "wall clock stepped",
        "its time of day goes an hour ahead, and a day back",
        on_processes.stepped,
        CLOCK,
        lambda ground: can_be_stepped() and not ground.forgets,
    )
    # Where the candidates are the store.
    yield Kind(
        "members killed",
        "a majority of the members, or all, at once",
        on_processes.everybody_killed,
        PROCESS | STORE,
        _is_store_itself,
    )
    yield Kind(
        "majority paused",
        "a majority of the members",
        on_processes.majority_paused,
        PROCESS | STORE,
        _is_store_itself,
    )


def _on_lines() -> Iterator[Kind]:
    for name, does, play, mode in (
        ("cut, connections reset", "its connections, and each new one", on_lines.cut, Mode.RESET),
        ("half-open both ways", "nothing passes, nothing is reset", on_lines.cut, Mode.STALL),
        ("half-open towards the store", "nothing that it sends arrives", on_lines.cut, Mode.UP),
        ("half-open from the store", "nothing is answered", on_lines.cut, Mode.DOWN),
        ("200 ms of delay", "each way", on_lines.slowed, Mode.DELAY),
        ("30 % of loss", "as TCP has it: sent again, ever later", on_lines.slowed, Mode.LOSS),
    ):
        yield Kind(
            name,
            does,
            lambda scene, slot, play=play, mode=mode: play(scene, slot, mode),  # type: ignore[misc]
            NETWORK,
            lambda ground, mode=mode: all(mode in line.modes for line in ground.lines),  # type: ignore[misc]
        )
    yield Kind(
        "user's code blocked, and cut off",
        "the leader's code stands still while its term runs out",
        on_lines.blocked_and_cut,
        PROCESS | NETWORK,
        leader=True,
    )
    yield Kind(
        "two members cut from each other",
        "both still hear the third",
        on_lines.pair_cut,
        NETWORK,
        _is_store_itself,
    )
    yield Kind(
        "one server within reach",
        "the others reset its connections",
        on_lines.beside_one_server,
        NETWORK,
        _has_cluster,
    )


def _on_requests() -> Iterator[Kind]:
    for request, does, play, areas, leader in (
        ("session", "by which it makes its lease or session", on_lines.at_start, PROCESS, False),
        ("entry", "by which it enters or acquires", on_lines.at_start, PROCESS, False),
        ("renewal", "by which a leader renews", on_lines.in_term, frozenset(), True),
        ("release", "by which a leader resigns", on_lines.at_end, PROCESS, True),
        ("vote", "by which a member asks for votes", on_lines.at_succession, PROCESS, True),
        ("grant", "by which a member asks for a lease", on_lines.at_succession, PROCESS, True),
    ):
        for how, fate in (
            ("'s reply lost", Fate.REPLY_LOST),
            ("'s reply late", Fate.REPLY_LATE),
            (" unanswered, and all after it", Fate.ALL_UNANSWERED),
            (" late", Fate.REQUEST_LATE),
        ):
            yield Kind(
                f"{request}{how}",
                f"the request {does}",
                lambda scene, slot, play=play, request=request, fate=fate: play(  # type: ignore[misc]
                    scene, slot, request, fate
                ),
                areas | NETWORK,
                lambda ground, request=request: (  # type: ignore[misc]
                    request in ground.requests and all(line.catches for line in ground.lines)
                ),
                leader=leader,
            )
    yield Kind(
        "entry late, its candidate gone",
        "it is made when its candidate has withdrawn, and keeps the lease or session",
        on_lines.entry_late,
        PROCESS | NETWORK,
        _has_cluster,
    )


def _on_servers() -> Iterator[Kind]:
    yield Kind("server killed", "SIGKILL to any", on_servers.killed, STORE, _has_servers)
    yield Kind("server restarted", "in good order", on_servers.restarted, STORE, _has_servers)
    yield Kind("server paused", "SIGSTOP to any", on_servers.paused, STORE, _has_servers)
    for name, does, play in (
        ("quorum killed", "two of three, and back", on_servers.quorum_killed),
        ("quorum paused", "two of three, and back", on_servers.quorum_paused),
    ):
        yield Kind(name, does, play, STORE, _has_cluster)
    for name, does, play, areas in (
        (
            "store's leader cut off",
            "the server that leads the others hears nothing of them",
            on_servers.leader_cut,
            STORE,
        ),
        (
            "store's leader cut off with ours",
            "and our leader reaches no other server",
            on_servers.leader_cut_with_candidate,
            STORE | NETWORK,
        ),
        (
            "store's leader cut off one way",
            "it hears nothing of the others, or they nothing of it",
            on_servers.leader_cut_one_way,
            STORE,
        ),
        (
            "servers cut from each other",
            "the quorum is lost, and comes back",
            on_servers.all_cut,
            STORE,
        ),
    ):
        yield Kind(name, does, play, areas, lambda ground: ground.network is not None, leader=True)
    yield Kind(
        "server's wall clock stepped",
        "its time of day goes an hour ahead, and a day back",
        on_servers.clock_stepped,
        STORE,
        lambda ground: ground.server_clock is not None,
    )
    yield Kind(
        "auth token expires",
        "the store forgets who the leader is",
        on_servers.token_expired,
        STORE,
        lambda ground: ground.token_ttl is not None,
        leader=True,
        alone=True,
    )


def _by_operators() -> Iterator[Kind]:
    for name, does, play, possible in (
        (
            "entry removed",
            "the leader's entry is deleted",
            by_operators.entry_removed,
            _has_servers,
        ),
        (
            "session ended",
            "the leader's lease or session is ended",
            by_operators.session_ended,
            lambda ground: type(ground).end_session is not Ground.end_session,
        ),
        (
            "token deleted",
            "the leader's token is, and its next process has a new one",
            by_operators.token_deleted,
            lambda ground: ground.has_tokens,
        ),
        (
            "member changed",
            "the leading member is removed, and a new one is added",
            by_operators.member_changed,
            lambda ground: ground.has_changes,
        ),
    ):
        yield Kind(
            name,
            does,
            play,
            OPERATOR | PROCESS,
            possible,
            leader=True,
            alone=True,
            removal=True,
        )


KINDS = (*_on_processes(), *_on_lines(), *_on_requests(), *_on_servers(), *_by_operators())
