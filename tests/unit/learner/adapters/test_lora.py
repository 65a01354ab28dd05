"""An adapter beside frozen weights: PEFT's own numbers and gradients, and a state that knows its base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.errors import BadSetting
from asympo.learner.model import adapted_weights, lora
from asympo.learner.model.batching import TrainedGroup, pack
from asympo.learner.model.forward_path import FAST
from asympo.learner.model.fused import fuse, is_fused, unfuse
from asympo.learner.model.lora import adapter_config, add_adapter, compute_in, import_peft, merge_anew
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import named_weights
from asympo.learner.settings import LoraSettings
from asympo.learner.state.open import open_states
from asympo.learner.state.store import TrainingState
from asympo.learner.step.optimizer import guarded_step, make_optimizer
from asympo.learner.step.probe import ProbeText, mean_nlls
from pydantic import ValidationError
from transformers import PreTrainedModel

from tests.unit.learner.test_policy import make_groups, widen_norms

CPU = torch.device("cpu")


def lora_layers(model: PreTrainedModel) -> list[Any]:
    kind = import_peft().tuners.lora.LoraLayer
    return [module for module in model.modules() if isinstance(module, kind)]


def adapted(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype | None = None,
    noise: float = 0.1,
    **lora: Any,
) -> Policy:
    """A policy whose adapter is not at its beginning, where it adds nothing."""
    model = load_model(path, dtype=dtype, device=CPU)
    if dtype is torch.float64:
        widen_norms(model)
    fuse(model)
    settings = LoraSettings(**{"rank": 3, "alpha": 5, **lora})
    add_adapter(model, settings, compute_dtype=compute_dtype or dtype, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in named_weights(model).values():
            value.add_(noise * torch.randn(value.shape, generator=generator))
    if dtype is torch.float64:
        model.double()  # PEFT begins in float32
    return Policy(model=model, compute_dtype=compute_dtype or dtype, chunk_rows=7, path=FAST)


def test_what_is_merged_while_autocast_is_on_is_what_is_published(tiny_model: Path) -> None:
    policy = adapted(tiny_model, compute_dtype=torch.bfloat16)
    layers = lora_layers(policy.model)
    for layer in layers:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        base = layer.get_base_layer()
        added = (5 / 3) * b.detach().bfloat16().float() @ a.detach().bfloat16().float()
        with torch.autocast("cpu", torch.bfloat16):
            found = layer.forward.merged(a, b)
        torch.testing.assert_close(found, (base.weight.float() + added).bfloat16(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("is_kept", [True, False])
def test_probe_is_scored_with_the_adapter_as_it_is(tiny_model: Path, is_kept: bool) -> None:
    """Twice without a step between: nothing but the values has changed."""
    policy, other = (adapted(tiny_model, compute_dtype=torch.bfloat16, noise=noise) for noise in (0.05, 0.3))
    if not is_kept:
        merge_anew(policy.model)
    probes = [ProbeText(token_ids=tuple(range(5, 25)), num_prompt_tokens=1)]
    before = mean_nlls(policy, probes)
    with torch.no_grad():
        for ours, theirs in zip(
            named_weights(policy.model).values(), named_weights(other.model).values(), strict=True
        ):
            ours.copy_(theirs)
    assert mean_nlls(policy, probes) == mean_nlls(other, probes) != before


def as_peft_computes(model: PreTrainedModel) -> None:
    assert any(is_fused(module) and "Mlp" in type(module.forward).__name__ for module in model.modules())
    unfuse(model)
    for layer in lora_layers(model):
        del layer.forward


def nlls_and_gradients(
    policy: Policy, groups: list[TrainedGroup], *, budget: int, share: bool
) -> list[torch.Tensor]:
    policy.model.zero_grad()
    nlls: dict[Any, float] = {}
    for batch in pack(groups, token_budget=budget, share_prefixes=share):
        mean_nll_R = policy.response_nll(batch).mean_nll_R
        weight_R = torch.tensor(batch.advantage_R, dtype=mean_nll_R.dtype)
        (mean_nll_R * weight_R).sum().backward()
        nlls |= dict(zip(batch.sequences_R, mean_nll_R.tolist(), strict=True))
    gradients = [each.grad for each in policy.model.parameters() if each.requires_grad]
    return [
        torch.tensor([nlls[key] for key in sorted(nlls)]),
        *(each for each in gradients if each is not None),
    ]


@pytest.mark.parametrize("is_rank_stabilised", [False, True])
def test_adapter_has_peft_numbers_and_gradients_when_rows_are_packed(
    tiny_model: Path, is_rank_stabilised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is not rounded is PEFT's own sum.
    monkeypatch.setattr(lora, "PUBLISHED_DTYPE", torch.float64)
    monkeypatch.setattr(adapted_weights, "PUBLISHED_DTYPE", torch.float64)
    policy = adapted(tiny_model, dtype=torch.float64, rank_stabilised=is_rank_stabilised)
    groups = make_groups(3)
    packed = nlls_and_gradients(policy, groups, budget=60, share=True)

    as_peft_computes(policy.model)
    plain = nlls_and_gradients(policy, groups, budget=1, share=False)

    assert len(packed) == 1 + 2 * 2 * 7
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_mlps_of_which_not_all_are_adapted_are_right_too(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (lora, adapted_weights):
        monkeypatch.setattr(name, "PUBLISHED_DTYPE", torch.float64)
    policy = adapted(tiny_model, dtype=torch.float64, targets=("gate_proj", "up_proj", "q_proj"))
    groups = make_groups(2)
    packed = nlls_and_gradients(policy, groups, budget=60, share=True)
    unfuse(policy.model)
    for layer in lora_layers(policy.model):
        del layer.forward
    plain = nlls_and_gradients(policy, groups, budget=1, share=False)
    for ours, theirs in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_base_is_narrow_and_gets_no_gradient_when_products_are_bfloat16(tiny_model: Path) -> None:
    wide = adapted(tiny_model, noise=0.02)
    narrow = adapted(tiny_model, compute_dtype=torch.bfloat16, noise=0.02)
    groups = make_groups(2)

    exact = nlls_and_gradients(wide, groups, budget=60, share=True)
    rounded = nlls_and_gradients(narrow, groups, budget=60, share=True)

    assert {value.dtype for value in named_weights(narrow.model).values()} == {torch.float32}
    base = {name: each for name, each in narrow.model.named_parameters() if not each.requires_grad}
    assert {name for name, each in base.items() if each.dtype is not torch.bfloat16} == {
        name for name, each in base.items() if each.dim() < 2
    }
    assert all(each.grad is None for each in base.values())
    torch.testing.assert_close(rounded[0], exact[0], rtol=0, atol=0.05)
    for ours, theirs in zip(rounded[1:], exact[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(ours.ravel(), theirs.ravel(), dim=0) > 0.98


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_adapter_that_goes_on_in_another_precision_is_as_if_it_had_begun_so(
    tiny_model: Path, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    policy, wanted = (adapted(tiny_model, compute_dtype=dtype) for dtype in dtypes)
    groups = make_groups(2)
    nlls_and_gradients(policy, groups, budget=60, share=True)
    compute_in(policy.model, dtypes[1])
    policy = Policy(model=policy.model, compute_dtype=dtypes[1], chunk_rows=7, path=FAST)
    found = nlls_and_gradients(policy, groups, budget=60, share=True)
    for ours, theirs in zip(found, nlls_and_gradients(wanted, groups, budget=60, share=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(
        a.dtype == b.dtype for a, b in zip(policy.model.parameters(), wanted.model.parameters(), strict=True)
    )


def test_adapter_begins_the_same_whatever_was_drawn_before(tiny_model: Path) -> None:
    first = named_weights(adapted(tiny_model, noise=0).model)
    torch.rand(7)
    again = named_weights(adapted(tiny_model, noise=0).model)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(bool(value.any()) == ("lora_A" in name) for name, value in first.items())


def test_step_of_the_optimizer_is_seen_by_the_next_row(tiny_model: Path) -> None:
    policy, groups = adapted(tiny_model), make_groups(1)
    optimizer = make_optimizer(policy.model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    before, *_ = nlls_and_gradients(policy, groups, budget=60, share=True)
    guarded_step(optimizer, learning_rate=0.1, max_norm=1.0)
    after, *_ = nlls_and_gradients(policy, groups, budget=60, share=True)
    assert (after - before).abs().min() > 1e-3
    as_peft_computes(policy.model)
    policy.model.float()
    plain, *_ = nlls_and_gradients(policy, groups, budget=1, share=False)
    torch.testing.assert_close(after, plain, rtol=0, atol=0.05)


def test_targets_choose_layers_or_are_refused(tiny_model: Path) -> None:
    chosen = adapted(tiny_model, targets=("q_proj", "mlp.down_proj")).model
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in named_weights(chosen)} == {
        *("q_proj", "down_proj")
    }
    assert set(adapter_config(chosen).target_modules or ()) == {"q_proj", "down_proj"}
    for targets, why in (
        (("lm_head",), "cannot have an adapter"),
        (("q_proj", "query"), "this model has not"),
    ):
        said = rf"targets names {targets[-1]}, which {why}: those that can are .* q_proj"
        with pytest.raises(BadSetting, match=said):
            adapted(tiny_model, targets=targets)
    with pytest.raises(ValidationError, match=r"dropout is 0\.1: give 0"):
        LoraSettings(dropout=0.1)


def test_state_holds_the_adapter_alone_and_refuses_another_base_or_scale(
    tiny_model: Path, tmp_path: Path
) -> None:
    store = open_states(tmp_path, "run")
    policy = adapted(tiny_model)
    optimizer = make_optimizer(policy.model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    nlls_and_gradients(policy, make_groups(1), budget=60, share=True)
    optimizer.step()
    name = store.save(
        TrainingState(step=1, fence=1, sequence=1, trained_ids=b""), model=policy.model, optimizer=optimizer
    )
    held = store.tensors(name)
    assert all("lora_" in each or each.startswith(("rng.", "base.")) for each in held)

    again = adapted(tiny_model, noise=0.3)
    other = make_optimizer(again.model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    store.load(name, model=again.model, optimizer=other)
    mine, theirs = named_weights(policy.model), named_weights(again.model)
    assert all(torch.equal(mine[each], theirs[each]) for each in mine)

    stronger = adapted(tiny_model, alpha=10)
    other = make_optimizer(stronger.model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    with pytest.raises(BadSetting, match=r"scaled by 1\.66667, and by 3\.33333 with the settings here"):
        store.load(name, model=stronger.model, optimizer=other)

    changed = tmp_path / "changed"
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    model.get_output_embeddings().weight.data[0, 0] += 1
    model.save_pretrained(changed)
    foreign = adapted(changed)
    third = make_optimizer(foreign.model, learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    with pytest.raises(BadSetting, match="an adapter whose base is not the model here"):
        store.load(name, model=foreign.model, optimizer=third)
