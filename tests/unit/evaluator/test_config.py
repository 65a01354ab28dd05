"""What `[[run.evals]]` may say, and what it then asks."""

from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting
from asympo.common.rollout_log.evals.result import Estimate, EvalResult, best_of
from asympo.common.settings import validate
from asympo.engines.base import SamplingSettings
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.settings import EvaluatorSettings
from asympo.run.settings import read_run_file
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task

RUN = SamplingSettings(temperature=0.9, top_p=0.8, max_tokens=64, min_tokens=2, stop=("Q:",))
ADDITION = TaskConfig(name="addition", held_out_fraction=0.1)


def choose_prompts(config: EvalConfig, of_run: TaskConfig) -> tuple[TaskConfig, list[TaskPrompt]]:
    task_config = config.task_config(of_run)
    return task_config, config.choose(load_task(task_config))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(50)))
    return path


def test_without_data_the_held_out_prompts_of_the_run_are_asked_and_the_same_each_time() -> None:
    config = EvalConfig(max_prompts=7)
    task, prompts = choose_prompts(config, ADDITION)
    assert task == ADDITION
    assert len({prompt.index for prompt in prompts}) == 7
    assert choose_prompts(config, ADDITION)[1] == prompts


def test_data_beside_the_eval_is_asked_in_full_and_scored_as_the_run_unless_it_says_otherwise(
    rows: Path,
) -> None:
    of_run = TaskConfig(data=str(rows), scoring="regex", pattern=r"\d+", prompt_as="text")
    flat = EvalConfig.model_validate({"name": "x", "data": str(rows), "samples": 2})
    nested = EvalConfig.model_validate({"name": "x", "task": {"data": str(rows)}, "samples": 2})
    assert flat == nested
    task, prompts = choose_prompts(flat, of_run)
    assert len(prompts) == 50
    assert (task.scoring, task.prompt_as) == ("regex", "text")
    own = EvalConfig.model_validate({"data": str(rows), "scoring": "exact"})
    assert choose_prompts(own, of_run)[0].scoring == "exact"


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("held_out_fraction", 0.5), ("split", "test"), ("size", 9), ("columns", {"answer": "b"})],
)
def test_keys_that_decide_what_the_run_holds_out_are_refused(key: str, value: Any) -> None:
    """Others than those that the run holds out were trained."""
    with pytest.raises(BadSetting, match=f"{key} may decide which prompts are held out"):
        validate(EvaluatorSettings, {"evals": [{key: value}]})


def test_held_out_prompts_may_be_asked_otherwise_only_where_they_stay_the_same(rows: Path) -> None:
    given = EvalConfig.model_validate({"name": "terse", "system_prompt": "Be terse."})
    asked = choose_prompts(given, ADDITION)[1]
    assert [each.row for each in asked] == [each.row for each in choose_prompts(EvalConfig(), ADDITION)[1]]
    of_run = TaskConfig(data=str(rows), held_out_fraction=0.2)
    with pytest.raises(BadSetting, match="the evaluation terse has another system_prompt than the run"):
        given.task_config(of_run)
    assert given.task_config(of_run.model_copy(update={"held_out_split": "test"})).system_prompt
    scored = EvalConfig.model_validate({"scoring": "regex", "pattern": r"\d+"})
    assert choose_prompts(scored, of_run)[1] == choose_prompts(EvalConfig(), of_run)[1]


def test_sampling_is_greedy_for_one_sample_and_the_runs_own_for_more() -> None:
    assert EvalConfig().sampling(RUN).temperature == 0
    several = EvalConfig(samples=4, max_tokens=9, stop=()).sampling(RUN)
    assert (several.temperature, several.top_p, several.max_tokens, several.min_tokens) == (0.9, 0.8, 9, 0)
    assert several.stop == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "a b"}, "name"),
        ({"samples": 0}, "samples"),
        ({"every": 0}, "every"),
        ({"sample": 4}, "sample"),
        ({"name": "x", "scoring": "regexp", "data": "x.jsonl"}, "scoring"),
        ({"task": "addition"}, "task"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        validate(EvaluatorSettings, {"evals": [given]})


def test_two_of_one_name_and_generators_elsewhere_are_refused() -> None:
    with pytest.raises(BadSetting, match="two evaluations have the name held-out"):
        validate(EvaluatorSettings, {"evals": [{}, {}]})
    with pytest.raises(BadSetting, match=r"10\.0\.0\.1:50052 is not on this machine"):
        validate(EvaluatorSettings, {"engine": "generators", "generators": ["10.0.0.1:50052"]})
    here = {"engine": "generators", "generators": ["127.0.0.1:1"]}
    with pytest.raises(BadSetting, match="generators always use the run's stop strings"):
        validate(EvaluatorSettings, {**here, "evals": [{"stop": []}]})
    with pytest.raises(BadSetting, match="go together"):
        validate(EvaluatorSettings, {"engine": "generators"})


def test_a_missing_file_and_a_run_that_holds_nothing_out_are_said_in_a_sentence() -> None:
    with pytest.raises(BadSetting, match=r"nowhere\.jsonl"):
        choose_prompts(EvalConfig.model_validate({"data": "nowhere.jsonl"}), ADDITION)
    with pytest.raises(BadSetting, match="give it data of its own"):
        choose_prompts(EvalConfig(), ADDITION.model_copy(update={"held_out_fraction": 0.0}))


def test_run_file_finds_data_and_rewards_of_evals_beside_it(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def reward(response_text, **columns):\n    return 1.0\n")
    file = tmp_path / "run.toml"
    file.write_text(
        '[run]\nmodel = "m"\n[[run.evals]]\ndata = "rows.jsonl"\n'
        '[[run.evals.rewards]]\nfunction = "own.py:reward"\n[evaluator]\nengine = "simulated"\n'
    )
    found = read_run_file(file)
    assert found.run.evals[0].task["data"] == str(rows)
    assert found.evaluator_values == {"allow_python": True, "engine": "simulated"}
    assert found.generator_values == {}


def result(step: int | None, mean: float, *, last: int | None = None, fence: int = 1) -> EvalResult:
    estimate = Estimate(value=mean, low=mean, high=mean)
    return EvalResult(
        eval="e",
        policy_step=step,
        policy_fence=fence,
        last_policy_step=step if last is None else last,
        prompts=3,
        samples=1,
        mean=estimate,
        pass_at={1: estimate},
        functions={"f": 0.5},
    )


def test_best_is_the_highest_mean_of_one_policy_and_the_later_of_two() -> None:
    results = [result(1, 0.5), result(2, 0.7), result(3, 0.7), result(4, 0.9, last=6), result(None, 1.0)]
    best = best_of(results, "e")
    assert best is not None
    assert best.policy_step == 3
    assert best_of(results, "other") is None


def test_result_travels_as_json_and_passes_unknown_fields() -> None:
    sent = result(3, 0.25)
    assert EvalResult.from_dict({**sent.to_dict(), "newer": 1}) == sent
    assert sent.numbers() == {
        "eval/e/mean@1": 0.25,
        "eval/e/pass@1": 0.25,
        "eval/e/reward/f": 0.5,
        "eval/e/policy_step": 3.0,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1, 2]},
        {"mean": [float("nan"), 0, 0]},
        {"prompts": -1},
        {"prompts": True},
        {"pass_at": {"x": [0, 0, 0]}},
        {"pass_at": {str(k): [0, 0, 0] for k in range(100)}},
        {"functions": {"f": "high"}},
        {"functions": 5},
    ],
)
def test_a_result_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a result of an evaluation"):
        EvalResult.from_dict({**result(1, 0.5).to_dict(), **change})
