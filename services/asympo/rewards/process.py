"""The parent's side of one scoring process: start, ask, kill."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 300.0
"""To import libraries and build the task; generating a data set may take minutes."""
EXIT_GRACE_SECONDS = 0.5
"""For a process whose streams have ended to end itself, so that its own exit code is reported."""


class WorkerGone(Exception):
    """The process ended while it was asked; the message says how."""


class WorkerProcess:
    """One scoring process. Used by one thread at a time, except for close()."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._received = b""
        self._is_closed = False
        self.ready: list[dict[str, Any]] = []
        """What the process said of each of its functions."""
        # While it is held the process is not reaped, so that its id cannot belong to another one.
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def process_id(self) -> int | None:
        """None while no process runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Raises BadSetting with what the process says against its task, or when it does not get ready."""
        with self._lock:
            if self._is_closed:
                raise BadSetting("scoring was closed")
            self._launch()
        try:
            reply = self.ask(self._settings, timeout_seconds=START_TIMEOUT_SECONDS)
        except TimeoutError as error:
            self.stop()
            raise BadSetting(f"the task was not ready to score within {START_TIMEOUT_SECONDS:g} s") from error
        except WorkerGone as error:
            raise BadSetting(f"the scoring process ended as it started ({error})") from error
        if "refused" in reply:
            self.stop()
            raise BadSetting(reply["refused"])
        self.ready = reply["ready"]

    def _launch(self) -> None:
        lifeline_there, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                # -P: no module of the working directory shadows one of ours.
                [sys.executable, "-P", "-m", "asympo.rewards.worker", str(lifeline_there)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(lifeline_there,),
                # Ctrl-C is for the service, which still scores what it has in flight.
                start_new_session=True,
            )
        except OSError:
            os.close(self._lifeline)
            self._lifeline = None
            raise
        finally:
            os.close(lifeline_there)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._received = b""
        log.debug("scoring process %d started", self._process.pid)

    def ask(self, request: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        """One request, one reply. Raises TimeoutError, or WorkerGone with the process reaped."""
        try:
            self.tell(request, timeout_seconds=timeout_seconds)
        except BrokenPipeError as error:
            raise self.reap() from error
        return self.hear(timeout_seconds=timeout_seconds)

    def tell(self, request: dict[str, Any], *, timeout_seconds: float) -> None:
        """One request. Raises TimeoutError, or BrokenPipeError when the process has ended."""
        self._write((json.dumps(request) + "\n").encode(), time.monotonic() + timeout_seconds)

    def hear(self, *, timeout_seconds: float | None) -> dict[str, Any]:
        """The next reply. Raises TimeoutError, or WorkerGone with the process reaped."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            answer: dict[str, Any] = json.loads(self._read_line(deadline))
            return answer
        except EOFError as error:
            raise self.reap() from error

    def reap(self) -> WorkerGone:
        """Ends the process if it has not ended, and says how it did."""
        return WorkerGone(_describe_exit(self.stop(grace_seconds=EXIT_GRACE_SECONDS)))

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        while data:
            _wait_until_ready(descriptor, select.POLLOUT, deadline)
            data = data[os.write(descriptor, data) :]

    def _read_line(self, deadline: float | None) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._received:
            _wait_until_ready(descriptor, select.POLLIN, deadline)
            received = os.read(descriptor, 65536)
            if not received:
                raise EOFError
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line

    def kill(self) -> None:
        """Kill the process now; the thread that reads from it reaps it."""
        with self._lock:
            self._kill_group()

    def close(self) -> None:
        """Kill the process now and never start it again; safe while another thread asks."""
        with self._lock:
            self._is_closed = True
            self._kill_group()

    def stop(self, *, grace_seconds: float = 0.0) -> int | None:
        """Kill and reap the process with whatever it started; its exit code. Idempotent."""
        with self._lock:
            if self._process is None:
                return None
            deadline = time.monotonic() + grace_seconds
            peek = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while os.waitid(os.P_PID, self._process.pid, peek) is None and time.monotonic() < deadline:
                time.sleep(0.005)
            self._kill_group()
            code = self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            if self._lifeline is not None:
                os.close(self._lifeline)
            self._process, self._lifeline = None, None
            return code

    def _kill_group(self) -> None:
        """Under the lock. The process leads a group of its own."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError) as error:
                # Darwin answers PermissionError for a group that has ended but is not reaped.
                log.debug("scoring process %d had ended: %s", self._process.pid, error)


def _wait_until_ready(descriptor: int, event: int, deadline: float | None) -> None:
    ready = select.poll()
    ready.register(descriptor, event)
    if deadline is None:
        ready.poll()
        return
    remaining_seconds = deadline - time.monotonic()
    if remaining_seconds <= 0 or not ready.poll(remaining_seconds * 1000):
        raise TimeoutError


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
