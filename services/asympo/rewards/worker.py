"""The process that scores: reads one request a line, answers one line for each call. Started by the Scorer.

It runs in its own process because scoring may hang, crash or be the user's own code, and because
math-verify needs a main thread for its alarm. A process calls either the functions that block, one after
the other, or those that are `async`, all at once.
"""

import asyncio
import copy
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from asympo.common.errors import AsympoError
from asympo.rewards.conventions.base import Asked, FunctionOutcome, Notes, failed
from asympo.rewards.functions import RewardFunction, awaited, load_function, task_function
from asympo.rewards.progress import RunProgress
from asympo.rewards.token_ids import unpack_ids
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task


def main(lifeline: int) -> None:
    """Serve until standard input ends. `lifeline` is a pipe; only the parent holds its other end."""
    _die_with_parent(lifeline)
    requests, replies = _take_over_standard_streams()
    first_line = requests.readline()
    if not first_line:
        return
    settings = json.loads(first_line)
    try:
        functions = load_functions(settings)
    except AsympoError as error:
        _send(replies, {"refused": str(error)})
        return
    _send(replies, {"ready": [_description(function) for function in functions]})
    if settings["concurrent"]:
        asyncio.run(_serve_at_once(functions, requests, replies))
        return
    for line in requests:
        for reply in answers(functions, json.loads(line)):
            _send(replies, reply)


def load_functions(settings: dict[str, Any]) -> list[RewardFunction]:
    """What the task is scored by. Raises BadSetting."""
    config = TaskConfig(**settings["task"])
    allow_python = settings["allow_python"]
    if config.rewards:
        return [
            load_function(reward, columns=settings["columns"], allow_python=allow_python)
            for reward in config.rewards
        ]
    task = load_task(config)
    task.prepare_scoring(allow_python=allow_python)
    return [task_function(task)]


def _description(function: RewardFunction) -> dict[str, Any]:
    return {
        "takes_group": function.takes_group,
        "is_async": function.is_async,
        "wants_token_ids": function.wants_token_ids,
    }


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
    # Half a character, as a cut-off text may end with, is no text that a record could hold.
    line = json.dumps(reply, ensure_ascii=False).encode(errors="replace").decode()
    replies.write(line + "\n")
    replies.flush()


def answers(functions: Sequence[RewardFunction], request: dict[str, Any]) -> Any:
    """One reply for each call of the request, in its order."""
    for number, places in request["calls"]:
        function, asked, notes = functions[number], _asked(request, places), Notes()
        started = time.perf_counter()
        try:
            result = function.call(asked, notes)
            if hasattr(result, "__await__"):
                result = asyncio.run(awaited(result))
            outcomes = function.outcomes(result, asked, notes)
        except BaseException as error:  # noqa: BLE001  see _raised
            outcomes = _raised(function, error, asked)
        yield _reply(outcomes, time.perf_counter() - started)


def _raised(function: RewardFunction, error: BaseException, asked: Asked) -> Sequence[FunctionOutcome]:
    """Of anyone's code, which may raise whatever it likes: an exit, a cancellation, a panic of Rust."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    return function.raised(error, asked)


def _asked(request: dict[str, Any], places: Sequence[int]) -> Asked:
    """Of one call's own: functions may change what they are given."""
    prompt = TaskPrompt(**copy.deepcopy(request["prompt"]))
    ids = request.get("token_ids") or ()
    return Asked(
        prompt=prompt,
        texts=tuple(prompt.prefill + request["texts"][place] for place in places),
        token_ids=tuple(unpack_ids(ids[place]) for place in places) if ids else (),
        progress=RunProgress(**request.get("progress", {})),
    )


def _reply(outcomes: Sequence[FunctionOutcome], seconds: float) -> dict[str, Any]:
    shown = [
        {field.name: value for field in dataclasses.fields(each) if (value := getattr(each, field.name))}
        if each.value != 0
        else {"value": each.value, "extras": each.extras}
        for each in outcomes
    ]
    return {"outcomes": shown, "seconds": seconds}


async def _serve_at_once(functions: Sequence[RewardFunction], requests: IO[str], replies: IO[str]) -> None:
    """Every request is begun as it comes and answered when it is done, under its own number."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=2**28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), requests)
    running: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.ensure_future(_answer_one(functions, json.loads(line), replies))
        running.add(task)
        task.add_done_callback(running.discard)


async def _answer_one(functions: Sequence[RewardFunction], request: dict[str, Any], replies: IO[str]) -> None:
    ((number, places),) = request["calls"]
    function, notes = functions[number], Notes()
    asked = _asked(request, places)
    started, limit_seconds = time.perf_counter(), request["timeout_seconds"]
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            result = await function.call(asked, notes)
        outcomes = function.outcomes(result, asked, notes)
    except TimeoutError as error:
        if limit.expired():
            late = failed("timed_out", f"scoring took more than {limit_seconds:g} s")
            outcomes = [late] * len(asked.texts)
        else:
            outcomes = function.raised(error, asked)
    except BaseException as error:  # noqa: BLE001  see _raised
        outcomes = _raised(function, error, asked)
    _send(replies, {"id": request["id"], **_reply(outcomes, time.perf_counter() - started)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
