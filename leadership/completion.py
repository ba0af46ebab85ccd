"""What the shell offers at Tab for the values of options: elections and kinds of stores.

Never a message, an error, or a wait of note: whoever presses Tab is in the
middle of a line.
"""

from __future__ import annotations

import logging
import os
from contextlib import aclosing
from importlib.metadata import entry_points
from typing import Any

import typer

from . import Store, new_store
from .backend import Capability

_PATIENCE = 1.5


def stores(incomplete: str) -> list[str]:
    """The beginnings of addresses."""
    schemes = sorted({each.name for each in entry_points(group="leadership.backends")})
    return [url for scheme in schemes if (url := f"{scheme}://").startswith(incomplete)]


def keys(context: typer.Context, incomplete: str) -> list[str]:
    """The elections of the store that the line, or the environment, names."""
    return [key for key in _elections(context) if key.startswith(incomplete)]


def prefixes(context: typer.Context, incomplete: str) -> list[str]:
    """What elections' keys begin with, up to each slash."""
    found = {
        key[: place + 1]
        for key in _elections(context)
        for place, character in enumerate(key)
        if character == "/"
    }
    return sorted(each for each in found if each.startswith(incomplete))


def _elections(context: typer.Context) -> list[str]:
    logging.getLogger("leadership").addHandler(logging.NullHandler())
    url: Any = context.params.get("url") or os.environ.get("LEADERSHIP_STORE")
    try:
        with new_store(url, request_timeout=_PATIENCE) as store:
            store.core.need("completion", Capability.SURVEY)
            return store.core.call_within(_PATIENCE, _keys, store)
    except Exception:
        return []


async def _keys(store: Store) -> list[str]:
    async with aclosing(store.core.backend.elections("")) as states:
        return [standing.key for standing in await anext(states)]
