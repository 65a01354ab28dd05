"""Tells somebody who does not watch that a run ended or stands still: a program, a URL."""

import http.client
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from typing import IO, Any

from asympo.common.lifecycle import DaemonThreads, StopSignal
from asympo.local.process import kill_group

_POLL_SECONDS = 0.05
_CALL_SECONDS = 20.0
_PROGRAM_SECONDS = 60.0


def notify(
    *, command: Sequence[str], url: str | None, message: Mapping[str, Any], stop: StopSignal
) -> list[str]:
    """Gives the message as JSON to the program's standard input and to the URL; sentences about failures.

    Whoever sets `stop` waits for neither, and no program is left behind.
    """
    text, problems = json.dumps(message), []
    if command:
        problems += _run(command, text, stop)
    if url:
        problems += _call(url, text, stop)
    return problems


def _call(url: str, text: str, stop: StopSignal) -> list[str]:
    # In a thread: a signal interrupts no call.
    calling = DaemonThreads(1).submit(_post, url, text)
    while not stop.is_set:
        try:
            return calling.result(_POLL_SECONDS)
        except TimeoutError:
            continue
    return [_given_up("run.notify_url", stop)]


def _post(url: str, text: str) -> list[str]:
    """A URL that somebody gave may well be reached through a proxy."""
    request = urllib.request.Request(
        url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_CALL_SECONDS):
            return []
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Not the URL itself: who may write to it is often part of it.
        return [f"run.notify_url could not be called: {getattr(error, 'reason', error)}"]


def _given_up(setting: str, stop: StopSignal) -> str:
    return f"{setting} was given up ({stop.reason}): it may not have been told"


def _errors_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:
        # A full disk must not keep its own message from being sent.
        return open(os.devnull, "w+b")


def _run(command: Sequence[str], text: str, stop: StopSignal) -> list[str]:
    # No pipe: whatever the program leaves behind may keep that open for as long as it lives.
    with _errors_file() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                text=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return [f"run.notify_command does not start: {error}"]

        def kill_program() -> None:
            # In a session of its own, it does not hear of a signal to us.
            if process.returncode is None:
                kill_group(process.pid)

        stop.on_stop(kill_program)
        with process:
            try:
                process.communicate(text, timeout=_PROGRAM_SECONDS)
            except subprocess.TimeoutExpired:
                kill_group(process.pid)
                return [f"run.notify_command took more than {_PROGRAM_SECONDS:g} s and was killed"]
        if process.returncode == 0:
            return []
        if stop.is_set:
            return [_given_up("run.notify_command", stop)]
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return [f"run.notify_command ended with exit code {process.returncode}: {last[:300]}"]
