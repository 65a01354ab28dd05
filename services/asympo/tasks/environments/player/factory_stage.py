"""An environment as TRL's `environment_factory` makes it: `reset`, public methods as tools, `get_reward`.

Nothing of TRL is imported. `transformers` makes the descriptions of the tools, as TRL has it do.
"""

import importlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .own_thread import in_own_thread
from .stage import GIVEN, KEY_VARIABLE, MODEL, EpisodeFailed, Played, Seat, given_of, reward_of

MAX_TURNS = 64
"""Answers in one episode: one that calls tools for ever ends here."""


class FactoryStage:
    """One instance for each episode; every row of a file is given to its `reset`."""

    def __init__(
        self, name: str, arguments: Mapping[str, Any], rows: Path, *, are_written: bool = False
    ) -> None:
        """`are_written`: the file is what `rows` said, not the one that it was made of."""
        from transformers.utils.chat_template_utils import get_json_schema

        module, _, factory = name.partition(":")
        try:
            self._factory = getattr(importlib.import_module(module), factory)
        except (ImportError, AttributeError, ValueError) as error:
            raise SystemExit(f"{name} cannot be imported ({error}): give module:factory") from None
        self._arguments = arguments
        self._rows = _read(rows)
        if are_written:
            self._rows = [given_of(row) for row in self._rows]
        made = self._factory(**arguments)
        if not callable(getattr(made, "reset", None)) or not callable(getattr(made, "get_reward", None)):
            raise SystemExit(f"what {name} makes needs the methods reset and get_reward")
        self._tools = [get_json_schema(method) for method in _tools_of(made).values()]

    def rows(self) -> list[dict[str, Any]]:
        return [self._written(row) for row in self._rows]

    @staticmethod
    def _written(row: dict[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {name: row[name] for name in ("answer", "held_out") if name in row}
        return {"prompt": _messages(row), **own, GIVEN: row}

    def serving(self) -> nullcontext[None]:
        return nullcontext()

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        import openai

        environment = await in_own_thread(self._factory, self._arguments)
        given = {name: value for name, value in self._rows[row].items() if name != "held_out"}
        messages: Any = _messages(given)
        observation = await _call(environment.reset, given)
        if observation is not None:
            messages[-1] = messages[-1] | {"content": f"{messages[-1]['content']}{observation}"}
        asked: dict[str, Any] = dict(sampling) | ({"tools": self._tools} if self._tools else {})
        key = os.environ.get(KEY_VARIABLE) or "none"
        async with openai.AsyncOpenAI(base_url=seat.base_url, api_key=key, max_retries=2) as client:
            for _ in range(MAX_TURNS):
                answer = await client.chat.completions.create(model=MODEL, messages=messages, **asked)
                said = answer.choices[0].message
                messages.append(said.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True))
                if not said.tool_calls:
                    break
                for call in said.tool_calls:
                    messages.append(await _answer_of_tool(environment, call))
            else:
                raise EpisodeFailed(f"it has not ended after {MAX_TURNS} answers")
        reward = reward_of(await _call(environment.get_reward, {}))
        return Played(reward=reward, functions={type(environment).__name__: reward}, text=said.content or "")


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SystemExit(f"{path} line {number} is not a JSON object: give the arguments of reset")
        rows.append(row)
    return rows


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row without a prompt leaves it to `reset`."""
    prompt = row.get("prompt") or ""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _tools_of(environment: Any) -> dict[str, Callable[..., Any]]:
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    public = [name for name in names if name not in ("reset", "get_reward") and not name.startswith("_")]
    return {name: getattr(environment, name) for name in public}


async def _answer_of_tool(environment: Any, call: Any) -> dict[str, Any]:
    """What the tool says, or what went wrong: the policy is told, and may try again."""
    name = call.function.name
    tool = _tools_of(environment).get(name)
    try:
        if tool is None:
            raise EpisodeFailed(f"there is no tool {name}")
        said = await _call(tool, json.loads(call.function.arguments or "{}"))
    except (Exception, SystemExit) as error:  # noqa: BLE001  somebody else's code, called with what a model wrote
        said = {"error": str(error)}
    return {"role": "tool", "tool_call_id": call.id, "name": name, "content": str(said)}


async def _call(method: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(method):
        return await method(**arguments)
    return await in_own_thread(method, arguments)
