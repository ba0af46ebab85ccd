"""`leadership proxy`: a reverse proxy before the processes of one election."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from . import Follower, aio, new_store
from .commands import ConnectTimeout, Key, Url, _connect
from .errors import ConfigurationError
from .events import Event, Hook, LeaderChanged, LeaderUnroutable, StoreRecovered, StoreTrouble
from .page_command import app as app
from .reporting import Reporter
from .signals import telling_signals

if TYPE_CHECKING:
    from .router import Policy


@app.command(
    epilog="""Example:

\b
    leadership proxy --store etcd://127.0.0.1:2379 --key service/leader --listen 0.0.0.0:8080

\b
Exit status:
    2       bad input, the store was not reached, or the address cannot be listened at
    128+N   we were sent signal N: 130 SIGINT, 143 SIGTERM
"""
)
def proxy(
    url: Url,
    key: Key,
    listen: Annotated[str, typer.Option(metavar="H:P", help="Where clients find us.")],
    redirect: Annotated[
        bool, typer.Option("--redirect", help="Answer 307 instead of forwarding.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            metavar="S", help="Seconds that a request waits for a leader, until it gets 503."
        ),
    ] = 30.0,
    finish: Annotated[
        float,
        typer.Option(
            metavar="S", help="Seconds that a former leader has to answer, once another leads."
        ),
    ] = 10.0,
    trust_forwarded: Annotated[
        bool,
        typer.Option(
            "--trust-forwarded", help="Believe Forwarded and X-Forwarded-* of those who ask us."
        ),
    ] = False,
    grace: Annotated[
        float, typer.Option(metavar="S", help="Seconds for what is under way when we are ended.")
    ] = 10.0,
    connect_timeout: ConnectTimeout = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report on stderr as JSON, one object a line.")
    ] = False,
) -> int:
    """Forward HTTP and WebSockets to the leader, whose value is its address.

    While there is no leader a request waits for one, and gets 503 with
    Retry-After when there is none in time. What was sent to a leader that
    broke off is sent to the next one only if its method is idempotent; any
    other request gets one 502. A server that does not lead, and is asked all
    the same, answers 421: then the next one is asked.
    """
    # What speaks HTTP takes longer to import than all else: the other commands do without.
    from .route_target import split_listen
    from .router import Policy

    if not grace >= 0:
        raise ConfigurationError(f"grace={grace}: give seconds from 0 on")
    split_listen(listen)
    policy = Policy(
        mode="redirect" if redirect else "forward",
        wait=wait,
        finish=finish,
        trust_forwarded=trust_forwarded,
    )
    reporter = Reporter(as_json)
    try:
        with new_store(url, hooks=[_telling(reporter)]) as store:
            Follower(store, key)
            _connect(store, key, connect_timeout)
            return asyncio.run(_serve(aio.Store(store.core), key, listen, policy, grace, reporter))
    finally:
        reporter.close()


async def _serve(
    store: aio.Store, key: str, listen: str, policy: Policy, grace: float, reporter: Reporter
) -> int:
    from .proxy import Proxy

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def told(number: signal.Signals) -> None:
        loop.call_soon_threadsafe(end, 128 + number)

    async with aio.Follower(store, key) as follower:
        server = Proxy(follower, listen, policy)
        await server.start()
        with telling_signals(told, signal.SIGINT, signal.SIGTERM):
            reporter.say("listening", f"listening at {listen}", listen=listen)
            try:
                return await ended
            finally:
                await server.close(grace)


def _telling(reporter: Reporter) -> Hook:
    def hook(event: Event) -> None:
        match event:
            case LeaderChanged(value=value, token=token):
                sentence = "no leader is known" if value is None else f"{value} leads"
                reporter.say("leader", sentence, leader=value, token=token, at=event.at)
            case LeaderUnroutable(error=error):
                reporter.say("unroutable", error, error=error, at=event.at)
            case StoreTrouble(error=error, retry_in=pause):
                sentence = f"{error}; next try in {pause:.1f} s"
                reporter.say("store-trouble", sentence, error=error, at=event.at)
            case StoreRecovered():
                reporter.say("store-recovered", "the store answers again", at=event.at)

    return hook
