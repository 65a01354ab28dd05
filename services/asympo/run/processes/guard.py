"""Outlives a supervisor that is killed, and leaves nothing of its run behind.

The supervisor tells it on a pipe what it starts. When the pipe closes without a farewell, the services
drain in their time, whatever is left of them is killed, the broker stops last, and the directory is free.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from asympo.local.broker import answers, shut_down
from asympo.local.process import Process, import_path, kill_group
from asympo.run.events import write_event

_POLL_SECONDS = 0.1
_BROKER_SECONDS = 30.0
_FAREWELL = b"farewell\n"


class Guard:
    """The supervisor's end of it."""

    def __init__(self, *, directory: Path, broker_url: str | None, lock: int | None, lock_path: Path) -> None:
        """`broker_url` is of a broker that is ours; `lock` holds the directory, and the guard holds it on."""
        self._directory, self._broker_url = directory, broker_url
        self.lock, self.lock_path = lock, lock_path
        self._known: dict[str, bytes] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "asympo.run.processes.guard", str(self._directory), str(os.getpid())]
        with (self._directory / "logs" / "supervisor.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *([self._broker_url] if self._broker_url else [])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": import_path()},
                start_new_session=True,
                pass_fds=() if self.lock is None else (self.lock,),
            )
        for line in self._known.values():
            self._write(line)

    def watch(self, name: str, process: Process, *, drain_seconds: float) -> None:
        """Called at every start of a process."""
        words = {"name": name, "pid": process.pid, "drain_seconds": drain_seconds}
        self._known[name] = json.dumps(words).encode() + b"\n"
        self._write(self._known[name])

    def check(self) -> str | None:
        """Starts it again where somebody killed it; a sentence then."""
        if self._process is None or self._process.poll() is None:
            return None
        self.start()
        return "the guard of this run was killed; started again"

    def end(self) -> None:
        """All has been stopped in order: nothing is left to do."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(_FAREWELL)
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait()

    def _write(self, line: bytes) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            # It was killed; `check` starts another, which hears all of it.
            return


def main(argv: list[str]) -> int:
    """`python -m asympo.run.processes.guard DIRECTORY SUPERVISOR [BROKER_URL]`, told on standard input."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory, supervisor = Path(argv[0]), argv[1]
    broker_url = argv[2] if len(argv) > 2 else None
    told: dict[str, dict[str, Any]] = {}
    for line in sys.stdin.buffer:
        if line == _FAREWELL:
            return 0
        words = json.loads(line)
        told[words["name"]] = {**words, "started": _started(words["pid"])}
    broker = told.pop("broker", None)
    _say(directory, f"the supervisor (process {supervisor}) was killed: its services are stopped in order")
    deadlines = {name: time.monotonic() + words["drain_seconds"] for name, words in told.items()}
    for words in told.values():
        if _is_alive(words):
            os.kill(words["pid"], signal.SIGTERM)
    killed = []
    while left := [name for name, words in told.items() if _is_alive(words)]:
        for name in left:
            if time.monotonic() > deadlines[name]:
                kill_group(told[name]["pid"])
                killed.append(name)
        time.sleep(_POLL_SECONDS)
    for words in told.values():
        # An engine's workers outlive their parent; the group keeps its number while one of them is there.
        kill_group(words["pid"])
    _stop_broker(broker, broker_url)
    forced = f" ({', '.join(dict.fromkeys(killed))} had to be killed)" if killed else ""
    _say(directory, f"all of its services have ended{forced}; start the run again the same way to go on")
    return 0


def _stop_broker(broker: Mapping[str, Any] | None, url: str | None) -> None:
    if broker is None and url is None:
        return
    deadline = time.monotonic() + _BROKER_SECONDS
    if broker is not None and _is_alive(broker):
        os.kill(broker["pid"], signal.SIGTERM)
    elif url is not None and url.startswith("unix:") and answers(url):
        # It was started, and the supervisor killed before it could tell.
        shut_down(url)
    while broker is not None and _is_alive(broker):
        if time.monotonic() > deadline:
            kill_group(broker["pid"])
        time.sleep(_POLL_SECONDS)


def _started(pid: int | None) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _is_alive(words: Mapping[str, Any]) -> bool:
    """That very process: its number may have been given to another one since."""
    try:
        process = psutil.Process(words["pid"])
        return process.create_time() == words["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _say(directory: Path, text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} guard: {text}\n")
    sys.stdout.flush()
    write_event(directory, text, kind="end")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
