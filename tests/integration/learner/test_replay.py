"""A run whose learner was killed and whose broker went back is trained again from its archive."""

import json
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asympo.common.archive import PartInfo, open_archive
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import BadSetting
from asympo.learner.replay.archive_replay import Replay
from asympo.learner.state.open import open_states
from asympo.learner.state.recipe import Recipe
from asympo.learner.step.step import Stepper

from tests.conftest import start_broker
from tests.forked import ForkedPython
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer

STEPS = 12

SMALL_MEMORY = """
import sys
import tempfile
from asympo.cli import main
from asympo.learner.model.policy import Policy
from asympo.learner.step.step import Stepper

step_now = 0
train, response_nll = Stepper.train, Policy.response_nll

def noted_train(self, groups, scope, *, step):
    global step_now
    step_now = step
    return train(self, groups, scope, step=step)

def small_response_nll(self, batch):
    import torch
    if torch.is_grad_enabled() and step_now >= 5 and batch.num_tokens > 24:
        raise MemoryError("there is room for 24 tokens")
    return response_nll(self, batch)

Stepper.train, Policy.response_nll = noted_train, small_response_nll
sys.exit(main(["learner", *sys.argv[1:]]))
"""
"""A learner whose memory is too small for a row of its step 5, and from then on."""


OTHER_SETTINGS = ("--weight-decay", "0.3", "--beta1", "0.8", "--max-row-tokens", "15")
"""Of the last learner: how its optimizer steps, and which groups it takes."""


def replay(root: Path, run: str, *flags: str) -> tuple[int, dict[str, Any]]:
    """`asympo log replay` in a process of its own."""
    command = [sys.executable, "-m", "asympo.cli", "log", "replay", "--run", run, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        command += ["--checkpoint-root", str(root), *flags]
        code = ForkedPython(command, output=output, errors=errors, environment={}).wait(120)
        assert output.stat().st_size, errors.read_text()
        return code, json.loads(output.read_text())


@pytest.fixture(scope="module")
def disturbed_run(
    broker_binary: str, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> tuple[Path, str]:
    """Learner out of memory at step 5, killed twice, once with the broker, which comes back as it was.

    The last one has other settings.
    """
    root = tmp_path_factory.mktemp("replayed")
    broker = start_broker(broker_binary, root / "broker")
    flags = ("--total-steps", str(STEPS), "--retain", "--keep-states", "9", "--keep-policies", "9")
    learner = LearnerProcess(
        url=broker.url, run="run", root=root, model=tiny_model, flags=flags, launcher=("-c", SMALL_MEMORY)
    )
    earlier = root / "broker-earlier"
    try:
        with Producer(url=broker.url, run="run", hostile_every=9) as producer:
            producer.hold_at_step = 7
            learner.start()
            learner.until(lambda: learner.reached(1))
            shutil.copytree(root / "broker", earlier)
            learner.until(lambda: learner.reached(7))
            learner.end(signal.SIGKILL)
            broker.kill()
            shutil.rmtree(root / "broker")
            shutil.copytree(earlier, root / "broker")
            broker.start()
            producer.hold_at_step = 9
            learner.start("--take-over")
            learner.until(lambda: learner.reached(9))
            assert "the broker had lost acknowledged state" in learner.log
            learner.end(signal.SIGKILL)
            producer.hold_at_step = None
            assert learner.start("--take-over", *OTHER_SETTINGS).wait() == 0, learner.log
            assert "this learner's max_row_tokens is 15" in learner.log
            changes = "beta1 0.9 to 0.8; weight_decay 0.0 to 0.3; max_row_tokens None to 15"
            assert learner.count("The run goes on with other settings than those of step") == 1
            assert changes in learner.log
    finally:
        broker.kill()
    return root, "run"


@pytest.mark.timeout(400)
def test_replay_of_a_disturbed_run_gives_the_same_bits(
    disturbed_run: tuple[Path, str], tmp_path: Path
) -> None:
    root, run = disturbed_run
    code, report = replay(root, run, "--out", str(tmp_path / "out"))
    assert code == 0
    assert (report["weights_identical"], report["steps"], report["first_difference"]) == (True, STEPS, None)
    assert report["states_compared"] >= 4
    assert report["policies_compared"] >= 4
    assert report["groups"] == len(list(open_archive(root / run).entries()))
    assert "Memory ran out: rows of up to" in (root / f"{run}-learner.log").read_text()
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_replay_begins_at_a_state_and_ends_at_a_step(disturbed_run: tuple[Path, str]) -> None:
    root, run = disturbed_run
    states = open_states(root, run)
    [begin] = [name for name in states.names() if states.read(name).step == 6][-1:]
    report = Replay(checkpoint_root=root, run=run, from_state=begin, any_build=False).run(until_step=9)
    assert (report.first_step, report.steps, report.weights_identical) == (6, 3, True)


def test_replay_passes_over_what_is_pruned_while_it_runs(
    disturbed_run: tuple[Path, str], tmp_path: Path
) -> None:
    run = disturbed_run[1]
    root = Path(shutil.copytree(disturbed_run[0] / run, tmp_path / run)).parent
    states, policies = open_states(root, run), open_policies(root, run)
    begin, *_, end = [name for name in states.names() if states.read(name).step in (6, 9)][-2:]
    replay = Replay(checkpoint_root=root, run=run, from_state=begin, any_build=False)
    shutil.rmtree(states.path / end)
    for policy in [ref for ref in policies.list() if ref.step >= 8]:
        shutil.rmtree(policies.path / policy.name)
    report = replay.run(until_step=9)
    assert (report.pruned, report.policies_compared, report.weights_identical) == (3, 2, True)


def test_replay_in_rows_of_the_size_asked_for_differs_where_memory_ran_out(
    disturbed_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = disturbed_run
    asked = property(lambda stepper: (64, 256), lambda stepper, value: None)
    monkeypatch.setattr(Stepper, "row_limits", asked)
    report = Replay(checkpoint_root=root, run=run, from_state=None, any_build=False).run()
    assert report.first_difference is not None
    assert report.first_difference.step >= 5


def test_replay_with_another_learning_rate_names_the_first_tensor(
    disturbed_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = disturbed_run
    true_recipe = Recipe.of

    def twice_as_fast(info: PartInfo, *, any_build: bool) -> Recipe:
        recipe = true_recipe(info, any_build=any_build)
        faster = recipe.settings.model_copy(update={"learning_rate": 2 * recipe.settings.learning_rate})
        return replace(recipe, settings=faster)

    monkeypatch.setattr(Recipe, "of", staticmethod(twice_as_fast))
    report = Replay(checkpoint_root=root, run=run, from_state=None, any_build=False).run()
    assert report.weights_identical is False
    assert report.first_difference is not None
    assert report.first_difference.step <= 3
    assert "model." in report.first_difference.tensor


def test_replay_refuses_another_build_by_name(
    disturbed_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = disturbed_run
    monkeypatch.setattr("asympo.learner.state.recipe.transformers.__version__", "0.0.1")
    with pytest.raises(BadSetting, match=r"transformers was .* and is 0\.0\.1 here"):
        Replay(checkpoint_root=root, run=run, from_state=None, any_build=False)
