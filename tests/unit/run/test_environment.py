"""A run file whose task is an environment."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from asympo.common.errors import BadSetting, NoProgress
from asympo.common.settings import validate
from asympo.engines.base import SamplingSettings
from asympo.evaluator import episodes
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.episodes import EpisodePlayer, measure_episodes, player_of
from asympo.evaluator.measure import Answered
from asympo.evaluator.prepare import Prepared
from asympo.evaluator.settings import EvaluatorSettings
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings, SamplingOptions
from asympo.rewards.progress import RunProgress
from asympo.rewards.scorer import Scorer
from asympo.run.prepare.environment import play_command, with_environment
from asympo.run.settings import RunFile, take_apart
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player_command import PLAYER
from asympo.tasks.registry import load_task

TASK = {"name": "verifiers", "environment": "count", "environment_args": {"level": 2}}
VERIFIERS = """
import threading

class Rows(list):
    to_list = lambda self: list(self)

ClientConfig = dict

class Environment:
    eval_dataset = None
    def __init__(self, **arguments):
        self.arguments = arguments
    def get_dataset(self):
        prompts = [{"role": "user", "content": f"{number} {self.arguments}"} for number in range(4)]
        return Rows([{"prompt": [prompt], "answer": "1", "info": 2} for prompt in prompts])
    async def run_rollout(self, row, client, model, sampling):
        print("not an answer")
        number = float(row["prompt"][0]["content"][0])
        if number == 3:
            # Its process never ends by itself.
            threading.Thread(target=threading.Event().wait).start()
            raise ValueError("no such number")
        said = [{"role": "assistant", "content": client["api_base_url"]}]
        return {"reward": number, "metrics": {"number": number}, "completion": said}

def load_environment(name, **arguments):
    if name != "count":
        raise ValueError("Could not import environment " + name)
    return Environment(**arguments)
"""


@pytest.fixture
def has_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, in this interpreter."""
    package = tmp_path / "site" / "verifiers"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "legacy.py").write_text(VERIFIERS)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def file_of(directory: Path, *, task: dict[str, Any] = TASK, **run: Any) -> RunFile:
    values = {
        "directory": str(directory),
        "name": "r",
        "evaluate": False,
        "environment_python": sys.executable,
    }
    return take_apart({"run": values | run | {"task": task}}, source="run.toml")


@pytest.mark.usefixtures("has_verifiers")
def test_environment_writes_its_rows_once_and_brings_a_gateway(tmp_path: Path) -> None:
    file = with_environment(file_of(tmp_path))
    rows = tmp_path / "r" / "environment.jsonl"
    row = json.loads(rows.read_text().splitlines()[0])
    assert row == {"prompt": [{"role": "user", "content": "0 {'level': 2}"}], "answer": "1"}
    assert file.learner_values["task"]["path"] == str(rows)
    assert file.gateway_values == {}
    # A dry run leaves nothing of the run behind.
    (tmp_path / "dry").mkdir()
    dry = with_environment(file_of(tmp_path, name="s"), directory=tmp_path / "dry")
    assert Path(dry.learner_values["task"]["path"]).parent == tmp_path / "dry"
    assert not (tmp_path / "s").exists()
    rows.write_text("kept\n")
    with_environment(file_of(tmp_path))
    assert rows.read_text() == "kept\n"


def test_player_is_told_the_runs_sampling_and_the_gateways_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = file_of(tmp_path, task=TASK | {"path": "rows"}, environment_groups=3)
    learner = validate(LearnerSettings, file.learner_values | {"run": "r", "checkpoint_root": str(tmp_path)})
    command = play_command(file, learner, GatewaySettings(run="r", http_port=8091))
    *start, spec, verb, address, sampling, groups = command
    assert (start, verb) == ([sys.executable, "-P", str(PLAYER)], "play")
    assert json.loads(spec) == {
        **{"kind": "verifiers", "environment": "count", "arguments": {"level": 2}},
        **{"source": None, "rows": "rows"},
    }
    assert (address, groups) == ("http://127.0.0.1:8091", "3")
    assert set(json.loads(sampling)) == {"temperature", "top_p", "max_tokens"}
    for change, words in (({"stop": ["END"]}, "stop = ('END',)"), ({"min_tokens": 8}, "min_tokens = 8")):
        changed = learner.sampling.model_copy(update=SamplingOptions(**change).model_dump())
        play_command(file, learner.model_copy(update={"sampling": changed}), GatewaySettings(run="r"))
        assert f"{words} counts for nothing here" in caplog.text


@pytest.mark.usefixtures("has_verifiers")
def test_environment_that_cannot_be_had_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"needs run\.environment_python"):
        with_environment(file_of(tmp_path, environment_python=None))
    with pytest.raises(BadSetting, match=r"the environment's Python /none cannot be run: No such file"):
        with_environment(file_of(tmp_path, environment_python="/none"))
    with pytest.raises(BadSetting, match=r"the environment other cannot be loaded by .*Could not import"):
        with_environment(file_of(tmp_path, task=TASK | {"environment": "other"}))
    plain = file_of(tmp_path, task={"name": "addition"})
    assert with_environment(plain) is plain


@pytest.mark.usefixtures("has_verifiers")
def test_share_of_the_rows_is_held_out_where_it_is_asked_for(tmp_path: Path) -> None:
    task = TASK | {"held_out_fraction": 0.5}
    file = with_environment(file_of(tmp_path, task=task, evaluate=True))
    found = load_task(validate(TaskConfig, file.learner_values["task"]))
    assert (len(found), len(found.held_out())) == (2, 2)
    for evals, is_split in (([{"name": "own"}], True), ([{"name": "other", "data": "rows.jsonl"}], False)):
        again = with_environment(file_of(tmp_path / evals[0]["name"], task=task, evals=evals))
        assert bool(load_task(validate(TaskConfig, again.learner_values["task"])).held_out()) is is_split


class OnePolicy:
    """Says which policy is served, of an engine that nobody needs to ask more."""

    async def sample(self, prompt_ids: Any, *, num_samples: int, sampling: SamplingSettings) -> Answered:
        return Answered(texts=[""], token_ids=[()], policy_steps=(7, 7))


@pytest.mark.asyncio
@pytest.mark.usefixtures("has_verifiers")
async def test_held_out_rows_are_played_and_make_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = with_environment(file_of(tmp_path))
    task = validate(TaskConfig, file.learner_values["task"])
    found, config = load_task(task), EvalConfig(samples=2, right_at=2.0)
    prepared = Prepared(
        config=config,
        task=task,
        prompts=tuple(found.prompt(number) for number in range(4)),
        sampling=SamplingSettings(max_tokens=8),
        scorer=cast(Scorer, None),
        progress=RunProgress(),
        prompt_ids=((1,),) * 4,
    )
    player = EpisodePlayer(python=Path(sys.executable))
    heard: list[int] = []
    door = "http://door/v1"
    with monkeypatch.context() as patched:
        patched.setattr(episodes, "_LEAVE_SECONDS", 0.0)
        measured = await measure_episodes(
            prepared, player, door=door, sampler=OnePolicy(), max_in_flight=3, note=heard.append
        )
    result = measured.result
    assert (result.mean.value, result.pass_at[1].value, result.unscored) == (3 / 4, 1 / 4, 2)
    assert (result.policy_step, result.functions) == (7, {"number": 1.0})
    assert heard[-1] == 4
    told = measured.samples[1].responses
    assert [(each.text, each.reward) for each in told] == [(door, 1.0)] * 2
    moved = task.model_copy(update={"environment_args": {"level": 3}})
    playing = player.play(
        moved, [0], door=door, sampling=prepared.sampling, max_in_flight=1, note=heard.append
    )
    with pytest.raises(NoProgress, match="ended with 1 after 0 of 1 episodes"):
        await playing
    monkeypatch.setattr(episodes, "LOAD_SECONDS", 0.0)
    monkeypatch.setattr(episodes, "EPISODE_SECONDS", 0.0)
    playing = player.play(
        task, [0, 1], door=door, sampling=prepared.sampling, max_in_flight=1, note=heard.append
    )
    with pytest.raises(NoProgress, match="has told 0 of 2 episodes after 0 s"):
        await playing


def test_only_the_environment_that_the_settings_name_is_played() -> None:
    task = validate(TaskConfig, TASK)
    values: dict[str, Any] = {"run": "r", "environment": "count", "environment_python": "python"}
    assert player_of(EvaluatorSettings(**values), task).python == Path("python")
    for change, words in (
        ({"environment": "other"}, "give the evaluator environment_python, and the same name"),
        ({"environment_python": None}, "give the evaluator environment_python, and the same name"),
        ({"engine": "generators", "generators": ("127.0.0.1:1",)}, "give doors"),
    ):
        with pytest.raises(BadSetting, match=words):
            player_of(EvaluatorSettings(**(values | change)), task)
