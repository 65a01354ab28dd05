"""Learning rate, clipping, and a step that a broken gradient cannot spoil."""

import pytest
import torch
from asympo.learner.step.optimizer import guarded_step, learning_rate_at, make_optimizer


def rate(step: int, **changes: object) -> float:
    options = {
        "peak": 1.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "total_steps": 10,
        "final_ratio": 0.1,
        **changes,
    }
    return learning_rate_at(step, **options)  # type: ignore[arg-type]


def test_learning_rate_warms_up_linearly() -> None:
    assert [rate(step, warmup_steps=4) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_falls_to_its_final_share(schedule: str) -> None:
    values = [rate(step, schedule=schedule) for step in range(1, 12)]
    assert values == sorted(values, reverse=True)
    assert values[9] == pytest.approx(0.1)
    assert values[10] == pytest.approx(0.1)


def model_with_gradient(value: float) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(4, 3)
    optimizer = make_optimizer(model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return model, optimizer


def test_guarded_step_reports_the_raw_norm_and_clips() -> None:
    _, optimizer = model_with_gradient(2.0)
    norm, is_applied = guarded_step(optimizer, learning_rate=0.1, max_norm=1.0)
    assert norm == pytest.approx(2.0 * 15**0.5)
    assert is_applied


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_guarded_step_leaves_weights_and_state_alone_when_the_gradient_is_not_finite(value: float) -> None:
    model, optimizer = model_with_gradient(value)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    _, is_applied = guarded_step(optimizer, learning_rate=0.1, max_norm=1.0)
    assert not is_applied
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_norms_and_biases_are_not_decayed() -> None:
    _, optimizer = model_with_gradient(1.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
