"""Data sets as they lie: files, layouts of other trainers, columns, templates, one sentence for bad input."""

import gzip
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from asympo.common.errors import BadSetting
from asympo.tasks.base import TaskPrompt, columns_json, content_digest
from asympo.tasks.config import TaskConfig
from asympo.tasks.data.task import DataTask
from asympo.tasks.registry import load_task

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "level": n} for n in range(1, 11)]


def load(config: TaskConfig) -> DataTask:
    task = load_task(config)
    assert isinstance(task, DataTask)
    return task


def everything(task: DataTask) -> list[TaskPrompt]:
    return sorted([*map(task.prompt, range(len(task))), *task.held_out()], key=lambda prompt: prompt.row)


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def of_rows(tmp_path: Path, rows: list[Any], **options: Any) -> DataTask:
    return load(TaskConfig(data=written(tmp_path / "rows.jsonl", rows), **options))


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(
        str(tmp_path / "splits")
    )
    places = ["rows.jsonl", "rows.parquet", "saved", "splits"]
    written(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    tasks = [load(TaskConfig(data=str(tmp_path / place))) for place in [*places, "rows.json"]]
    assert [prompt.columns for prompt in everything(tasks[0])] == ROWS
    assert {task.digest for task in tasks} == {tasks[0].digest}
    test = load(TaskConfig(data=str(tmp_path / "splits"), split="test", held_out_fraction=0))
    assert len(test) == 2
    with pytest.raises(BadSetting, match="has no split dev: choose from train, test"):
        load(TaskConfig(data=str(tmp_path / "splits"), split="dev"))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"])
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path: Path, name: str) -> None:
    texts = {
        "rows.jsonl.gz": "".join(json.dumps(row) + "\n" for row in ROWS),
        "rows.json.gz": json.dumps(ROWS),
        "rows.csv.gz": "\ufeffprompt,answer\nWhat?,2\nWhen?,3\n",
    }
    path = tmp_path / name
    path.write_bytes(gzip.compress(texts[name].encode()))
    prompts = everything(load(TaskConfig(data=str(path))))
    assert len(prompts) == (2 if "csv" in name else len(ROWS))
    assert prompts[0].answer == "2"
    whole = path.read_bytes()
    flipped = whole[:15] + bytes(byte ^ 0xFF for byte in whole[15:20]) + whole[20:]
    for damaged in (whole[:-9], whole[:20], texts[name].encode(), flipped):
        path.write_bytes(damaged)
        with pytest.raises(BadSetting, match=rf"{name} (cannot be read|line|is not|row)"):
            load(TaskConfig(data=str(path)))


def test_columns_are_json_for_people_though_a_number_is_none(tmp_path: Path) -> None:
    values = {"prompt": ["a"], "answer": ["1"], "level": [math.nan], "more": [{"x": [math.inf, None]}]}
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "rows.parquet")
    prompt = load(TaskConfig(data=str(tmp_path / "rows.parquet"), held_out_fraction=0)).prompt(0)
    assert math.isnan(prompt.columns["level"])
    assert json.loads(columns_json(prompt), parse_constant=pytest.fail) == {
        "answer": "1",
        "level": None,
        "more": {"x": [None, None]},
    }


def test_messages_as_json_text_are_messages_and_other_text_is_text(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "hi"}]
    task = of_rows(tmp_path, [{"prompt": json.dumps(asked), "answer": "1"}], held_out_fraction=0)
    assert list(task.prompt(0).messages or ()) == task.prompt(0).columns["prompt"] == asked
    texts = ['[{"a": 1}]', '[{"role": "user"', "[{", '[{"role": "user"}]']
    task = of_rows(tmp_path, [{"prompt": text, "answer": "1"} for text in texts], held_out_fraction=0)
    assert [prompt.columns["prompt"] for prompt in everything(task)] == texts


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz", "txt"])
def test_file_that_is_not_there_is_said_not_to_be(tmp_path: Path, ending: str) -> None:
    with pytest.raises(BadSetting, match=r"nope\S* (cannot be read: No such file|is neither a file here)"):
        load(TaskConfig(data=str(tmp_path / f"nope.{ending}")))


def test_file_of_another_kind_is_told_how_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("prompt\tanswer\nq\t1\n")
    with pytest.raises(
        BadSetting, match=r"line 1 is not JSON: .*what ends in none of .jsonl, .* read as JSONL"
    ):
        load(TaskConfig(data=str(tmp_path / "rows.tsv")))
    (tmp_path / "half.json").write_text('[{"prompt": "\\ud800", "answer": "1"}]')
    with pytest.raises(BadSetting, match=r"half.json is not UTF-8: "):
        load(TaskConfig(data=str(tmp_path / "half.json")))


def test_csv_stays_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,answer\n"one, two",007\nthree,4\n')
    task = load(TaskConfig(data=str(tmp_path / "rows.csv"), held_out_fraction=0))
    assert task.prompt(0).columns == {"prompt": "one, two", "answer": "007"}
    (tmp_path / "rows.csv").write_text("prompt,answer\none,two,three\n")
    with pytest.raises(BadSetting, match=r"row 1 has more or fewer values than there are columns \(2\)"):
        load(TaskConfig(data=str(tmp_path / "rows.csv")))
    (tmp_path / "rows.csv").write_text("prompt,answer,prompt\none,two,three\n")
    with pytest.raises(BadSetting, match="has two columns prompt: give each a name of its own"):
        load(TaskConfig(data=str(tmp_path / "rows.csv")))


def test_verl_layout_is_taken_as_it_is(tmp_path: Path) -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"split": "train", "index": 0},
    }
    prompt = of_rows(tmp_path, [row], held_out_fraction=0).prompt(0)
    assert prompt.messages == ({"role": "user", "content": "2 + 2?"},)
    assert (prompt.answer, prompt.columns) == ("4", row)


def test_columns_and_template_fit_any_layout(tmp_path: Path) -> None:
    rows = [{"question": "2 + 2?", "solution": "2 + 2 is\n#### 4", "meta": {"level": 1}}]
    task = of_rows(
        tmp_path,
        rows,
        held_out_fraction=0,
        columns={"answer": "{{ solution.split('####')[-1] | trim }}", "level": "meta.level"},
        prompt_template="Level {{ level }}: {{ question }}",
        prompt_as="text",
        cue="Solution:",
    )
    prompt = task.prompt(0)
    assert (prompt.text, prompt.answer, prompt.columns["level"]) == ("Level 1: 2 + 2?\n\nSolution:", "4", 1)
    assert prompt.columns["solution"] == "2 + 2 is\n#### 4"


def test_template_reaches_nothing_but_the_row(tmp_path: Path) -> None:
    for template in ("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ missing }}"):
        with pytest.raises(BadSetting, match="does not fit a row with columns prompt, answer"):
            of_rows(tmp_path, [{"prompt": "a", "answer": "b"}], prompt_template=template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for a in [1] * 9999999999 %}x{% endfor %}",
        "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ],
)
def test_template_that_would_take_all_time_or_memory_is_refused(tmp_path: Path, template: str) -> None:
    begun = time.monotonic()
    with pytest.raises(BadSetting, match=r"does not fit a row|is not a Jinja template"):
        of_rows(tmp_path, [{"prompt": "a", "answer": "b"}], prompt_template=template)
    assert time.monotonic() - begun < 60


def test_what_chat_templates_know_is_carried(tmp_path: Path) -> None:
    tool: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
        },
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is"},
    ]
    row = {"prompt": messages, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    options = {"prefill": True, "held_out_fraction": 0, "chat_template_kwargs": {"style": "short"}}
    prompt = of_rows(tmp_path, [row], **options).prompt(0)
    assert prompt.messages == tuple(messages)
    assert prompt.tools == (tool,)
    # As Parquet has them: every tool with the parameters of all.
    wide = {
        **tool,
        "strict": None,
        "function": {**tool["function"], "parameters": {"type": "object", "content": None}},
    }
    # The digest is made of what stands in the row: a run of an earlier version goes on.
    shown = of_rows(tmp_path, [row | {"tools": [wide]}], **options).prompt(0)
    assert content_digest({}, [shown]) == content_digest({}, [replace(shown, tools=(wide,))])
    for tools in ([wide], json.dumps([tool])):
        assert of_rows(tmp_path, [row | {"tools": tools}], **options).prompt(0).tools == (tool,)

    def with_parameter(**fields: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"a": {"type": "integer", **fields}}}
        return {**tool, "function": {"name": "add", "parameters": parameters}}

    meant = with_parameter(default=None)
    assert of_rows(tmp_path, [row | {"tools": [meant]}], **options).prompt(0).tools == (meant,)
    table = pyarrow.Table.from_pylist([{"prompt": "2 + 2?", "tools": [meant, tool]}])
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    filled = load(TaskConfig(data=str(tmp_path / "table.parquet"), **options)).prompt(0).tools
    assert "default" not in json.dumps(filled)
    for given in (
        [with_parameter(default=5), with_parameter()],
        [with_parameter(default=5), with_parameter(minimum=0)],
    ):
        rows = [{"prompt": f"{n}?", "tools": [tool]} for n, tool in enumerate(given)]
        table = pyarrow.Table.from_pylist(rows)
        assert "null" in json.dumps(table.to_pylist())
        as_json = of_rows(tmp_path, table.to_pylist(), **options)
        assert [prompt.tools for prompt in everything(as_json)] == [(tool,) for tool in given]
    by_hand = [{"prompt": "2 + 2?", "tools": [with_parameter(default=5, minimum=0), meant]}]
    assert of_rows(tmp_path, by_hand, **options).prompt(0).tools == tuple(by_hand[0]["tools"])
    assert prompt.is_prefilled
    assert prompt.chat_template_kwargs == {"style": "short", "enable_thinking": False}
    assert prompt.answer == ""


def test_prompts_left_out_are_read_once_however_many_there_are(tmp_path: Path) -> None:
    class Numbers(tuple[int, ...]):
        num_reads = 0

        def __iter__(self) -> Iterator[int]:
            self.num_reads += 1
            return super().__iter__()

    task, numbers = of_rows(tmp_path, ROWS, held_out_fraction=0), Numbers(range(1, 10))
    task.keep_trainable(numbers)
    assert (len(task), numbers.num_reads) == (1, 1)


def test_rows_that_ask_the_same_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 5}?", "answer": str(n)} for n in range(20)]
    task = of_rows(tmp_path, rows, held_out_fraction=0.4)
    sides = [
        {prompt.columns["prompt"] for prompt in side}
        for side in (task.held_out(), map(task.prompt, range(len(task))))
    ]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), task.num_repeated) == (2, 15)


def test_held_out_split_is_never_trained(tmp_path: Path) -> None:
    held_out = written(tmp_path / "test.jsonl", [ROWS[0], {"prompt": "new?", "answer": "1"}])
    task = of_rows(tmp_path, ROWS, held_out_data=held_out)
    asked = {task.prompt(index).columns["prompt"] for index in range(len(task))}
    assert asked == {row["prompt"] for row in ROWS[1:]}
    # Once each, although the first is among the trained rows as well.
    found = [(prompt.columns["prompt"], prompt.row) for prompt in task.held_out()]
    assert found == [(ROWS[0]["prompt"], len(ROWS) + 1), ("new?", len(ROWS) + 2)]


def test_weights_repeat_a_row_within_an_epoch(tmp_path: Path) -> None:
    task = of_rows(tmp_path, ROWS[:3], held_out_fraction=0, weight_column="level")
    assert [task.prompt(index).row for index in range(len(task))] == [1, 2, 2, 3, 3, 3]
    as_text = [row | {"level": str(row["level"])} for row in ROWS[:3]]
    assert of_rows(tmp_path, as_text, held_out_fraction=0, weight_column="level").digest != task.digest
    assert len(of_rows(tmp_path, as_text, held_out_fraction=0, weight_column="level")) == len(task)
    with pytest.raises(BadSetting, match=r"weight_column prompt is 'What.*' in row 1: give a whole number"):
        of_rows(tmp_path, ROWS[:3], weight_column="prompt")
    path = tmp_path / "rows.parquet"
    for weight in (math.nan, math.inf, 0.5):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["1+1"], "answer": ["2"], "n": [weight]}), path)
        with pytest.raises(BadSetting, match=f"weight_column n is {weight} in row 1: give a whole number"):
            load(TaskConfig(data=str(path), held_out_fraction=0, weight_column="n"))
    with pytest.raises(BadSetting, match=r"row 1 has nothing in often, the .*only in prompt, answer, level"):
        of_rows(tmp_path, ROWS[:3], weight_column="often", held_out_fraction=0)


def test_prompts_left_out_are_not_asked(tmp_path: Path) -> None:
    task = of_rows(tmp_path, ROWS[:4], held_out_fraction=0, left_out=(1, 2))
    assert [(task.prompt(index).index, task.prompt(index).row) for index in range(len(task))] == [
        (0, 1),
        (1, 4),
    ]


def test_settings_that_say_nothing_new_read_as_before() -> None:
    assert set(TaskConfig().model_dump(mode="json")) == set(
        TaskConfig(name="addition", rewards=()).model_dump(mode="json")
    )
    assert not {"rewards", "data", "left_out", "columns"} & set(TaskConfig().model_dump(mode="json"))
    config = TaskConfig(data="a.jsonl", rewards=[{"function": "exact"}])
    assert TaskConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"prompt": ' + "[" * 100_000),
        ("a.json", "[" * 100_000),
        ("a.jsonl", '{"prompt": "a", "answer": ' + "9" * 5000 + "}"),
        ("a.json", '[{"prompt": "a", "answer": Infinity}]'),
    ],
)
def test_file_that_no_parser_takes_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadSetting, match="is not JSON") as raised:
        load(TaskConfig(data=str(tmp_path / name)))
    assert "\n" not in str(raised.value)


def test_missing_number_of_a_table_is_no_answer(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a", "b"], "answer": [1.5, math.nan]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadSetting, match="row 2 has the answer nan, which is not a number"):
        load(TaskConfig(data=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([], {}, "has no rows"),
        ([{"question": "a"}], {}, "has neither prompt nor messages, only question: set task.columns.prompt"),
        ([{"prompt": 5}], {}, "row 1 has prompt 5: give a text, or a list of messages"),
        ([{"prompt": "  "}], {}, "row 1 has an empty prompt"),
        (["text"], {}, "line 1 is not a JSON object"),
        (
            [{"prompt": "a", "answer": math.nan}],
            {},
            "line 1 is not JSON: it holds NaN, which is not a number",
        ),
        ([{"prompt": "a", "level": -math.inf}], {}, "it holds -Infinity, which is not a number"),
        (
            [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}],
            {},
            "row 2 asks with messages and row 1",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            {},
            "assistant",
        ),
        ([{"prompt": [{"role": "robot", "content": "a"}]}], {}, "needs role"),
        ([{"prompt": [{"role": "user", "content": "a"}]}], {"prompt_as": "text"}, "prompt_as is text"),
        (
            [{"prompt": "a"}],
            {"columns": {"answer": "b.c"}},
            "names column b.c, which .* does not have: it has prompt",
        ),
        ([{"prompt": "a"}], {"prompt_template": "{% if %}"}, "is not a Jinja template"),
        ([{"prompt": "a", "tools": "{"}], {}, "has tools that are neither"),
        ([{"prompt": "a"}], {"revision": "main"}, "revision main is for a data set on the hub"),
        ([{"prompt": "a"}], {"split": "tset"}, "is one file, which has no split tset"),
        ([{"prompt": "a"}, {"prompt": "b"}], {"held_out_split": "test"}, "which has no split test"),
    ],
)
def test_bad_rows_are_refused_in_one_sentence(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadSetting, match=reason) as raised:
        of_rows(tmp_path, rows, **options)
    assert "\n" not in str(raised.value)


def test_data_that_is_nowhere_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSetting, match=r"nowhere\.parquet cannot be read"):
        load_task(TaskConfig(data="nowhere.parquet"))
    with pytest.raises(BadSetting, match="is neither a file here nor owner/name on the hub"):
        load_task(TaskConfig(data="nowhere"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadSetting, match=r"owner/name .split train. is no file here"):
        load_task(TaskConfig(data="owner/name"))
