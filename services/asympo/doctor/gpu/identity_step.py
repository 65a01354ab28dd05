"""Steps repeated, and steps resumed from copied state, end with the same bits."""

from pathlib import Path

import torch

from asympo.doctor.gpu.small_learner import SmallLearner, rollouts_of
from asympo.doctor.gpu.steps import Found
from asympo.learner.step.compute import Compute, choose_compute, set_up_torch

_NUM_STEPS, _RESUMED_AT = 4, 2
_SHAPES = {"cuda": "64/192/4", "cpu": "16/24/2"}

Weights = dict[str, torch.Tensor]


def run(*, device: str, directory: Path) -> Found:
    """Under torch's deterministic algorithms, which raise where an operation has none."""
    set_up_torch(seed=0)
    compute = choose_compute(
        device=device, compute_dtype="auto", share_prefixes="always", attention="auto", decided={}
    )
    how = f"{compute.compute_dtype} with {compute.attention}"
    figures = {"compute_dtype": compute.compute_dtype, "attention": compute.attention, "steps": _NUM_STEPS}
    try:
        first, again, resumed = _whole(compute), _whole(compute), _resumed(compute)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        return Found(sentence=str(error).splitlines()[0], is_ok=False, figures=figures)
    for what, other in (("repeated", again), ("resumed", resumed)):
        unequal = [name for name, tensor in first.items() if not torch.equal(tensor, other[name])]
        if unequal:
            sentence = f"in {how}, {len(unequal)} of {len(first)} tensors differ when steps are {what}"
            return Found(sentence=sentence, is_ok=False, figures={**figures, "unequal": unequal[:5]})
    return Found(
        sentence=f"{_NUM_STEPS} steps in {how} give the same bits twice, and resumed", figures=figures
    )


def _whole(compute: Compute) -> Weights:
    return _train(_learner(compute), range(1, _NUM_STEPS + 1))


def _resumed(compute: Compute) -> Weights:
    before, after = _learner(compute), _learner(compute)
    _train(before, range(1, _RESUMED_AT + 1))
    after.load(before.state())
    return _train(after, range(_RESUMED_AT + 1, _NUM_STEPS + 1))


def _learner(compute: Compute) -> SmallLearner:
    return SmallLearner(compute.torch_device, dtype=compute.torch_dtype, attention=compute.attention)


def _train(learner: SmallLearner, steps: range) -> Weights:
    rollouts = rollouts_of(_SHAPES[learner.policy.device.type])
    for step in steps:
        learner.step(rollouts, step=step)
    return learner.weights()
