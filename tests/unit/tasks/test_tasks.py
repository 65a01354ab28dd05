"""Prompts, held-out splits and scoring of the shipped tasks."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
from asympo.common.errors import BadSetting
from asympo.rewards.numeric import last_integer
from asympo.tasks.base import Task, TaskPrompt, held_out_keys
from asympo.tasks.registry import TaskConfig, load_task
from asympo.tasks.render import render_prompt
from asympo.testing.tiny_model import load_tiny_tokenizer


def write_rows(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def load_scoring_task(config: TaskConfig) -> Task:
    task = load_task(config)
    task.prepare_scoring()
    return task


def question(prompt: TaskPrompt) -> str:
    assert prompt.messages is not None
    return prompt.messages[-1]["content"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("The answer is 7.", 7),
        ("3 + 4 = 7", 7),
        ("-5", -5),
        ("12-5", 5),
        ("x = -5", -5),
        ("7.5", None),
        ("it is 12, not 7.5", 12),
        ("", None),
        ("seven", None),
        ("٣", None),
        ("9" * 101, None),
        ("8 " + "9" * 5000, None),
    ],
)
def test_last_integer_reads_what_a_person_would(text: str, expected: int | None) -> None:
    assert last_integer(text) == expected


def addition(a: object, b: object) -> str:
    return f"What is {a} + {b}? Write the result in digits."


def test_addition_holds_out_a_fifth_of_the_unordered_pairs() -> None:
    task = load_task(TaskConfig())
    train = {question(task.prompt(index)) for index in range(len(task))}
    held_out = {question(prompt) for prompt in task.held_out()}
    pairs = {frozenset(re.findall(r"\d+", text)) for text in held_out}
    assert len(train) + len(held_out) == 400
    assert len(pairs) == 42
    for pair in pairs:
        a, b = [*pair, *pair][:2]
        assert not {addition(a, b), addition(b, a)} & train


def test_addition_rewards_the_sum() -> None:
    task = load_scoring_task(TaskConfig())
    prompt = next(p for p in map(task.prompt, range(len(task))) if question(p) == addition(3, 4))
    assert prompt.messages is not None
    assert prompt.messages[0] == {"role": "system", "content": "Answer with only the number."}
    assert task.score(prompt, "7") == 1.0
    assert task.score(prompt, "I think 3 + 4 is 7.") == 1.0
    assert task.score(prompt, "8") == task.score(prompt, "") == 0.0


def test_digest_depends_on_what_is_asked_and_on_the_split() -> None:
    digests = [
        load_task(config).digest
        for config in (
            TaskConfig(),
            TaskConfig(seed=1),
            TaskConfig(held_out_fraction=0.1),
            TaskConfig(system_prompt="Add."),
            TaskConfig(prompt_as="text"),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert load_task(TaskConfig()).digest == digests[0]


@pytest.mark.parametrize("index", [-1, 321, 10**9])
def test_prompt_outside_the_task_raises_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        load_task(TaskConfig()).prompt(index)


def test_held_out_keys_do_not_depend_on_order_and_leave_one() -> None:
    keys = [f"q{number}" for number in range(50)]
    chosen = held_out_keys(keys, fraction=0.2, seed=3)
    assert len(chosen) == 10
    assert held_out_keys([*reversed(keys), "q1", "q1"], fraction=0.2, seed=3) == chosen
    assert len(held_out_keys(["a", "b"], fraction=0.99, seed=0)) == 1
    assert len(held_out_keys(["a", "b"], fraction=0.01, seed=0)) == 1
    assert (
        held_out_keys(["a"], fraction=0.9, seed=0) == held_out_keys(keys, fraction=0, seed=0) == frozenset()
    )


def test_jsonl_reads_prompts_and_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hauptstadt?"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "2 + 2?", "answer": 4, "id": "extra"},
        {"messages": messages, "answer": "Köln"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", [rows[0], "", rows[1]])
    task = load_task(TaskConfig(name="jsonl", path=path, held_out_fraction=0, system_prompt="Be brief."))
    system = {"role": "system", "content": "Be brief."}
    assert [task.prompt(0), task.prompt(1)] == [
        TaskPrompt(
            index=0,
            messages=(system, {"role": "user", "content": "2 + 2?"}),
            answer="4",
            row=1,
            columns=rows[0],
        ),
        TaskPrompt(index=1, messages=(system, messages[0]), answer="Köln", row=3, columns=rows[1]),
    ]


def test_jsonl_asks_plain_text_when_told_to(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "2 + 2 =", "answer": "4"}])
    task = load_task(TaskConfig(name="jsonl", path=path, prompt_as="text"))
    assert (task.prompt(0).text, task.prompt(0).messages) == ("2 + 2 =", None)


def test_jsonl_split_is_stable_and_keeps_equal_questions_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number % 30}", "answer": str(number)} for number in range(60)]
    config = TaskConfig(name="jsonl", path=write_rows(tmp_path / "a.jsonl", rows), seed=5)
    moved = config.model_copy(update={"path": write_rows(tmp_path / "b.jsonl", rows)})
    task, again = load_task(config), load_task(moved)
    train = {question(task.prompt(index)) for index in range(len(task))}
    held_out = {question(prompt) for prompt in task.held_out()}
    assert len(held_out) == 6
    assert not train & held_out
    assert task.held_out() == again.held_out()
    assert task.digest == again.digest


BAD_ROWS = [
    ("{not json", "is not JSON"),
    ("[1]", "is not a JSON object"),
    ({"prompt": "x"}, "needs answer"),
    ({"prompt": "x", "answer": None}, "needs answer"),
    ({"prompt": "x", "answer": True}, "needs answer"),
    ({"prompt": "x", "answer": " "}, "needs answer"),
    ({"answer": "x"}, "needs either prompt or messages"),
    ({"prompt": "x", "messages": [], "answer": "x"}, "needs either prompt or messages"),
    ({"prompt": "", "answer": "x"}, "non-empty"),
    ({"prompt": 3, "answer": "x"}, "needs prompt to be a non-empty text"),
    ({"messages": [], "answer": "x"}, "non-empty"),
    ({"messages": ["hi"], "answer": "x"}, "has message 'hi'"),
    ({"messages": [{"role": "boss", "content": "hi"}], "answer": "x"}, "needs role"),
    ({"messages": [{"role": "assistant", "content": "hi"}], "answer": "x"}, "the policy writes that one"),
    ('{"prompt": "\\ud800", "answer": "x"}', "is not UTF-8"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_malformed_row_is_named_by_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x", "answer": "x"}, row])
    with pytest.raises(BadSetting, match=f"line 2 .*{reason}"):
        load_task(TaskConfig(name="jsonl", path=path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "has no rows"),
        (b'{"prompt": "\xff", "answer": "x"}', "line 1 is not UTF-8"),
    ],
)
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSetting, match=reason):
        load_task(TaskConfig(name="jsonl", path=str(path)))


def scores(tmp_path: Path, answer: str, responses: list[str], **options: Any) -> list[float]:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x", "answer": answer}])
    task = load_scoring_task(TaskConfig(name="jsonl", path=path, **options))
    return [task.score(task.prompt(0), response) for response in responses]


def test_jsonl_exact_scoring(tmp_path: Path) -> None:
    assert scores(tmp_path, "Paris", ["Paris", " Paris\n", "paris", "It is Paris"]) == [1, 1, 0, 0]


def test_jsonl_regex_scoring_takes_the_last_match(tmp_path: Path) -> None:
    responses = ["#### 7", "#### 3, no: #### 7", "7", "#### 8"]
    assert scores(tmp_path, "7", responses, scoring="regex", pattern=r"#### (\d+)") == [1, 1, 0, 0]
    assert scores(tmp_path, "7", ["a 7", "seven"], scoring="regex", pattern=r"\d+") == [1, 0]


def test_jsonl_math_verify_scoring_knows_equal_expressions(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    responses = ["so it is \\boxed{0.5}", "$\\frac{2}{4}$", "1/2", "\\boxed{2}", "no idea", ""]
    assert scores(tmp_path, "\\frac{1}{2}", responses, scoring="math-verify") == [1, 1, 1, 0, 0, 0]


NEXT_PROBLEM = "\n\nProblem: What is 3 + 3?\n\nSolution: It is \\boxed{6}.\n\nProblem: What is"


@pytest.mark.parametrize(
    "answered",
    [
        "2 + 2 is \\boxed{4}.",
        "so $\\boxed{4}$",
        "so \\(\\boxed{4}\\)",
        "so\n\\[\n\\boxed{4}\n\\]\nas asked",
        "hence $$\\boxed{\\frac{8}{2}}$$",
    ],
)
def test_base_model_that_goes_on_is_scored_by_the_answer_to_what_was_asked(
    answered: str, tmp_path: Path
) -> None:
    pytest.importorskip("math_verify")
    options = {"scoring": "math-verify", "prompt_as": "text", "cue": "Solution:"}
    responses = [answered, answered + NEXT_PROBLEM, NEXT_PROBLEM + answered, "no box, it is 4"]
    assert scores(tmp_path, "4", responses, **options) == [1, 1, 0, 1]


def test_box_that_was_cut_off_scores_nothing(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    assert scores(tmp_path, "4", ["it is \\boxed{"], scoring="math-verify", prompt_as="text") == [0]


def test_chat_is_scored_by_all_that_was_said(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    responses = ["First \\boxed{3}?\nNo.\nIt is \\boxed{4}."]
    assert scores(tmp_path, "4", responses, scoring="math-verify") == [1]


def test_plain_text_has_a_cue_after_the_question(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "What is 2 + 2?", "answer": "4"}])
    config = TaskConfig(name="jsonl", path=path, prompt_as="text", system_prompt="Solve it.", cue="Solution:")
    assert load_task(config).prompt(0).text == "Solve it.\n\nWhat is 2 + 2?\n\nSolution:"
    with pytest.raises(pydantic.ValidationError, match="cue needs prompt_as = text"):
        TaskConfig(cue="Solution:")


def test_task_without_a_cue_reads_as_before_there_were_any() -> None:
    assert "cue" not in TaskConfig().model_dump(mode="json")
    assert TaskConfig(prompt_as="text", cue="A:").model_dump()["cue"] == "A:"


def test_answer_that_math_verify_cannot_read_raises(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match=r"finds no mathematics in answer '\$' of row 1"):
        scores(tmp_path, "$", ["1"], scoring="math-verify")


def test_pattern_that_is_no_regular_expression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"task.pattern '\(' is not a regular expression"):
        scores(tmp_path, "7", [], scoring="regex", pattern="(")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "jsonl"}, "needs path"),
        ({"name": "reasoning-gym"}, "needs dataset"),
        ({"path": "x"}, "path belongs to the jsonl and verifiers and trl-environment task"),
        ({"name": "jsonl", "path": "x", "scoring": "regex"}, "give both or neither"),
        ({"name": "jsonl", "path": "x", "pattern": "x"}, "give both or neither"),
        ({"name": "jsonl", "path": "x", "scoring": "python:os"}, "scoring"),
        ({"name": "reasoning-gym", "dataset": "gcd", "dataset_options": {"size": 3}}, "options of the task"),
        ({"held_out_fraction": 1.0}, "held_out_fraction"),
        ({"pth": "x"}, "pth"),
    ],
)
def test_options_that_do_not_fit_the_task_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=reason):
        TaskConfig(**options)


def test_config_survives_the_run_config_as_json() -> None:
    config = TaskConfig(name="reasoning-gym", dataset="gcd", dataset_options={"max_value": 9})
    assert TaskConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_reasoning_gym_asks_and_scores_by_name() -> None:
    pytest.importorskip("reasoning_gym")
    config = TaskConfig(name="reasoning-gym", dataset="chain_sum", size=40, seed=2)
    task, again = load_scoring_task(config), load_task(config)
    train = {question(task.prompt(index)) for index in range(len(task))}
    prompt = task.held_out()[0]
    assert (len(task), len(task.held_out())) == (32, 8)
    assert not train & {question(prompt) for prompt in task.held_out()}
    assert task.digest == again.digest
    assert task.score(prompt, f"<think>hm</think> <answer>{prompt.answer}</answer>") == 1.0
    assert task.score(prompt, prompt.answer) == 1.0
    assert task.score(prompt, "<answer>no</answer>") < 1.0


def test_reasoning_gym_asks_equal_questions_once() -> None:
    pytest.importorskip("reasoning_gym")
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = load_task(TaskConfig(name="reasoning-gym", dataset="chain_sum", size=400, dataset_options=options))
    questions = [question(p) for p in [*map(task.prompt, range(len(task))), *task.held_out()]]
    assert len(questions) == len(set(questions)) < 400


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": "chain_sums"}, "not among reasoning-gym's .*; nearest: chain_sum"),
        ({"dataset": "chain_sum", "dataset_options": {"max_term": 3}}, "do not fit data set chain_sum"),
        ({"dataset": "chain_sum", "dataset_options": {"min_terms": -1}}, "do not fit data set chain_sum"),
    ],
)
def test_wrong_reasoning_gym_setting_is_refused(options: dict[str, Any], reason: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(BadSetting, match=reason):
        load_task(TaskConfig(name="reasoning-gym", **options))


def test_missing_library_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for library in ("reasoning_gym", "math_verify"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BadSetting, match="needs the reasoning-gym library"):
        load_task(TaskConfig(name="reasoning-gym", dataset="gcd"))
    with pytest.raises(BadSetting, match="needs the math-verify library"):
        scores(tmp_path, "1", [], scoring="math-verify")


def test_tasks_and_scorer_import_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "sympy", "reasoning_gym", "redis", "google.protobuf"]
    code = (
        "import sys, asympo.rewards.scorer, asympo.rewards.worker, asympo.tasks.render\n"
        "from asympo.tasks.registry import TaskConfig, load_task\n"
        f"load_task(TaskConfig()); print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_messages_are_rendered_up_to_where_the_answer_begins(tokenizer: Any) -> None:
    prompt = load_task(TaskConfig()).prompt(0)
    assert tokenizer.decode(render_prompt(prompt, tokenizer)) == (
        "<|im_start|>system\nAnswer with only the number.<|im_end|>\n"
        f"<|im_start|>user\n{addition(1, 1)}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_plain_text_is_encoded_as_it_is(tokenizer: Any) -> None:
    prompt = TaskPrompt(index=0, text="1 + 1 =", answer="2")
    assert tokenizer.decode(render_prompt(prompt, tokenizer)) == "1 + 1 ="


def test_template_that_refuses_a_system_message_is_reported(tokenizer: Any) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(BadSetting, match="template refuses prompt 0: System role not supported"):
        render_prompt(load_task(TaskConfig()).prompt(0), strict)


def test_model_without_chat_template_is_refused(tokenizer: Any) -> None:
    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    with pytest.raises(BadSetting, match=r"no chat template: set task\.prompt_as to text"):
        render_prompt(load_task(TaskConfig()).prompt(0), base)
