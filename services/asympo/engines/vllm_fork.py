"""vLLM's engine process as a fork of this one, which has imported vLLM, instead of one that imports it again.

On CPUs vLLM starts its engine from nothing: seconds of a core, and hundreds of megabytes, for what its client
has in memory already. A fork is safe while a process has one thread, so it is made before there are others.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_FORK = multiprocessing.get_context("fork")


class EngineFork:
    """A process that waits to be told what to run, with all that this one has imported by now."""

    def __init__(self, threads: Mapping[str, str]) -> None:
        self.threads = dict(threads)
        """Environment that its libraries have read."""
        # What was imported is never garbage; a collection would write to its pages, and copy them.
        gc.freeze()
        there, self._here = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_run_what_is_sent, args=(there, self._here))
        # A terminal's interrupt reaches it as well, and it ends with whoever made it.
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._process.start()
        signal.signal(signal.SIGINT, on_interrupt)
        there.close()
        # Before the library's own hook, which waits for every process.
        atexit.register(self.close)

    @property
    def is_waiting(self) -> bool:
        return not self._here.closed and self._process.is_alive()

    def close(self) -> None:
        """It ends, unless it was given to vLLM."""
        self._here.close()

    @contextlib.contextmanager
    def given_to_vllm(self) -> Iterator[None]:
        """The process that vLLM starts meanwhile is this one."""
        utils: Any = importlib.import_module("vllm.v1.engine.utils")
        context_of = utils.get_mp_context
        utils.get_mp_context = lambda: self
        try:
            yield
        finally:
            utils.get_mp_context = context_of

    def Process(self, *, target: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> _Waiting:
        """As multiprocessing's contexts have it."""
        self._process.name = name
        return _Waiting(self._process, self._here, target, kwargs)


class _Waiting:
    """The process in all but its start."""

    def __init__(
        self, process: BaseProcess, pipe: Connection, target: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._process, self._pipe = process, pipe
        self._work = (target, kwargs)

    def start(self) -> None:
        self._pipe.send((dict(os.environ), *self._work))
        self._pipe.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)


def _run_what_is_sent(work: Connection, other_end: Connection) -> None:
    other_end.close()
    try:
        sent, target, kwargs = work.recv()
    except EOFError:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(ImportError):
        import setproctitle

        # vLLM names the process with it. It looks for its place once, which is lost with the environment's.
        setproctitle.getproctitle()
    os.environ.clear()
    os.environ.update(sent)
    target(**kwargs)
