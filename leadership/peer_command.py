"""`leadership peer`: a node of the peers backend that runs for itself."""

from __future__ import annotations

import signal
import threading
from typing import Annotated, Any

import typer

from . import new_store
from .commands import app as app
from .errors import StoreUnavailable
from .events import (
    Event,
    Hook,
    PeerAlarm,
    PeerExposed,
    PeerMembers,
    PeerMembersDiffer,
    PeerReady,
    PeerRefused,
)
from .reporting import Reporter
from .signals import telling_signals


@app.command(
    epilog="""Example:

\b
    leadership peer --listen 10.0.0.1:7000 --members 10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000

\b
Exit status:
    2       bad input, or the address cannot be listened at
    128+N   we were sent signal N: 130 SIGINT, 143 SIGTERM
"""
)
def peer(
    listen: Annotated[
        str, typer.Option(metavar="H:P", help="This node's address, as the members list it.")
    ],
    members: Annotated[
        str,
        typer.Option(
            metavar="H:P,H:P,...",
            help="All members, this one among them. A list in --state-dir has precedence.",
        ),
    ],
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="Nodes of different names refuse each other.")
    ] = "c1",
    ttl_ceiling: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="The longest ttl of this cluster, the same on all nodes: each restarted "
            "node is silent for that long.",
        ),
    ] = 5.0,
    secret: Annotated[
        str | None,
        typer.Option(
            envvar="LEADERSHIP_SECRET",
            metavar="TEXT",
            help="Shared by all members. Better in the environment, where no other user sees it.",
            show_default=False,
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where terms and the member list are kept, so that tokens rise over any "
            "restart, and members can be changed.",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        bool,
        typer.Option(
            "--join", help="Wait to be added to the members: leadership peers add. Can stay."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report on stderr as JSON, one object a line.")
    ] = False,
) -> int:
    """Run a node that votes, and leads nothing itself.

    A cluster elects as long as more than half of its members run and reach
    each other. Each program that opens a peers:// store is a node already;
    this command adds one where no such program runs.
    """
    reporter = Reporter(as_json)
    options: dict[str, Any] = {
        "listen": listen,
        "cluster": cluster,
        "ttl_ceiling": ttl_ceiling,
        "secret": secret,
        "state_dir": state_dir,
        "join": join,
    }
    ended = threading.Event()
    status: list[int] = []

    def told(number: signal.Signals) -> None:
        status.append(128 + number)
        ended.set()

    try:
        with (
            new_store("peers", members.split(","), hooks=[_telling(reporter)], **options) as store,
            telling_signals(told, signal.SIGINT, signal.SIGTERM),
        ):
            reporter.say("starting", f"{listen} starts as a node of {cluster}", node=listen)
            try:
                store.connect()
            except StoreUnavailable as error:
                # It runs all the same, and takes part when the others can be reached.
                if "cannot listen" in str(error):
                    raise
                reporter.say("waiting", str(error), error=str(error))
            # Looked at again and again, for a wait without end hears no signal everywhere.
            while not ended.wait(1.0):
                pass
        return status[0]
    finally:
        reporter.close()


def _telling(reporter: Reporter) -> Hook:
    def hook(event: Event) -> None:
        match event:
            case PeerReady(node=node):
                reporter.say("ready", f"{node} takes part", node=node, at=event.at)
            case PeerMembers(node=node, members=members, joining=joining, votes=votes):
                listed = ", ".join(members)
                sentence = (
                    f"the members change from {listed} to {', '.join(joining)}"
                    if joining
                    else f"the members are {listed}"
                )
                if not votes:
                    sentence += f"; {node} is none of them, and never votes again: end it"
                fields = {"members": members, "joining": joining, "votes": votes}
                reporter.say("members", sentence, node=node, at=event.at, **fields)
            case PeerMembersDiffer(node=node, given=given, kept=kept):
                sentence = (
                    f"{node} goes by the members in its state directory, {', '.join(kept)}, not "
                    f"by those that it was given, {', '.join(given)}"
                )
                reporter.say("differ", sentence, node=node, given=given, kept=kept, at=event.at)
            case PeerExposed(node=node):
                sentence = (
                    f"{node} can be reached from other machines and has no secret: give all "
                    "members the same --secret"
                )
                reporter.say("exposed", sentence, node=node, at=event.at)
            case PeerAlarm(node=node, raised=raised):
                sentence = (
                    f"two processes answer as {node}: end one of them"
                    if raised
                    else f"one process answers as {node} again"
                )
                reporter.say("alarm", sentence, node=node, raised=raised, at=event.at)
            case PeerRefused(sender=sender, reason=reason):
                sentence = f"refused a message of {sender}: {reason}"
                reporter.say("refused", sentence, sender=sender, reason=reason, at=event.at)

    return hook
