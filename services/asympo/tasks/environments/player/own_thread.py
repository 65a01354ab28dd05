"""Calls of somebody else's code that may never return."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any


async def in_own_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What it returns. One that hangs keeps no other call waiting, and no process from ending."""
    found: Future[Any] = Future()

    def call() -> None:
        try:
            found.set_result(function(**arguments))
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            found.set_exception(error)

    found.set_running_or_notify_cancel()
    threading.Thread(target=contextvars.copy_context().run, args=(call,), daemon=True).start()
    return await asyncio.wrap_future(found)
