"""A run file whose task is an environment."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting
from asympo.common.settings import validate
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings
from asympo.run.prepare.environment import play_command, with_environment
from asympo.run.settings import RunFile, take_apart
from asympo.tasks.environments.player_command import PLAYER

TASK = {"name": "verifiers", "environment": "count", "environment_args": {"level": 2}}
VERIFIERS = """
class Rows(list):
    to_list = lambda self: list(self)

ClientConfig = dict

class Environment:
    eval_dataset = None
    def __init__(self, **arguments):
        self.arguments = arguments
    def get_dataset(self):
        prompt = [{"role": "user", "content": str(self.arguments)}]
        return Rows([{"prompt": prompt, "answer": "1", "info": 2}])

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
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert row == {"prompt": [{"role": "user", "content": "{'level': 2}"}], "answer": "1"}
    assert file.learner_values["task"]["path"] == str(rows)
    assert file.gateway_values == {}
    rows.write_text("kept\n")
    with_environment(file_of(tmp_path))
    assert rows.read_text() == "kept\n"


def test_player_is_told_the_runs_sampling_and_the_gateways_address(tmp_path: Path) -> None:
    file = file_of(tmp_path, task=TASK | {"path": "rows"}, environment_groups=3)
    learner = validate(LearnerSettings, file.learner_values | {"run": "r", "checkpoint_root": str(tmp_path)})
    command = play_command(file, learner, GatewaySettings(run="r", http_port=8091))
    *start, spec, verb, address, sampling, groups = command
    assert (start, verb) == ([sys.executable, "-P", str(PLAYER)], "play")
    assert json.loads(spec) == {
        **{"kind": "verifiers", "environment": "count", "arguments": {"level": 2}, "rows": "rows"}
    }
    assert (address, groups) == ("http://127.0.0.1:8091", "3")
    assert set(json.loads(sampling)) == {"temperature", "top_p", "max_tokens"}


@pytest.mark.usefixtures("has_verifiers")
def test_environment_that_cannot_be_had_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"set run\.evaluate to false and leave run\.evals out"):
        with_environment(file_of(tmp_path, evaluate=True))
    with pytest.raises(BadSetting, match=r"needs run\.environment_python"):
        with_environment(file_of(tmp_path, environment_python=None))
    with pytest.raises(BadSetting, match=r"environment_python /none cannot be run: No such file"):
        with_environment(file_of(tmp_path, environment_python="/none"))
    with pytest.raises(BadSetting, match=r"the environment other cannot be loaded by .*Could not import"):
        with_environment(file_of(tmp_path, task=TASK | {"environment": "other"}))
    plain = file_of(tmp_path, task={"name": "addition"})
    assert with_environment(plain) is plain
