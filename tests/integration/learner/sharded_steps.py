"""Run by torchrun: the same steps alone and by all ranks together, compared on every rank."""

import os
import sys
from pathlib import Path

import pytest
import torch
from asympo.learner.model.batching import TrainedGroup
from asympo.learner.model.forward_path import set_mode
from asympo.learner.model.lora import adapts, add_adapter
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import named_weights
from asympo.learner.ranks import Ranks
from asympo.learner.settings import LoraSettings
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.shards import Shards
from asympo.learner.step.shares import share_out
from asympo.learner.step.step import Stepper, StepResult
from asympo.learner.torchrun import Launch
from torch.distributed.tensor import DTensor

from tests.unit.learner.test_policy import make_groups, segmented_groups, widen_norms

Steps = list[tuple[list[TrainedGroup], StepScope]]


def make_policy(path: Path, *, with_checkpointing: bool) -> Policy:
    model = load_model(path, dtype=torch.float64, device=torch.device("cpu"))
    widen_norms(model)
    if with_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return Policy(model=model, compute_dtype=torch.float64, chunk_rows=7)


def train(
    policy: Policy, steps: Steps, ranks: Ranks | None, *, weight_decay: float = 0.0
) -> list[StepResult]:
    shards = None if ranks is None else Shards(policy=policy, ranks=ranks)
    stepper = Stepper(
        policy=policy,
        # Plain descent: the weights then differ by the clipped gradients themselves, and what has none stays.
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=1.0, weight_decay=weight_decay),
        objective=OBJECTIVES["asympo"],
        options=ObjectiveOptions(),
        learning_rate=lambda step: 0.5,
        max_grad_norm=0.7,
        token_budget=40,
        share_prefixes=True,
        shards=shards,
    )
    results = []
    for step, (groups, scope) in enumerate(steps, start=1):
        held = groups
        if ranks is not None:
            shares = share_out(list(enumerate(groups)), num_ranks=ranks.num_ranks, share_prefixes=True)
            held = [share.of(groups[share.sequence]) for share in shares[ranks.rank]]
        results.append(stepper.train(held, scope, step=step))
    return results


def compare(path: Path, ranks: Ranks, steps: Steps, *, with_checkpointing: bool) -> None:
    alone, together = (make_policy(path, with_checkpointing=with_checkpointing) for _ in range(2))
    expected, found = train(alone, steps, None), train(together, steps, ranks)
    names = ("loss", "grad_norm", "nll_positive", "nll_negative", "entropy", "num_trained_tokens")
    for one, other in zip(expected, found, strict=True):
        for name in names:
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-10), (name, one, other)
        assert {p.token_ids for p in one.probes} == {p.token_ids for p in other.probes}
        assert other.is_applied
    before = dict(load_model(path, dtype=torch.float64, device=torch.device("cpu")).named_parameters())
    for (name, whole), shard in zip(alone.model.named_parameters(), together.model.parameters(), strict=True):
        assert isinstance(shard.data, DTensor), name
        torch.testing.assert_close(shard.data.full_tensor(), whole.data, rtol=1e-10, atol=1e-12)
        assert not torch.equal(whole, before[name]), f"{name} was not trained"


def compare_published(path: Path, ranks: Ranks, steps: Steps, dtype: torch.dtype) -> None:
    """Every rank rounds its shards to what is published while it computes."""
    model, finer = (load_model(path, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for rounded, parameter in zip(model.parameters(), finer.parameters(), strict=True):
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
            rounded.copy_(parameter.bfloat16())
    (served,) = train(Policy(model=model, compute_dtype=dtype), steps, None)
    (found,) = train(Policy(model=finer, compute_dtype=dtype), steps, ranks)
    # In bfloat16 norms of layers are gathered in it as well, and the ranks' rows are others.
    relative = 2e-6 if dtype is torch.float32 else 0.02
    for name in ("nll_positive", "nll_negative", "grad_norm"):
        close = pytest.approx(getattr(served, name), rel=relative)
        assert getattr(found, name) == close, (name, found, served)


def compare_adapter(
    path: Path, ranks: Ranks, steps: Steps, dtype: torch.dtype, *, with_checkpointing: bool
) -> None:
    """The base is sharded, and the adapter is whole everywhere."""
    # In bfloat16 the ranks' rows are others, and products are rounded otherwise.
    relative, absolute = (0.0, 2e-5) if dtype is torch.float32 else (0.02, 2e-3)
    alone, together = (make_adapted(path, dtype, with_checkpointing=with_checkpointing) for _ in range(2))
    before = {name: value.clone() for name, value in named_weights(alone.model).items()}
    expected, found = (
        train(policy, steps, where, weight_decay=0.01) for policy, where in ((alone, None), (together, ranks))
    )
    for one, other in zip(expected, found, strict=True):
        for name in ("loss", "grad_norm", "entropy"):
            close = pytest.approx(getattr(one, name), rel=relative, abs=absolute)
            assert getattr(other, name) == close, (name, one, other)
    whole, held = named_weights(alone.model), named_weights(together.model)
    assert whole.keys() == held.keys()
    for name, value in whole.items():
        # In bfloat16 gradients are rounded otherwise: 0.5 is the rate, and 0.7 the norm.
        atol = 1e-6 if dtype is torch.float32 else 0.01
        torch.testing.assert_close(held[name], value, rtol=1e-4, atol=atol)
        assert torch.equal(held[name], before[name]) == name.startswith("unused"), name
    for name, parameter in together.model.named_parameters():
        assert isinstance(parameter.data, DTensor) == (name not in held), name


def make_adapted(path: Path, dtype: torch.dtype, *, with_checkpointing: bool) -> Policy:
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"))
    torch.manual_seed(0)
    # As an expert without tokens: no row comes to it.
    model.unused = torch.nn.Linear(4, 4)
    set_mode(model, is_checkpointed=with_checkpointing)
    policy = Policy(model=model, compute_dtype=dtype, chunk_rows=7)
    add_adapter(model, LoraSettings(rank=4, alpha=8), compute_dtype=dtype, seed=0)
    policy.path.apply(model)
    with torch.no_grad():
        for name, value in named_weights(model).items():
            if adapts(name):
                value.normal_(std=0.05)
    return policy


def main() -> None:
    torch.set_num_threads(1)
    path, experts = map(Path, sys.argv[1:])
    ranks = Ranks.join(Launch.from_environment(os.environ), device_type="cpu")
    groups = make_groups(7)
    # The last one has a single response to train: one rank has nothing to do.
    lonely = [TrainedGroup(prompt_ids=groups[0].prompt_ids, responses=groups[0].responses[:1])]
    scope = StepScope(num_responses=50, num_groups=9, num_groups_without_signal=2)
    steps = [(groups[:4], scope), ([*groups[4:], *segmented_groups(2)], scope), (lonely, scope)]
    for with_checkpointing in (False, True):
        compare(path, ranks, steps, with_checkpointing=with_checkpointing)
    compare_adapter(path, ranks, steps, torch.float32, with_checkpointing=True)
    compare_adapter(path, ranks, steps, torch.bfloat16, with_checkpointing=False)
    for with_checkpointing in (False, True):
        compare_adapter(experts, ranks, steps[:2], torch.float32, with_checkpointing=with_checkpointing)
    for dtype in (torch.float32, torch.bfloat16):
        compare_published(path, ranks, steps[:1], dtype)
    ranks.close()


if __name__ == "__main__":
    main()
