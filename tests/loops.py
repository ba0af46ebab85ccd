"""Tests of the core on an event loop of their own, which must end it as they found it."""

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from .waiting import async_wait_until

P = ParamSpec("P")

# A test that hangs says where; it never comes near this.
_LONGEST = 60.0


async def settle() -> None:
    """Let the loop run until whatever is due at this moment has run."""
    for _ in range(20):
        await asyncio.sleep(0)


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test; no task, and no exception that nobody took, may be left after it."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []

        async def watched() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(_LONGEST):
                await test(*args, **kwargs)
            await async_wait_until(lambda: len(asyncio.all_tasks()) == 1, what="the tasks' end")
            # An exception that nobody took is told when its task is collected.
            gc.collect()

        asyncio.run(watched())
        assert complaints == []

    return run
