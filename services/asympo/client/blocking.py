"""The same client without `await`."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from asympo.client.client import AsyncClient
from asympo.client.groups import Answers
from asympo.client.ways import Outcome
from asympo.common.errors import AsympoError
from asympo.common.records import Prompt, RolloutGroup

T = TypeVar("T")
_END = object()
"""In place of a group: the source has no more."""


class ClientUnusable(AsympoError):
    """The client is closed, or belongs to another process; make one where it is used."""


class Client:
    """`AsyncClient` on an event loop in a thread of its own. Safe to share between threads."""

    def __init__(self, address: str, **options: Any) -> None:
        """Arguments as of `AsyncClient`."""
        self._process_id = os.getpid()
        # Nothing begins on the loop once it is to end: it would never be answered.
        self._lock = threading.Lock()
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asympo-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._wait(_made(address, options))
        except BaseException:  # an interrupt leaves no thread either
            self._end_loop()
            raise

    def submit(
        self,
        prompt: str | Prompt | RolloutGroup,
        responses: Answers = (),
        *,
        group_id: str | int | None = None,
    ) -> Outcome:
        """Appends one group; see `AsyncClient.submit`."""
        return self._wait(self._client.submit(prompt, responses, group_id=group_id))

    def submit_many(self, groups: Iterable[RolloutGroup]) -> list[Outcome]:
        """Appends groups as fast as slots come; the outcomes of those that were not taken now.

        `groups` is read in the calling thread, and waits while a full batch of it is sent. If it raises, what
        it gave is sent first, and the error's notes name the groups that were not taken.
        """
        source = iter(groups)
        requests: SimpleQueue[Future[Any] | None] = SimpleQueue()
        sending = self._begin(self._client.submit_many(_asked_for(requests)))
        sending.add_done_callback(lambda _: requests.put(None))
        try:
            while (request := requests.get()) is not None:
                if request.set_running_or_notify_cancel():
                    _answer(request, source)
        except BaseException:  # an interrupt of the reader ends the sending, too
            sending.cancel()
            raise
        return self._result(sending)

    def close(self) -> None:
        """Ends the connection, and the calls of other threads with it: they raise ClientUnusable."""
        if not self._thread.is_alive():
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            closing = asyncio.run_coroutine_threadsafe(_closed(self._client), self._loop)
        closing.result()
        self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._result(self._begin(work))

    def _result(self, begun: Future[T]) -> T:
        try:
            return begun.result()
        except CancelledError:
            if not self._is_closed:
                raise
            raise ClientUnusable(
                "the client was closed during the call, and what it was sending may be in the log or not: "
                "send it again with another client and the same group ids"
            ) from None

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        # First the thread: a fork has none, and the lock may be taken in it for ever.
        if self._thread.is_alive():
            with self._lock:
                if not self._is_closed:
                    return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        if os.getpid() == self._process_id:
            raise ClientUnusable("the client is closed: make another one")
        raise ClientUnusable(
            f"the client was made in process {self._process_id} and does not work in its fork "
            f"{os.getpid()}: make one in each process"
        )

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _made(address: str, options: dict[str, Any]) -> AsyncClient:
    """On the loop that will use it: channels belong to the loop that they were made on."""
    return AsyncClient(address, **options)


async def _closed(client: AsyncClient) -> None:
    """On its loop: whoever still waits for it would wait for ever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.close()


async def _asked_for(requests: SimpleQueue[Future[Any] | None]) -> AsyncIterator[RolloutGroup]:
    """Groups that another thread gives when it is asked for the next one."""
    while True:
        request: Future[Any] = Future()
        requests.put(request)
        group = await asyncio.wrap_future(request)
        if group is _END:
            return
        yield group


def _answer(request: Future[Any], source: Iterator[RolloutGroup]) -> None:
    """With the next group, or what the source raises; what ends a process is raised here."""
    try:
        group = next(source, _END)
    except Exception as error:  # noqa: BLE001  raised again once what came before it is sent
        request.set_exception(error)
    else:
        request.set_result(group)
