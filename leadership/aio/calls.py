"""How an event loop of the user's calls the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from ..core import Core

P = ParamSpec("P")
T = TypeVar("T")


async def on_engine(
    core: Core, act: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `act` there; cancelling the call cancels it."""
    return await asyncio.wrap_future(core.start(act, *args, **kwargs))
