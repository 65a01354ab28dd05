"""The process that scores: reads one request a line, answers one line each. Started by the Scorer alone.

It runs in its own process because scoring may hang, crash or be the user's own code, and because
math-verify needs a main thread for its alarm.
"""

import fcntl
import json
import math
import os
import signal
import sys
from typing import IO, Any

from asympo.common.errors import AsympoError
from asympo.common.records import MAX_ABS_REWARD
from asympo.tasks.base import Task
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task

MAX_REASON_CHARS = 300


def main(lifeline: int) -> None:
    """Serve until standard input ends. `lifeline` is a pipe whose other end only the parent holds."""
    _die_with_parent(lifeline)
    requests, replies = _take_over_standard_streams()
    first_line = requests.readline()
    if not first_line:
        return
    settings = json.loads(first_line)
    try:
        task = load_task(TaskConfig(**settings["task"]))
        task.prepare_scoring(allow_python=settings["allow_python"])
    except AsympoError as error:
        _send(replies, {"refused": str(error)})
        return
    _send(replies, {"ready": True})
    for line in requests:
        _send(replies, _score(task, json.loads(line)))


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel end this process with the parent, even inside a loop that never returns."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _take_over_standard_streams() -> tuple[IO[str], IO[str]]:
    """Requests and replies move to descriptors of their own: what scoring prints goes to standard error."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: IO[str], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _score(task: Task, request: dict[str, Any]) -> dict[str, Any]:
    index = request["index"]
    try:
        if index < 0:
            raise IndexError(index)
        prompt = task.held_out()[index] if request["held_out"] else task.prompt(index)
        value = task.score(prompt, request["text"])
        if isinstance(value, str | bytes):
            raise TypeError(f"scoring returned {value!r}, which is not a number")
        reward = float(value)
    except (Exception, SystemExit) as error:  # noqa: BLE001  scoring may be anyone's code
        return {"raised": f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]}
    if not math.isfinite(reward) or abs(reward) > MAX_ABS_REWARD:
        return {"not_finite": f"reward is {reward}, not a finite number of at most {MAX_ABS_REWARD:g}"}
    return {"reward": reward}


if __name__ == "__main__":
    main(int(sys.argv[1]))
