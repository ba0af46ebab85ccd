"""The commands of `leadership`: their options, and what they print."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from . import Candidate, Follower, Leader, LeaderState, Store, completion, new_store
from .cli import discard_output
from .errors import (
    ConfigurationError,
    LeadershipError,
    LeaderUnknown,
    MissingExtra,
    StoreUnavailable,
)
from .reporting import Reporter, printable
from .signals import telling_signals

if TYPE_CHECKING:
    from .guardian import Guardian

NONE_KNOWN = 1
"""The exit status of `leadership leader` when there is none."""

app = typer.Typer(
    help="Leader election on etcd and other stores: run a command only while this "
    "machine leads, and see who leads.",
    epilog="Example: leadership leader --store etcd://127.0.0.1:2379 --key service/leader",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Url = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="LEADERSHIP_STORE",
        metavar="URL",
        help="The store, such as etcd://HOST:PORT,HOST:PORT.",
        show_default=False,
        autocompletion=completion.stores,
    ),
]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="KEY",
        help="The election, such as service/leader.",
        autocompletion=completion.keys,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ConnectTimeout = Annotated[
    float,
    typer.Option(
        "--connect-timeout", metavar="S", help="Give up when the store is not reached within S s."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"leadership {version('leadership')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""Example:

\b
    leadership run --store etcd://127.0.0.1:2379 --key service/leader --id "$HOSTNAME" -- ./serve

\b
Exit status:
    CMD's own   CMD ended by itself (128+N: by signal N); the key is released
    2           bad input, or the store was not reached or refuses
    3           with --once: the term was lost before CMD ended
    126, 127    CMD cannot be executed, was not found
    128+N       we were sent signal N: 130 SIGINT, 143 SIGTERM, 129 SIGHUP
""",
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", show_default=False)],
    url: Url,
    key: Key,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="This candidate, in logs.")],
    ttl: Annotated[
        float, typer.Option(metavar="S", help="Seconds after our death until another may lead.")
    ] = 15.0,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="V",
            help="What followers are told: usually an address. ID if not given.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Seconds between SIGTERM and SIGKILL. A third of the ttl, at most 10, "
            "if not given.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End with the first term, instead of contending again.")
    ] = False,
    health: Annotated[
        str | None,
        typer.Option(
            metavar="H:P",
            help="Serve /leader, /follower, /healthz and /metrics over HTTP at this address.",
            show_default=False,
        ),
    ] = None,
    guarded: Annotated[
        bool,
        typer.Option(
            "--guardian/--no-guardian",
            help="Have a small process end CMD and release the key when we are dead.",
        ),
    ] = True,
    connect_timeout: ConnectTimeout = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report on stderr as JSON, one object a line.")
    ] = False,
) -> int:
    """Run CMD only while we lead.

    Waits until this candidate leads, and starts CMD with LEADERSHIP_KEY,
    LEADERSHIP_ID and LEADERSHIP_TOKEN (the fencing token) in its environment.

    When the term may end (the lease could not be renewed, SIGTERM or
    Ctrl-C), CMD's process group is sent SIGTERM, GRACE seconds later SIGKILL,
    and that always before another can lead. Only when it has ended is the key
    released. A second Ctrl-C kills at once. When the store says that the term
    is over (an operator deleted the entry) another may lead already: SIGKILL
    follows SIGTERM within half a second.

    With the guardian (Linux) CMD is all that descends from it, in whatever
    session. When we are killed, or stand still until the deadline, the
    guardian kills all that; after our death it then releases the key, so that
    another leads without waiting for the ttl.

    After a loss we contend again. When CMD ends by itself we resign and exit
    with its status.
    """
    if sys.platform == "win32":
        raise ConfigurationError("leadership run needs process groups: use Linux or macOS")
    from .guardian import guardian
    from .runner import Runner, default_grace, telling

    reporter = Reporter(as_json)
    allowed = default_grace(ttl) if grace is None else grace
    try:
        with new_store(url, hooks=[telling(reporter)]) as store:
            candidate = Candidate(
                store, key, id, ttl, value=value, grace=max(0.0, allowed), guardian=guarded
            )
            if allowed < 0:
                raise ConfigurationError(f"grace={grace!r}: give seconds from 0 to half the ttl")
            guard = guardian() if guarded and guardian().unable is None else None
            runner = Runner(
                candidate,
                command,
                grace=allowed,
                once=once,
                clock=store.clock,
                reporter=reporter,
                guardian=guard,
            )
            with ExitStack() as around:
                if health is not None:
                    around.enter_context(_serving(health, candidate, store, reporter))
                _connect(store, key, connect_timeout)
                if store.core.backend.address.scheme == "memory":
                    sentence = (
                        "memory:// is shared inside one process: nobody else takes part in this"
                    )
                    reporter.say("alone", sentence)
                if guard is not None:
                    around.enter_context(_using(guard, store))
                return runner.run()
    finally:
        reporter.close()


@app.command(
    epilog="""Example:

\b
    leadership follow --store etcd://127.0.0.1:2379 --key service/leader
"""
)
def follow(
    url: Url, key: Key, as_json: AsJson = False, connect_timeout: ConnectTimeout = 10.0
) -> int:
    """Print who leads, now and at each change, a line each, until interrupted.

    A line is the leader's value, "-" while nobody leads, and "?" while we
    are cut off from the store and cannot know. With --json: leader (null
    where there is none), token, state (known, none, unknown) and since
    (seconds on this machine's clock).

    Ends with status 130 on Ctrl-C, 143 on SIGTERM, and 0 when the reader of
    our output has gone.
    """
    with _ending_on_sigterm(), new_store(url) as store:
        follower = Follower(store, key)
        _connect(store, key, connect_timeout)
        before = ""
        ending = _Ending(follower)
        with ending.listening():
            try:
                for leader in follower.observe():
                    line = _shown(leader, as_json)
                    if line != before:
                        typer.echo(line)
                    before = line
            except BrokenPipeError:
                discard_output()
    return ending.status


@app.command(
    epilog="""Example:

\b
    leadership leader --store etcd://127.0.0.1:2379 --key service/leader --timeout 30

\b
Exit status:
    0   somebody leads
    1   nobody leads
    2   bad input, or the store was not reached or refuses
"""
)
def leader(
    url: Url,
    key: Key,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Wait up to S seconds until somebody leads.")
    ] = 0.0,
    as_json: AsJson = False,
    connect_timeout: ConnectTimeout = 10.0,
) -> int:
    """Print who leads now: the leader's value.

    With --json: leader (null where there is none), token, state and since.
    """
    if not timeout >= 0:
        raise ConfigurationError(f"timeout={timeout}: give seconds from 0 on")
    with _ending_on_sigterm(), new_store(url) as store:
        follower = Follower(store, key)
        _connect(store, key, connect_timeout)
        seen = _leader_within(follower, timeout)
    if seen.state is LeaderState.UNKNOWN:
        raise LeaderUnknown("who leads is not known: the store does not answer; try again")
    if as_json or seen.value is not None:
        typer.echo(_shown(seen, as_json))
    return NONE_KNOWN if seen.value is None else 0


@app.command(
    epilog="""Examples:

\b
    leadership demo
    leadership demo --store etcd://127.0.0.1:2379
"""
)
def demo(
    url: Annotated[
        str,
        typer.Option(
            "--store",
            envvar="LEADERSHIP_STORE",
            metavar="URL",
            help="A store, such as etcd://HOST:PORT, or etcd for the one on this machine; "
            "peers: no server, each process is a node.",
        ),
    ] = "peers",
    ttl: Annotated[
        float, typer.Option(metavar="S", help="Seconds after a death until another may lead.")
    ] = 2.0,
    connect_timeout: ConnectTimeout = 10.0,
) -> int:
    """Show an election of three processes: who leads, and how long hand-overs take.

    Kills the leader with SIGKILL, then has the next one resign, and cleans up.
    Ends with status 0, and with 1 when something did not happen in time.
    """
    from . import demo as show

    if not ttl > 0:
        raise ConfigurationError(f"ttl={ttl}: give seconds above 0")
    with_no_server = url == "peers"
    if with_no_server:
        url, urls = show.peers_urls(ttl)
    else:
        url = "etcd://127.0.0.1:2379" if url == "etcd" else url
        urls = dict.fromkeys(show.NAMES, url)
    with _ending_on_sigterm(), new_store(url) as store:
        play = show.Demo(store, urls, ttl)
        if not with_no_server:
            _connect(store, play.key, connect_timeout)
        return play.run()


@contextmanager
def _serving(listen: str, candidate: Candidate, store: Store, reporter: Reporter) -> Iterator[None]:
    """Answer for the candidate over HTTP for the time of the block."""
    from .health import Health
    from .health_server import HealthServer

    metrics = None
    with suppress(MissingExtra):
        from .metrics import CollectorRegistry, Metrics

        metrics = Metrics(CollectorRegistry())
        metrics.watch(store)
    with HealthServer(Health(candidate, metrics=metrics), listen) as server:
        sentence = f"health is served at http://{server.address}/"
        reporter.say("health", sentence, address=server.address)
        yield


@contextmanager
def _using(guard: Guardian, store: Store) -> Iterator[None]:
    """Keep the guardian for the time of the block."""
    use = guard.use(store.core.unguarded)
    try:
        yield
    finally:
        with suppress(TimeoutError):
            guard.leave(use).result(2.0)


def _connect(store: Store, key: str, timeout: float) -> None:
    """Make sure that the store answers, and lets us see `key`, trying for `timeout` seconds."""
    if not timeout > 0:
        raise ConfigurationError(f"connect-timeout={timeout}: give seconds above 0")
    core, clock = store.core, store.clock
    deadline = clock.now() + timeout
    pause = threading.Event()
    refused: Exception | None = None
    while (left := deadline - clock.now()) > 0:
        try:
            core.call_within(left, _look, store, key)
            return
        except TimeoutError:
            break
        except StoreUnavailable as error:
            refused = error
            pause.wait(min(0.2, max(0.0, deadline - clock.now())))
    where = core.backend.address
    raise StoreUnavailable(
        f"could not reach {where.scheme}://{','.join(where.endpoints)} within {timeout:g} s: "
        f"{refused or 'no answer'}"
    )


async def _look(store: Store, key: str) -> None:
    # What we are about to ask anyway: rights on another key may be lacking.
    async with aclosing(store.core.backend.observe(key)) as states:
        await anext(states)


def _leader_within(follower: Follower, timeout: float) -> Leader:
    """Who leads now, or is the first to, within `timeout` seconds."""
    stream = follower.observe()
    last = seen = next(stream)
    if timeout > 0:
        # Its end is the only time limit that a stream knows.
        limit = threading.Timer(timeout, follower.stop)
        limit.daemon = True
        limit.start()
        while seen.state is not LeaderState.KNOWN:
            following = next(stream, None)
            if following is None:
                break
            last = seen = following
        limit.cancel()
    stream.close()
    return last


def _shown(leader: Leader, as_json: bool) -> str:
    if as_json:
        return json.dumps(
            {
                "leader": leader.value,
                "token": leader.token,
                "state": leader.state.value,
                "since": leader.since,
            }
        )
    if leader.state is LeaderState.UNKNOWN:
        return "?"
    return "-" if leader.value is None else printable(leader.value)


class _Ending:
    """Stops a follower when a signal says so, or when the reader of our stdout goes.

    Attributes:
        status: the exit status that follows from it.
    """

    def __init__(self, follower: Follower) -> None:
        self.status = 0
        self._follower = follower
        self._asked = threading.Event()
        self._over = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        threading.Thread(target=self._stop, name="leadership-ending", daemon=True).start()
        # A reader that goes shall be noticed at once, not only when there is something to write.
        if sys.stdout is None:
            self._asked.set()
        elif hasattr(select, "poll") and not sys.stdout.isatty():
            threading.Thread(target=self._watch, name="leadership-reader", daemon=True).start()
        try:
            with telling_signals(self._told, signal.SIGINT, signal.SIGTERM):
                yield
        finally:
            self._over.set()

    def _told(self, number: signal.Signals) -> None:
        self.status = 128 + number
        if self._asked.is_set():
            # Somebody has no patience, and nothing of ours is at the store.
            os._exit(self.status)
        self._asked.set()

    def _watch(self) -> None:
        poll = select.poll()
        # Nothing is asked for: errors are told all the same, such as the other end's closing.
        poll.register(sys.stdout.fileno(), 0)
        poll.poll()
        self._asked.set()

    def _stop(self) -> None:
        self._asked.wait()
        # Again, for the observation may not have begun when the signal came.
        while not self._over.is_set():
            with suppress(LeadershipError):
                self._follower.stop()
            self._over.wait(0.1)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM, as Ctrl-C does, leaves by an exception, so that all is closed in good order."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
