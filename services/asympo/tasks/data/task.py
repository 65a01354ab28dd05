"""A data set in anybody's layout: every row is a prompt, and all its columns reach the reward functions."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.rewards import scoring
from asympo.tasks.base import TaskPrompt, as_prompt_parts, own_prompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.data.messages import check_messages, is_filled, null_names, without_none
from asympo.tasks.data.source import Row, check_split, is_table, read_rows
from asympo.tasks.data.template import compile_template, look_up, map_columns
from asympo.tasks.rows import RowsTask, question_key

log = logging.getLogger(__name__)

_MAX_WEIGHT = 1000
_NULLS_OF_SCHEMAS = {"default", "const"}
"""What a JSON schema may say with null."""
ANSWER_PLACES = ("answer", "ground_truth", "reward_model.ground_truth", "solution", "label")
"""Where data sets of this field keep the right answer; the first that is there counts."""


class DataTask(RowsTask):
    """Rows of a data set; rows that ask the same are all trained or all held out."""

    name = "data"

    def __init__(self, config: TaskConfig) -> None:
        assert config.data is not None
        super().__init__(config)
        rows = _keyed(config, config.data, config.split)
        if config.revision is not None and Path(config.data).expanduser().exists():
            log.warning(
                "task.revision %s counts for nothing, as task.data %s is a folder here: the hub is not asked",
                *(config.revision, config.data),
            )
        self.num_rows = len(rows)
        self.num_repeated = len(rows) - len({key for key, _ in rows})
        held_out = _held_out_rows(config)
        if held_out:
            first, keys = len(rows), {key for key, _ in held_out}
            rows = [each for each in rows if each[0] not in keys]
            rows += [(key, parts | {"row": first + parts["row"]}) for key, parts in held_out]
            self.place(rows, keys)
        else:
            self.place_share(rows, fraction=config.held_out_fraction, seed=config.seed)
        if not self._train:
            raise BadSetting(
                f"every row of task.data {config.data} asks the same as a held-out row: none is left to "
                "train on"
            )
        self._repeat(config.weight_column)
        self.keep_trainable(config.left_out)
        settings = config.model_dump(mode="json", exclude={"data", "held_out_data", "left_out"})
        self.digest = self.digest_with(settings, with_columns=True)

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        if self._config.scoring in scoring.BY_ANSWER:
            _check_answers((*self._train, *self._held_out), self._config)
        super().prepare_scoring(allow_python=allow_python)

    def _repeat(self, weight_column: str | None) -> None:
        if weight_column is None:
            return
        times = [_weight(prompt.columns, weight_column, prompt.row) for prompt in self._train]
        self.renumber([prompt for prompt, n in zip(self._train, times, strict=True) for _ in range(n)])
        if not self._train:
            raise BadSetting(f"task.weight_column {weight_column} is 0 in every row: nothing is left to ask")


def _check_answers(prompts: Sequence[TaskPrompt], config: TaskConfig) -> None:
    """What has an answer is scored; the rest of a large set may lack a few, and none of these is right."""
    blank = [prompt for prompt in prompts if not prompt.answer.strip()]
    if not blank:
        return
    said = f"{len(blank)} of {len(prompts)} rows have no answer for task.scoring {config.scoring}"
    if len(blank) == len(prompts):
        raise BadSetting(
            f"{said}, only {', '.join(blank[0].columns)}: set task.columns.answer to the column that has it"
        )
    log.warning("%s: their responses earn nothing and are left out; the first is row %d", said, blank[0].row)


def _weight(columns: Row, name: str, row: int) -> int:
    weight = look_up(columns, name, None)
    if weight is None:
        raise BadSetting(
            f"row {row} has nothing in {name}, the task.weight_column, only in {', '.join(columns)}: name a "
            f"column with a whole number from 0 to {_MAX_WEIGHT}"
        )
    if isinstance(weight, str) and re.fullmatch(r"[0-9]{1,4}", weight.strip(), re.ASCII):
        weight = int(weight)  # as CSV has it
    is_float = isinstance(weight, float)
    is_whole = weight.is_integer() if is_float else isinstance(weight, int) and not isinstance(weight, bool)
    if not is_whole or not 0 <= weight <= _MAX_WEIGHT:
        raise BadSetting(
            f"task.weight_column {name} is {weight!r} in row {row}: give a whole number from 0 to "
            f"{_MAX_WEIGHT}"
        )
    return int(weight)


def _held_out_rows(config: TaskConfig) -> list[tuple[str, dict[str, Any]]]:
    if config.held_out_data is not None:
        return _keyed(config, config.held_out_data, config.split)
    assert config.data is not None
    if config.held_out_split is None:
        return []
    return _keyed(config, config.data, config.held_out_split, is_held_out=True)


def _keyed(
    config: TaskConfig, data: str, split: str, *, is_held_out: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    is_hub = config.subset is not None or config.revision is not None
    options = {"subset": config.subset, "revision": config.revision} if is_hub and data == config.data else {}
    if data == config.data and (is_held_out or split != "train"):
        check_split(data, split, subset=config.subset, is_held_out=is_held_out)
    rows = [
        parse_row(row, f"{data} row {number}", config) | {"row": number}
        for number, row in enumerate(read_rows(data, split=split, **options), start=1)
    ]
    _check_alike(rows, data)
    with_tools = [row for row in rows if isinstance(row["columns"].get("tools"), list) and "tools" in row]
    if is_table(data) or is_filled([row["columns"]["tools"] for row in with_tools]):
        for row in with_tools:
            row["tools"] = tuple(without_none([*row["tools"]]))
    return [(question_key(row), row) for row in rows]


def _check_alike(rows: Sequence[dict[str, Any]], data: str) -> None:
    """A file that mixes texts and messages was put together by mistake."""
    kinds = ["a text" if isinstance(own_prompt(row["columns"]), str) else "messages" for row in rows]
    other = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        raise BadSetting(
            f"{data} row {other + 1} asks with {kinds[other]} and row 1 with {kinds[0]}: ask in the same "
            "way in every row"
        )


def parse_row(row: Row, where: str, config: TaskConfig) -> dict[str, Any]:
    """A TaskPrompt's arguments, its number and place aside."""
    columns = map_columns(row, config.columns, where)
    if config.prompt_template is not None:
        prompt: Any = compile_template(config.prompt_template, "task.prompt_template")(columns)
        columns["prompt"] = prompt
    else:
        prompt = _prompt_of(columns, where)
    parts: dict[str, Any] = {"columns": columns, "answer": _answer_of(columns, where)}
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadSetting(f"{where} has an empty prompt: leave the row out")
        parts |= as_prompt_parts(prompt, system_prompt=config.system_prompt, config=config)
    else:
        parts |= chat_parts(prompt, where, config)
    parts |= _template_parts(columns, where, config)
    return parts


def _prompt_of(columns: Row, where: str) -> Any:
    for name in ("prompt", "messages"):
        value = _messages_of(columns.get(name))
        if isinstance(value, str | list):
            columns[name] = value
            return value
        if value is not None:
            raise BadSetting(f"{where} has {name} {value!r}: give a text, or a list of messages")
    raise BadSetting(
        f"{where} has neither prompt nor messages, only {', '.join(columns) or 'no column'}: set "
        "task.columns.prompt to the column that asks, or give task.prompt_template"
    )


def _messages_of(value: Any) -> Any:
    """Messages that a file keeps as JSON text, as CSV must; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_chat = all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in parsed)
    return parsed if is_chat else value


def _answer_of(columns: Row, where: str) -> str:
    answer = next(
        (value for place in ANSWER_PLACES if (value := look_up(columns, place, None)) is not None), ""
    )
    if isinstance(answer, str):
        return answer
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise BadSetting(
            f"{where} has the answer {answer}, which is not a number: leave the row out, or give an answer"
        ) from None


def chat_parts(prompt: Any, where: str, config: TaskConfig) -> dict[str, Any]:
    """`messages` of a TaskPrompt, with the system prompt, and whether the response continues the last one."""
    if config.prompt_as == "text":
        raise BadSetting(
            f"{where} has messages, but task.prompt_as is text: give the prompt as a text, or set "
            "prompt_as to chat"
        )
    messages = check_messages(prompt, where, prefill=config.prefill)
    if config.system_prompt and messages[0]["role"] not in ("system", "developer"):
        messages = ({"role": "system", "content": config.system_prompt}, *messages)
    return {"messages": messages, "is_prefilled": messages[-1]["role"] == "assistant"}


def _template_parts(columns: Row, where: str, config: TaskConfig) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    tools = columns.get("tools")
    if isinstance(tools, str):  # as Arrow keeps structures that differ from row to row
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise BadSetting(f"{where} has tools that are neither a list nor JSON: {error}") from error
    elif not null_names(tools) <= _NULLS_OF_SCHEMAS:
        # A JSONL file may have been written from a table.
        tools = without_none(tools)
    if tools:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadSetting(f"{where} has tools {tools!r}: give a list of JSON schemas")
        parts["tools"] = tuple(tools)
    of_row = columns.get("chat_template_kwargs") or {}
    if not isinstance(of_row, dict):
        raise BadSetting(f"{where} has chat_template_kwargs {of_row!r}: give a table of names and values")
    arguments = {
        **config.chat_template_kwargs,
        **{key: each for key, each in of_row.items() if each is not None},
    }
    return parts | ({"chat_template_kwargs": arguments} if arguments else {})
