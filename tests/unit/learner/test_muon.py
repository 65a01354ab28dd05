"""Muon for hidden matrices with AdamW for the rest, against both written out in float64."""

import pytest
import torch
from asympo.common.errors import BadSetting
from asympo.learner.step.muon import hidden_matrices
from asympo.learner.step.optimizer import guarded_step, make_optimizer
from torch import Tensor, nn

RATE, DECAY, MOMENTUM, BETAS, EPSILON = 0.01, 0.1, 0.9, (0.9, 0.95), 1e-8


class Language(nn.Module):
    """What matters of a language model: tables, matrices, a stack of them, vectors, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.up = nn.Linear(6, 24)
        self.down = nn.Linear(24, 6, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 10, 6))
        self.conv = nn.Conv1d(6, 6, 2, groups=3)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 20, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def build() -> tuple[Language, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Language()
    return model, make_optimizer(
        model,
        learning_rate=RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=DECAY,
        name="muon",
        muon_momentum=MOMENTUM,
    )


def orthogonal(matrix: Tensor) -> Tensor:
    """Five steps of the quintic iteration on the singular values themselves."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s[..., None, :]) @ v


def test_hidden_matrices_are_neither_tables_nor_vectors() -> None:
    model, _ = build()
    assert {id(p) for p in hidden_matrices(model)} == {
        id(matrix) for matrix in (model.up.weight, model.down.weight, model.experts)
    }


def test_step_equals_both_optimizers_written_out_in_float64() -> None:
    model, optimizer = build()
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    moved = {name: torch.zeros_like(p) for name, p in expected.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 4):
        gradients = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        guarded_step(optimizer, learning_rate=RATE / step, max_norm=1e9)
        for name, gradient in ((n, g.double()) for n, g in gradients.items()):
            rate, decay = RATE / step, DECAY if gradient.dim() >= 2 else 0.0
            if name in ("up.weight", "down.weight", "experts"):
                first[name] = MOMENTUM * first[name] + (1 - MOMENTUM) * gradient
                nesterov = MOMENTUM * first[name] + (1 - MOMENTUM) * gradient
                change = 0.2 * max(gradient.shape[-2:]) ** 0.5 * orthogonal(nesterov)
            else:
                first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
                second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
                mean = first[name] / (1 - BETAS[0] ** step)
                change = mean / ((second[name] / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
            expected[name] = expected[name] * (1 - rate * decay) - rate * change
            moved[name] += rate * change
    for name, parameter in model.named_parameters():
        # torch's iteration rounds to bfloat16.
        tolerance = 0.02 if name in ("up.weight", "down.weight", "experts") else 1e-5
        difference = (parameter.detach() - expected[name]).norm()
        assert difference < tolerance * moved[name].norm(), name


def test_a_broken_gradient_leaves_both_states_alone() -> None:
    model, optimizer = build()
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    assert not guarded_step(optimizer, learning_rate=RATE, max_norm=1.0)[1]
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_is_refused_without_hidden_matrices() -> None:
    with pytest.raises(BadSetting, match="Embedding has no hidden matrix for Muon: set optimizer to adamw"):
        make_optimizer(
            nn.Embedding(4, 2), learning_rate=RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, name="muon"
        )
