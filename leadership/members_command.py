"""`leadership peers`: the members of a cluster that needs no server, listed and changed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from . import Membership, Store, new_store
from .commands import AsJson, Url
from .peer_command import app as app
from .registry import parse_address
from .reporting import printable

UNFINISHED = 1
"""The exit status of a change that did not end in time."""

peers = typer.Typer(
    help="List and change the members of a cluster that needs no server.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(peers, name="peers")

_EPILOG = """Example:

\b
    leadership peers {example}

\b
Exit status:
    0   the members are as it was asked
    1   it did not end in time, and may still come about: repeat it
    2   bad input, it is refused, or no node answers
"""

Secret = Annotated[
    str | None,
    typer.Option(
        envvar="LEADERSHIP_SECRET",
        metavar="TEXT",
        help="The secret of the cluster. Better in the environment, where no other user sees it.",
        show_default=False,
    ),
]
Addresses = Annotated[list[str], typer.Argument(metavar="H:P...", show_default=False)]
Timeout = Annotated[
    float, typer.Option(metavar="S", help="Seconds after which it is reported as not ended.")
]


@peers.command("list", epilog=_EPILOG.format(example="list --store peers://10.0.0.1:7000"))
def list_members(url: Url, secret: Secret = None, as_json: AsJson = False) -> int:
    """Print the members, a line each; the latest list that any node of the URL tells.

    While a change is under way, members that are about to join are marked "+",
    those about to leave "-".
    """
    with _opened(url, secret) as store:
        _print(store.members(), as_json)
    return 0


@peers.command(
    epilog=_EPILOG.format(example="add --store peers://10.0.0.1:7000 10.0.0.4:7000"),
)
def add(
    addresses: Addresses,
    url: Url,
    secret: Secret = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> int:
    """Add nodes to the members, while elections go on.

    Start each of them first: leadership peer --join --state-dir DIR. Every member
    needs a --state-dir. Any node of the URL is asked, whether or not it leads.
    """
    return _change(url, secret, timeout, as_json, add=addresses)


@peers.command(
    epilog=_EPILOG.format(example="remove --store peers://10.0.0.1:7000 10.0.0.3:7000"),
)
def remove(
    addresses: Addresses,
    url: Url,
    secret: Secret = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> int:
    """Remove nodes from the members, while elections go on; they may be dead.

    A node that is removed never votes again, and its address never comes back. One that
    leads gives way first.
    """
    return _change(url, secret, timeout, as_json, remove=addresses)


def _change(
    url: str, secret: str | None, timeout: float, as_json: bool, **change: list[str]
) -> int:
    with _opened(url, secret) as store:
        try:
            membership = store.change_members(timeout=timeout, **change)
        except TimeoutError as error:
            typer.echo(f"leadership: {printable(str(error))}", err=True)
            return UNFINISHED
        _print(membership, as_json)
    return 0


def _opened(url: str, secret: str | None) -> Store:
    where = parse_address(url, None, {})
    options: dict[str, Any] = dict(where.options)
    if secret is not None:
        options.setdefault("secret", secret)
    if where.scheme == "peers":
        # The address of a program's own node will do: this command takes no part.
        options["observe"] = True
    return new_store(where.scheme, where.endpoints, **options)


def _print(membership: Membership, as_json: bool) -> None:
    old, new = membership.members, membership.joining
    if as_json:
        fields = ("members", "joining", "retired", "epoch")
        typer.echo(json.dumps({name: getattr(membership, name) for name in fields}))
        return
    for address in sorted({*old, *new}):
        mark = (
            "" if not new or (address in old and address in new) else "-" if address in old else "+"
        )
        typer.echo(f"{mark}{printable(address)}")
