"""Tells somebody who does not watch that a run ended or stands still: a program, a URL."""

import http.client
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from typing import IO, Any

from asympo.local.process import kill_group

_CALL_SECONDS = 20.0
_PROGRAM_SECONDS = 60.0


def notify(*, command: Sequence[str], url: str | None, message: Mapping[str, Any]) -> list[str]:
    """Gives the message as JSON to the program's standard input and to the URL; sentences about failures.

    A URL that somebody gave may well be reached through a proxy.
    """
    text, problems = json.dumps(message), []
    if command:
        problems += _run(command, text)
    if url:
        request = urllib.request.Request(
            url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=_CALL_SECONDS):
                pass
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Not the URL itself: who may write to it is often part of it.
            problems.append(f"run.notify_url could not be called: {getattr(error, 'reason', error)}")
    return problems


def _errors_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:
        # A full disk must not keep its own message from being sent.
        return open(os.devnull, "w+b")


def _run(command: Sequence[str], text: str) -> list[str]:
    # No pipe: whatever the program leaves behind may keep that open for as long as it lives.
    with _errors_file() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                text=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return [f"run.notify_command does not start: {error}"]
        with process:
            try:
                process.communicate(text, timeout=_PROGRAM_SECONDS)
            except subprocess.TimeoutExpired:
                kill_group(process.pid)
                return [f"run.notify_command took more than {_PROGRAM_SECONDS:g} s and was killed"]
            except KeyboardInterrupt:
                # In a session of its own, it has not heard of it.
                kill_group(process.pid)
                process.wait()
                raise
        if process.returncode == 0:
            return []
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return [f"run.notify_command ended with exit code {process.returncode}: {last[:300]}"]
