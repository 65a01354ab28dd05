"""Prompts from a file with one JSON object a line: `prompt` or `messages`, and `answer`."""

import json
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.rewards import scoring
from asympo.tasks.base import Message, SplitPrompts, TaskPrompt, as_prompt_parts
from asympo.tasks.config import TaskConfig

_ROLES = ("system", "user", "assistant", "tool")


class JsonlTask(SplitPrompts):
    """Rows of a file; rows that ask the same are all trained or all held out."""

    name = "jsonl"

    def __init__(self, config: TaskConfig) -> None:
        assert config.path is not None
        self._config = config
        self._score: scoring.Score | None = None
        if config.pattern is not None:
            scoring.compile_pattern(config.pattern)
        rows = _read_rows(Path(config.path), config)
        super().__init__(
            [(question_key(row), row) for row in rows], fraction=config.held_out_fraction, seed=config.seed
        )
        self.digest = self.digest_with(config.model_dump(mode="json", exclude={"path"}))

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        name = self._config.scoring
        if name == "exact":
            self._score = scoring.exact_match
        elif name == "regex":
            assert self._config.pattern is not None
            self._score = scoring.regex_match(self._config.pattern)
        elif name == "math-verify":
            self._score = scoring.math_verify_match()
        elif allow_python:
            self._score = scoring.python_function(name)
        else:
            raise BadSetting(
                f"task.scoring {name} runs Python code, which this process was not told to allow"
            )

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        assert self._score is not None, "prepare_scoring comes first"
        return self._score(prompt, response_text)


def question_key(row: dict[str, Any]) -> str:
    """Equal for rows that ask the same."""
    return json.dumps([row.get("messages"), row.get("text")], sort_keys=True)


def _read_rows(path: Path, config: TaskConfig) -> list[dict[str, Any]]:
    """Arguments of a TaskPrompt, its index aside, for every line that is not empty."""
    rows = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse_row(line, f"{path} line {number}", config) | {"row": number})
    except OSError as error:
        raise BadSetting(f"task.path {path} cannot be read: {error.strerror}") from error
    if not rows:
        raise BadSetting(f"task.path {path} has no rows: each line holds one JSON object")
    return rows


def _parse_row(line: bytes, where: str, config: TaskConfig) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(
            row, ensure_ascii=False
        ).encode()  # half of a surrogate pair passes as JSON, but is no text
    except UnicodeError as error:
        raise BadSetting(f"{where} is not UTF-8: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadSetting(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadSetting(f"{where} is not a JSON object with prompt or messages, and answer")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise BadSetting(f"{where} needs answer, a text or a number; it has {answer!r}")
    if ("prompt" in row) == ("messages" in row):
        raise BadSetting(f"{where} needs either prompt or messages")
    if "messages" in row:
        parts: dict[str, Any] = {"messages": _parse_messages(row["messages"], where, config)}
    else:
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise BadSetting(f"{where} needs prompt to be a text that is not empty")
        parts = as_prompt_parts(prompt, system_prompt=config.system_prompt, config=config)
    return parts | {"answer": str(answer)}


def _parse_messages(messages: Any, where: str, config: TaskConfig) -> tuple[Message, ...]:
    if config.prompt_as == "text":
        raise BadSetting(
            f"{where} has messages, but task.prompt_as is text: give prompt, or set prompt_as to chat"
        )
    if not isinstance(messages, list) or not messages:
        raise BadSetting(f"{where} needs messages to be a list that is not empty")
    for message in messages:
        is_message = isinstance(message, dict) and set(message) == {"role", "content"}
        if not is_message or message["role"] not in _ROLES or not isinstance(message["content"], str):
            raise BadSetting(
                f"{where} has message {message!r}: needs role ({', '.join(_ROLES)}) and content, a text"
            )
    if messages[-1]["role"] == "assistant":
        raise BadSetting(f"{where} ends with an assistant message: the policy writes that one")
    if config.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    return tuple(messages)
