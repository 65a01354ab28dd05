"""A step's gradient is that of the weights that generators serve; the optimizer keeps its finer ones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.published_values import PublishedValues
from asympo.learner.step.step import Stepper, StepResult
from torch import nn

from tests.unit.learner.step.test_bad_steps import groups

CPU = torch.device("cpu")


@pytest.fixture
def finer(tiny_model: Path) -> Any:
    """Weights between bfloat16 numbers, as after an optimizer's step, and none exactly half-way."""
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter)).view(torch.int32).bitwise_or_(1)
    return model


def published(model: nn.Module) -> Any:
    served = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in served.parameters():
            parameter.copy_(parameter.bfloat16())
    return served


class Recorded(torch.optim.SGD):
    """Keeps the gradients that it was given, and the weights that it was given them for."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradients = [parameter.grad.clone() for parameter in held]
        self.weights = [parameter.detach().clone() for parameter in held]


def stepped(model: Any) -> tuple[StepResult, Recorded]:
    optimizer = Recorded(model.parameters(), lr=1.0)
    stepper = Stepper(
        policy=Policy(model=model, compute_dtype=torch.float32),
        optimizer=optimizer,
        objective=OBJECTIVES["asympo"],
        options=ObjectiveOptions(),
        learning_rate=lambda step: 1.0,
        max_grad_norm=1e9,
        token_budget=1000,
        share_prefixes=True,
    )
    scope = StepScope(num_responses=4, num_groups=2, num_groups_without_signal=0)
    return stepper.train(groups(5, 9), scope, step=1), optimizer


def test_gradient_is_that_of_the_published_policy_and_the_optimizer_steps_the_finer_weights(
    finer: Any,
) -> None:
    before = [parameter.detach().clone() for parameter in finer.parameters()]
    (there, expected), (here, given) = stepped(published(finer)), stepped(finer)
    assert (here.nll_positive, here.nll_negative) == (there.nll_positive, there.nll_negative)
    assert all(map(torch.equal, given.gradients, expected.gradients))
    assert all(map(torch.equal, given.weights, before))
    assert not all(map(torch.equal, given.weights, expected.weights)), "else this shows nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_published_values_for_a_while_and_are_themselves_again_whatever_happens(
    finer: Any, dtype: torch.dtype
) -> None:
    edges = torch.tensor(
        [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, -0x407F8000, 0x80008000 - (1 << 32), 0]
    )
    norm = next(m for m in finer.modules() if type(m).__name__.endswith("Norm")).weight
    with torch.no_grad():
        norm[: len(edges)] = edges.to(torch.int32).view(torch.float32)
    turned = next(m for m in finer.modules() if isinstance(m, nn.Embedding)).weight
    turned.data = turned.data.T.contiguous().T
    assert not turned.is_contiguous()
    before = {name: parameter.detach().clone() for name, parameter in finer.named_parameters()}
    values = PublishedValues(Policy(model=finer, compute_dtype=dtype))
    inside: dict[str, torch.Tensor] = {}

    def fails() -> None:
        with values.in_place():
            inside.update((name, parameter.detach().clone()) for name, parameter in finer.named_parameters())
            raise MemoryError

    for _ in range(2):
        with pytest.raises(MemoryError):
            fails()
        after = dict(finer.named_parameters())
        assert all(
            torch.equal(after[name].view(torch.int32), before[name].view(torch.int32)) for name in before
        )
    matrices = {name for name, value in inside.items() if "proj" in name}
    for name, value in inside.items():
        if dtype == torch.bfloat16 and name in matrices:
            assert torch.equal(value, before[name]), "mixed precision rounds these by itself"
            continue
        assert torch.equal(value.bfloat16().float(), value), "a number that bfloat16 has"
        others = value != before[name].bfloat16().float()
        assert (before[name][others].view(torch.int32) & 0xFFFF == 0x8000).all(), "other at exact halves only"
    assert matrices
