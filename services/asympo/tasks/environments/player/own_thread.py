"""Calls of somebody else's code that may never return."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from .stage import EpisodeFailed


async def in_own_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What it returns. One that hangs keeps no other call waiting; none ends the process by exit()."""
    found: Future[Any] = Future()

    def call() -> None:
        try:
            found.set_result(function(**arguments))
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            # Of these, some would end whoever waits, and a future takes no StopIteration.
            is_plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            found.set_exception(error if is_plain else EpisodeFailed(f"its code ended with {error!r}"))

    found.set_running_or_notify_cancel()
    threading.Thread(target=contextvars.copy_context().run, args=(call,), daemon=True).start()
    return await asyncio.wrap_future(found)
