"""The same client without `await`."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from asympo.client.client import AsyncClient
from asympo.client.groups import Answers
from asympo.client.ways import Outcome
from asympo.common.records import Prompt, RolloutGroup

T = TypeVar("T")


class Client:
    """`AsyncClient` on an event loop in a thread of its own. Safe to share between threads."""

    def __init__(self, address: str, **options: Any) -> None:
        """Arguments as of `AsyncClient`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asympo-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._wait(_made(address, options))
        except BaseException:
            self._end_loop()
            raise

    def submit(
        self, prompt: str | Prompt | RolloutGroup, responses: Answers = (), *, group_id: str | None = None
    ) -> Outcome:
        """Appends one group; see `AsyncClient.submit`."""
        return self._wait(self._client.submit(prompt, responses, group_id=group_id))

    def submit_many(self, groups: Iterable[RolloutGroup]) -> list[Outcome]:
        """Appends groups as fast as slots come; the outcomes of those that were not taken now."""
        return self._wait(self._client.submit_many(groups))

    def close(self) -> None:
        """Ends the connection."""
        if self._thread.is_alive():
            self._wait(self._client.close())
            self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _made(address: str, options: dict[str, Any]) -> AsyncClient:
    """On the loop that will use it: channels belong to the loop that they were made on."""
    return AsyncClient(address, **options)
