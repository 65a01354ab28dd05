"""The task whose prompts and rewards are an environment's."""

import json
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from pydantic import ValidationError

ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": "a"}], "answer": "1"},
    {"prompt": "b", "answer": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def config_of(path: str, **values: object) -> TaskConfig:
    return TaskConfig.model_validate({"name": "verifiers", "environment": "count", "path": path} | values)


def test_task_asks_each_row_of_the_environment_and_holds_out_those_that_say_so(tmp_path: Path) -> None:
    task = load_task(config_of(write(tmp_path / "rows", ROWS)))
    assert [(task.prompt(i).messages, task.prompt(i).text, task.prompt(i).answer) for i in range(2)] == [
        (tuple(ROWS[0]["prompt"]), None, "1"),
        (None, "b", ""),
    ]
    assert (len(task), list(task.held_out())) == (2, [])
    marked = [ROWS[0], ROWS[1] | {"held_out": True}]
    split = load_task(config_of(write(tmp_path / "split", marked)))
    assert (len(split), [each.row for each in split.held_out()]) == (1, [1])
    with pytest.raises(BadSetting, match="nothing is left to train on"):
        load_task(config_of(write(tmp_path / "none", marked[1:])))
    with pytest.raises(BadSetting, match="scores whole episodes, in its own process"):
        task.score(task.prompt(0), "1")


def test_digest_follows_rows_and_arguments_and_not_where_the_file_lies(tmp_path: Path) -> None:
    first = load_task(config_of(write(tmp_path / "a", ROWS))).digest
    assert load_task(config_of(write(tmp_path / "b", ROWS))).digest == first
    assert load_task(config_of(write(tmp_path / "c", ROWS[:1]))).digest != first
    other = config_of(str(tmp_path / "a"), environment_args={"level": 2})
    assert load_task(other).digest != first


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "verifiers", "path": "rows"}, "needs environment"),
        (
            {"name": "verifiers", "environment": "e", "path": "p", "rewards": [{"function": "exact"}]},
            "rewards of its own",
        ),
        ({"name": "addition", "environment": "count"}, "environment belongs to the verifiers and trl-env"),
        ({"name": "trl-environment", "environment": "a:B"}, "needs environment_rows"),
        ({"name": "verifiers", "environment": "e", "environment_rows": "r"}, "environment_rows belongs to"),
    ],
)
def test_config_says_what_an_environment_needs(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TaskConfig.model_validate(values)


@pytest.mark.parametrize(
    ("rows", "words"), [([], "no rows"), ([{"prompt": []}], "row 0 of the environment needs messages")]
)
def test_rows_that_are_none_are_refused(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        load_task(config_of(write(tmp_path / "rows", rows)))
    with pytest.raises(BadSetting, match="needs path, the environment's rows"):
        load_task(TaskConfig(name="verifiers", environment="count"))
    with pytest.raises(BadSetting, match="cannot be read"):
        load_task(config_of(str(tmp_path / "none")))
