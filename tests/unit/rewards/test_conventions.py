"""Reward functions of other trainers are called as those call them, and what they return is understood."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting
from asympo.rewards.built_in import make_built_in
from asympo.rewards.conventions.base import Asked
from asympo.rewards.scoring import exact_match
from asympo.rewards.token_ids import pack_ids
from asympo.rewards.worker import answers, load_functions
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.reward_config import RewardConfig

ROWS = [
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "level": 3, "ground": {"truth": "4"}},
    {"prompt": [{"role": "user", "content": "2 + 3?"}], "answer": "5", "level": 1, "ground": {"truth": "5"}},
]


def scored(
    tmp_path: Path,
    code: str,
    *rewards: dict[str, Any],
    texts: tuple[str, ...] = ("4", "5"),
    rows: list[dict[str, Any]] = ROWS,
    **task: Any,
) -> list[list[dict[str, Any]]]:
    """For each function the outcome of each response to the first row."""
    (tmp_path / "functions.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = [
        {**each, "function": f"{tmp_path}/functions.py:{each.get('function', 'f')}"} for each in rewards
    ]
    config = TaskConfig(
        data=str(tmp_path / "rows.jsonl"),
        rewards=values or [{"function": f"{tmp_path}/functions.py:f"}],
        **task,
    )
    prompt = load_task(config.model_copy(update={"held_out_fraction": 0})).prompt(0)
    settings = {"task": config.model_dump(mode="json"), "allow_python": True, "columns": list(prompt.columns)}
    functions = load_functions(settings)
    everybody = list(range(len(texts)))
    result = []
    for number, function in enumerate(functions):
        calls = [[number, everybody]] if function.takes_group else [[number, [place]] for place in everybody]
        request = {
            "prompt": dataclasses.asdict(prompt),
            "texts": texts,
            "calls": calls,
            "token_ids": [pack_ids([1, 2]), pack_ids([3])][: len(texts)],
        }
        request = json.loads(json.dumps(request))
        result.append([each for reply in answers(functions, request) for each in reply["outcomes"]])
    return result


def values(outcomes: list[dict[str, Any]]) -> list[Any]:
    return [outcome.get("reason") or outcome.get("value") for outcome in outcomes]


def test_trl_function_gets_the_group_as_trl_gives_it(tmp_path: Path) -> None:
    code = """
def f(prompts, completions, completion_ids, answer, level, trainer_state, log_extra, log_metric, **columns):
    assert prompts == [[{"role": "user", "content": "2 + 2?"}]] * 2
    assert completions == [[{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "5"}]]
    assert completion_ids == [[1, 2], [3]] and level == [3, 3] and columns == {"ground": [{"truth": "4"}] * 2}
    assert trainer_state.global_step == 0
    log_extra("seen", [each[0]["content"] for each in completions])
    log_extra("size", [1e308, 1e30])
    log_metric("rate", 0.5)
    return [1.0 if each[0]["content"] == right else None for each, right in zip(completions, answer)]
"""
    ((first, second),) = scored(tmp_path, code)
    assert first == {"value": 1.0, "extras": {"seen": "4", "size": "1e+308", "rate": 0.5}}
    assert second == {"extras": {"seen": "5", "size": 1e30, "rate": 0.5}}


def test_trl_function_gets_texts_where_the_row_has_a_text(tmp_path: Path) -> None:
    code = """
def f(prompts, completions, **columns):
    return [float(prompt + completion == "ab") for prompt, completion in zip(prompts, completions)]
"""
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    (outcomes,) = scored(tmp_path, code, rows=rows, texts=("b", "c"))
    assert values(outcomes) == [1.0, 0.0]


BEGUN: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>It "}],
        "answer": "4",
    }
]


def test_response_that_the_prompt_begins_is_scored_from_its_beginning(tmp_path: Path) -> None:
    code = """
def trl(prompts, completions, **columns):
    assert prompts == [[{"role": "user", "content": "2 + 2?"}]]
    return [float(completions[0] == [{"role": "assistant", "content": "<think>It is 4"}])]
def openrlhf(queries, prompts, labels):
    return [float((prompts, queries) == (["2 + 2?"], ["2 + 2?<think>It is 4"]))]
def plain(response_text, answer):
    return response_text == "<think>It is 4"
"""
    names = ("trl", "openrlhf", "plain")
    found = scored(
        tmp_path, code, *({"function": name} for name in names), rows=BEGUN, texts=("is 4",), prefill=True
    )
    assert [values(outcomes) for outcomes in found] == [[1.0]] * 3


def test_length_in_characters_is_that_of_what_the_policy_wrote() -> None:
    score = make_built_in(
        RewardConfig(function="length", options={"free": 0, "limit": 10, "unit": "characters"})
    )
    prompt = TaskPrompt(index=0, messages=tuple(BEGUN[0]["prompt"]), answer="4", is_prefilled=True)
    assert score(Asked(prompt=prompt, texts=("<think>It is 4",))) == -0.4


def test_exact_takes_the_answer_behind_a_beginning_or_with_it() -> None:
    asked, begun = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is "}
    for answer, text in (("4", "It is 4"), ("It is 4", "It is 4"), ("4", "It is 5")):
        prompt = TaskPrompt(index=0, messages=(asked, begun), answer=answer, is_prefilled=True)
        assert exact_match(prompt, text) == float(text.endswith("4"))


def test_what_a_function_changes_of_its_arguments_nobody_else_sees(tmp_path: Path) -> None:
    code = """
def trl(prompts, completions, ground, **columns):
    for prompt, completion, each in zip(prompts, completions, ground):
        prompt += completion
        each["truth"] += "!"
    seen = [(len(prompt), each["truth"]) for prompt, each in zip(prompts, ground)]
    return [float(each == (2, "4!")) for each in seen]
def plain(response_text, ground):
    ground["truth"] += "!"
    return ground["truth"] == "4!"
"""
    rewards = ({"function": "trl"}, {"function": "plain"}, {"function": "plain", "name": "again"})
    assert [values(outcomes) for outcomes in scored(tmp_path, code, *rewards)] == [[1.0, 1.0]] * 3


def test_column_that_is_null_in_a_row_hides_no_answer(tmp_path: Path) -> None:
    code = """
def trl(completions, answer): return [float(each == "4") for each in answer]
def verl(data_source, solution_str, ground_truth): return (data_source, ground_truth) == ("unknown", "4")
def openrlhf(queries, prompts, labels): return [float(each == "4") for each in labels]
"""
    nulls = {"answer": None, "ground_truth": None, "label": None, "data_source": None}
    rows = [{"prompt": "2 + 2?", **nulls, "reward_model": {"ground_truth": None}, "solution": "4"}]
    names = ("trl", "verl", "openrlhf")
    found = scored(tmp_path, code, *({"function": name} for name in names), rows=rows)
    assert [values(outcomes) for outcomes in found] == [[1.0, 1.0]] * 3
    # A row that has none says so, for functions that leave such a row to others.
    leaves = "def trl(completions, answer): return [None if each is None else 1.0 for each in answer]"
    rows, elsewhere = [{"prompt": "2 + 2?", "answer": None, "tests": "t"}], tmp_path / "leaves"
    elsewhere.mkdir()
    found = scored(elsewhere, leaves, {"function": "trl"}, rows=rows)
    assert [values(outcomes) for outcomes in found] == [[None, None]]


def test_verl_function_gets_what_verl_keeps_in_a_row(tmp_path: Path) -> None:
    code = """
async def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, ground_truth, extra_info["split"]) == ("openai/gsm8k", "4", "train")
    return {"score": solution_str == ground_truth, "format": 2, "why": "because"}
"""
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"{number}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": number},
        }
        for number in range(2)
    ]
    (outcomes,) = scored(tmp_path, code, {"function": "compute_score"}, rows=rows)
    assert outcomes[0] == {"value": 1.0, "extras": {"format": 2, "why": "because"}}
    assert values(outcomes) == [1.0, 0.0]


def test_openrlhf_function_gets_queries_and_labels(tmp_path: Path) -> None:
    code = """
import numpy
def reward_func(queries, prompts, labels, **kwargs):
    rewards = numpy.array([float(query.endswith(label)) for query, label in zip(queries, labels)])
    return {"rewards": rewards, "scores": rewards / 2, "extra_logs": {"length": [len(q) for q in queries]}}
"""
    (outcomes,) = scored(tmp_path, code, {"function": "reward_func"})
    assert outcomes[0] == {"value": 1.0, "extras": {"length": 7, "scores": 0.5}}
    assert values(outcomes) == [1.0, 0.0]


def test_plain_and_task_prompt_functions_get_one_response(tmp_path: Path) -> None:
    code = """
def plain(response_text, answer, ground):
    return response_text == answer == ground["truth"]
def of_prompt(prompt, response_text):
    return prompt.columns["level"] * (response_text == prompt.answer)
"""
    plain, of_prompt = scored(tmp_path, code, {"function": "plain"}, {"function": "of_prompt"})
    assert (values(plain), values(of_prompt)) == ([1.0, 0.0], [3.0, 0.0])


def test_options_are_bound_or_make_the_function(tmp_path: Path) -> None:
    code = """
def bound(completions, scale=1.0, **columns):
    return [scale] * len(completions)
def get_reward(limit, penalty):
    def reward(completions, **columns):
        return [limit + penalty] * len(completions)
    return reward
"""
    bound, made = scored(
        tmp_path,
        code,
        {"function": "bound", "options": {"scale": 3}},
        {"function": "get_reward", "options": {"limit": 2, "penalty": 5}},
    )
    assert (values(bound), values(made)) == ([3.0, 3.0], [7.0, 7.0])


@pytest.mark.parametrize(
    ("result", "reasons"),
    [
        ("[1.0]", ["1 values for 2 responses"] * 2),
        ("1.0", ["not a list of 2 numbers"] * 2),
        ("'12'", ["not a list of 2 numbers"] * 2),
        ("[1.0, 'a']", [1.0, "'a', which is not a number"]),
        ("[float('nan'), True]", ["reward is nan", 1.0]),
        ("[[1.0], 2]", ["[1.0], which is not a number", 2.0]),
        ("[__import__('numpy').float32(0.5), __import__('numpy').bool_(True)]", [0.5, 1.0]),
        ("[0, None]", [0.0, None]),
        ("1 / 0", ["ZeroDivisionError"] * 2),
    ],
)
def test_result_that_is_no_number_marks_its_response(tmp_path: Path, result: str, reasons: list[Any]) -> None:
    (outcomes,) = scored(tmp_path, f"def f(completions, **columns):\n    return {result}")
    for found, expected in zip(values(outcomes), reasons, strict=True):
        assert expected in found if isinstance(expected, str) else found == expected


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(**kwargs): return 1.0", "set convention to one of trl"),
        ("def f(completions, solution_str): return 1.0", "could be trl or verl"),
        ("def f(completions, missing, **columns): return 1.0", "needs missing, which trl does not pass"),
        ("def f(completions, /): return 1.0", "by position only"),
        ("def f(): return 1.0", "not one of a known convention"),
        ("def g(): return 1.0", "has no function f: it has g"),
        ("import nothing_of_this_name", "does not load: ModuleNotFoundError"),
    ],
)
def test_function_that_cannot_be_called_is_refused_in_one_sentence(
    tmp_path: Path, code: str, reason: str
) -> None:
    with pytest.raises(BadSetting, match=reason):
        scored(tmp_path, code)


def test_convention_given_by_name_decides(tmp_path: Path) -> None:
    code = "def f(text, level): return level * int(text)"
    (outcomes,) = scored(tmp_path, code, {"convention": "plain"})
    assert values(outcomes) == [12.0, 15.0]


def test_token_ids_alone_speak_of_trl(tmp_path: Path) -> None:
    code = "def f(completion_ids, **columns): return [float(sum(ids)) for ids in completion_ids]"
    (outcomes,) = scored(tmp_path, code)
    assert values(outcomes) == [3.0, 3.0]


def test_built_in_functions_score(tmp_path: Path) -> None:
    rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "2 + 3?", "answer": "5"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = TaskConfig(
        data=str(tmp_path / "rows.jsonl"),
        rewards=[
            {"function": "exact"},
            {"function": "regex", "options": {"pattern": r"(\d+)"}},
            {"function": "format", "options": {"pattern": r"\A\d+\Z"}},
            {"function": "overlong", "options": {"max_tokens": 4, "margin": 2}},
            {"function": "length", "options": {"free": 0, "limit": 10, "unit": "characters"}},
        ],
    )
    prompt = next(
        each for each in (load_task(config).prompt(0), *load_task(config).held_out()) if each.answer == "4"
    )
    functions = load_functions({"task": config.model_dump(mode="json"), "allow_python": False, "columns": []})
    request = {
        "prompt": dataclasses.asdict(prompt),
        "texts": ["it is 4"],
        "token_ids": [pack_ids([1, 2, 3])],
        "calls": [[number, [0]] for number in range(len(functions))],
    }
    outcomes = [reply["outcomes"][0].get("value", 0.0) for reply in answers(functions, request)]
    assert outcomes == [0.0, 1.0, 0.0, -0.5, -0.7]


def test_rows_without_an_answer_score_nothing_and_a_set_of_them_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*rows: dict[str, Any], **options: Any) -> TaskConfig:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = TaskConfig(data=str(tmp_path / "rows.jsonl"), held_out_fraction=0, **options)
        load_functions({"task": config.model_dump(mode="json"), "allow_python": False, "columns": []})
        return config

    blank = {"prompt": "b", "answer": None, "target": "2"}
    for options in ({}, {"scoring": "regex", "pattern": "(.*)"}, {"scoring": "math-verify"}):
        with pytest.raises(BadSetting, match=r"1 of 1 rows have no answer .*, target: set task.columns"):
            load(blank, **options)
        config = load({"prompt": "a", "answer": "1"}, blank, **options)
        assert "1 of 2 rows have no answer" in caplog.text
        caplog.clear()
    prompt = load_task(config).prompt(1)
    with pytest.raises(ValueError, match="row 2 has no answer: set"):
        exact_match(prompt, " ")
    # Beside another function, they do not apply.
    for score in ({"function": "exact"}, {"function": "regex", "options": {"pattern": "(.*)"}}):
        assert make_built_in(RewardConfig.model_validate(score))(Asked(prompt=prompt, texts=(" ",))) is None


def test_option_that_a_built_in_function_does_not_take_is_refused() -> None:
    config = TaskConfig(rewards=[{"function": "format", "options": {"patern": "a"}}])
    with pytest.raises(BadSetting, match="it takes pattern"):
        load_functions({"task": config.model_dump(mode="json"), "allow_python": False, "columns": []})
