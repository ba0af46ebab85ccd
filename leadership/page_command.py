"""`leadership dashboard` and `leadership top`: all elections below a prefix, live."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from . import Store, completion, new_store
from .backend import Capability
from .checks import checked_key
from .commands import ConnectTimeout, Url, _ending_on_sigterm
from .errors import ConfigurationError, StoreUnavailable
from .members_command import app as app
from .reporting import Reporter
from .signals import telling_signals
from .survey import Survey

Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        metavar="PREFIX",
        help="Only elections below it, such as service/. All, if not given.",
        show_default=False,
        autocompletion=completion.prefixes,
    ),
]


@app.command(
    epilog="""Example:

\b
    leadership dashboard --store etcd://127.0.0.1:2379 --prefix service/ --listen 127.0.0.1:8080
"""
)
def dashboard(
    url: Url,
    prefix: Prefix = "",
    listen: Annotated[
        str,
        typer.Option(metavar="H:P", help="Where the page is served; port 0: any that is free."),
    ] = "127.0.0.1:8080",
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which browsers may ask for it, as behind a proxy; may be repeated. "
            "Addresses, localhost and the host of --listen need not be given.",
            show_default=False,
        ),
    ] = None,
    connect_timeout: ConnectTimeout = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report on stderr as JSON, one object a line.")
    ] = False,
) -> int:
    """Show all elections on a live web page.

    Who leads, under which token and since when, how long the lease still
    lasts, who waits, and the terms that were seen before. The page is not
    protected: whoever reaches the address sees it. It only reads the store,
    by one watch. Ends with status 130 on Ctrl-C, 143 on SIGTERM.
    """
    # What serves HTTP takes longer to import than all else: the other commands do without.
    from .dashboard import Dashboard

    reporter = Reporter(as_json)
    ended = threading.Event()
    status: list[int] = []

    def told(number: signal.Signals) -> None:
        status.append(128 + number)
        ended.set()

    try:
        with (
            new_store(url) as store,
            telling_signals(told, signal.SIGINT, signal.SIGTERM),
        ):
            survey = _survey(store, prefix)
            page = Dashboard(survey, listen, host or ())
            try:
                _first_look(store, survey, connect_timeout)
                store.core.call(page.start)
                where = f"http://{page.address}/"
                if not page.is_local:
                    sentence = (
                        f"whoever reaches {page.address} sees the page: it asks for no password"
                    )
                    reporter.say("exposed", sentence, address=page.address)
                reporter.say("listening", f"the page is at {where}", url=where)
                while not ended.wait(1.0):
                    pass
            finally:
                store.core.call(page.close)
        return status[0]
    finally:
        reporter.close()


@app.command(
    epilog="""Example:

\b
    leadership top --store etcd://127.0.0.1:2379 --prefix service/
"""
)
def top(url: Url, prefix: Prefix = "", connect_timeout: ConnectTimeout = 10.0) -> int:
    """Show all elections, live, in the terminal; q or Ctrl-C ends it.

    The arrow keys scroll. Where stdout is no terminal it prints one table.
    """
    from .top import show

    with _ending_on_sigterm(), new_store(url) as store:
        survey = _survey(store, prefix)
        try:
            _first_look(store, survey, connect_timeout)
            return show(store, survey)
        finally:
            store.core.call(survey.close)


def _survey(store: Store, prefix: str) -> Survey:
    store.core.need("a survey of elections", Capability.SURVEY)
    return Survey(store.core.backend, checked_key(prefix, root=True))


def _first_look(store: Store, survey: Survey, timeout: float) -> None:
    if not timeout > 0:
        raise ConfigurationError(f"connect-timeout={timeout}: give seconds above 0")
    try:
        store.core.call_within(timeout, survey.first_look)
    except TimeoutError:
        where = store.core.backend.address
        raise StoreUnavailable(
            f"could not reach {where.scheme}://{','.join(where.endpoints)} within {timeout:g} s: "
            f"{survey.trouble or 'no answer'}"
        ) from None
