"""A learner that trains an adapter, killed in the middle, and its run trained again from the archive."""

import signal
from pathlib import Path

import pytest
import torch
from asympo.common.checkpoints.opening import open_policies
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights

from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.learner.test_replay import replay

STEPS = 8
FLAGS = ("--total-steps", str(STEPS), "--retain", "--keep-policies", "9", "--keep-states", "9")
LORA = ("--lora.rank", "4", "--lora.alpha", "8", "--lora.base-bits", "4", "--compute-dtype", "bfloat16")


@pytest.mark.timeout(400)
def test_adapter_of_a_learner_killed_and_stopped_is_trained_again_bit_for_bit(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    learner = LearnerProcess(
        url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=(*FLAGS, *LORA)
    )
    with Producer(url=broker_url, run=run_name) as producer:
        producer.hold_at_step = 4
        learner.start()
        learner.until(lambda: learner.reached(4))
        learner.end(signal.SIGKILL)
        producer.hold_at_step = 6
        learner.start("--take-over")
        learner.until(lambda: learner.reached(6))
        assert learner.end(signal.SIGTERM) == 0, learner.log
        producer.hold_at_step = None
        assert learner.start().wait() == 0, learner.log

    code, report = replay(tmp_path, run_name, "--out", str(tmp_path / "out"))
    assert (code, report["weights_identical"], report["steps"]) == (0, True, STEPS)
    assert report["states_compared"] >= 2
    assert report["policies_compared"] >= STEPS

    store = open_policies(tmp_path, run_name)
    policies = [store.verify(ref) for ref in store.list()]
    assert [policy.kind for policy in policies if policy.step == 0] == ["full"]
    assert {policy.kind for policy in policies if policy.step} == {"adapter"}
    assert len({policy.base for policy in policies if policy.base}) == 1
    # Served is what is computed with: of a base in 4 bits what those say.
    base, model = (load_weights(path / "model.safetensors") for path in (store.list()[0].path, tiny_model))
    assert {name for name in base if not torch.equal(base[name], model[name])} == {
        name for name in base if name.endswith("_proj.weight")
    }
    last = max((tmp_path / run_name / "train").glob("step-*"), key=lambda path: path.name)
    held = load_file(last / "rank-00000.safetensors")
    assert all(name.startswith(("rng.", "base.")) or ".lora_" in name for name in held)
    assert {path.name for path in (tmp_path / "out").glob("adapter*")} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }
