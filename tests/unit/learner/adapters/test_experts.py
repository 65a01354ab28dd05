"""An adapter beside experts that are stacked in one tensor: PEFT's gradients, and files of single experts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import AsympoError, BadSetting, CorruptCheckpoint
from asympo.learner.model import adapted_weights, lora
from asympo.learner.model.adaptable import parts_in_files
from asympo.learner.model.lora import base_digest
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import named_weights
from asympo.learner.publish.adapter import Adapter
from asympo.learner.publish.adapter_files import read_adapter
from asympo.learner.publish.peft_proof import require_that_peft_reads
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig, GptOssConfig

from tests.unit.learner.adapters.test_adapter_policies import merged_by_hand, move, publish, writer_for
from tests.unit.learner.adapters.test_lora import adapted, lora_layers, nlls_and_gradients
from tests.unit.learner.test_policy import make_groups
from tests.unit.learner.test_policy_files import FAMILIES, SIZE, make_model

CPU = torch.device("cpu")
ADAPTER = "adapter_model.safetensors"
STACKED, SHARED = "experts in one tensor", "experts beside a shared one"


@pytest.fixture(scope="module", params=[STACKED, SHARED])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("experts"), FAMILIES[request.param]())


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("mixtral"), FAMILIES[STACKED]())


def published(model: Path, root: Path, **lora: Any) -> tuple[Policy, PolicyStore]:
    """The base, and an adapter for it."""
    policy = adapted(model, noise=0.0, **lora)
    writer = writer_for(policy, model, root)
    publish(writer, policy, step=0)
    move(policy, seed=0)
    publish(writer, policy, step=1)
    return policy, open_policies(root, "run")


def test_gradients_are_those_of_peft(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is not rounded is PEFT's own sum.
    for module in (lora, adapted_weights):
        monkeypatch.setattr(module, "PUBLISHED_DTYPE", torch.float32)
    policy = adapted(model)
    groups = make_groups(2)
    packed = nlls_and_gradients(policy, groups, budget=60, share=True)
    for layer in lora_layers(policy.model):
        layer.__dict__.pop("forward", None)
    plain = nlls_and_gradients(policy, groups, budget=1, share=False)

    assert len([name for name in named_weights(policy.model) if ".experts." in name]) == 2 * 2 * 2
    for ours, theirs in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [None, 8])
def test_readers_merge_every_expert_and_serve_what_is_trained(
    model: Path, tmp_path: Path, bits: int | None
) -> None:
    policy, store = published(model, tmp_path, base_bits=bits)
    first, last = store.list()
    manifest = store.verify(last)

    adapter = load_file(store.path / last.name / ADAPTER)
    base, served = (
        {
            name: value
            for file in sorted(path.glob("model*.safetensors"))
            for name, value in load_file(file).items()
        }
        for path in (first.path, last.path)
    )
    experts = {name for name in base if ".experts." in name}
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        assert not torch.equal(served[name], base[name])
        assert torch.equal(served[name], merged_by_hand(base[name], adapter, name))
    again = Policy(model=load_model(last.path, dtype=torch.float32, device=CPU), compute_dtype=torch.float32)
    texts = [
        (each.token_ids[: each.num_prompt_tokens], each.token_ids[each.num_prompt_tokens :])
        for each in manifest.probe.sequences
    ]
    assert again.mean_nlls(texts) == pytest.approx(policy.mean_nlls(texts), abs=1e-4)

    adopted = writer_for(policy, model, tmp_path).adopt_newest()
    assert adopted is not None
    assert adopted.digest == last.digest
    if bits is None:
        start = load_model(model, dtype=torch.bfloat16, device=CPU)
        assert torch.equal(base_digest(policy.model), base_digest(start))


def test_what_is_published_is_read_by_peft_and_by_import(mixtral: Path, tmp_path: Path) -> None:
    _, store = published(mixtral, tmp_path)
    base, last = store.list()
    store.verify(last)
    files = store.path / last.name
    require_that_peft_reads(files, base=base.path, policy=last.path)

    served = named_weights(load_model(last.path, dtype=torch.bfloat16, device=CPU))
    imported = load_model(mixtral, dtype=torch.float32, device=CPU)
    changed = Adapter.read(files).add_to(imported, base="base", dtype=torch.bfloat16)
    assert changed == 2 * (4 + 2)
    assert all(torch.equal(value.bfloat16(), served[name]) for name, value in named_weights(imported).items())


def test_adapter_that_peft_reads_otherwise_is_not_exported(tmp_path: Path) -> None:
    """It takes the names of the shared expert's linears for those of the others."""
    _, store = published(make_model(tmp_path / "model", FAMILIES[SHARED]()), tmp_path)
    base, last = store.list()
    store.verify(last)
    with pytest.raises(
        AsympoError, match=r"PEFT .* not read .*of \d+ values of model\.layers.* with --merge"
    ):
        require_that_peft_reads(store.path / last.name, base=base.path, policy=last.path)


def test_linears_that_are_called_as_experts_once_were_have_their_own_matrices(tmp_path: Path) -> None:
    config = Glm4MoeConfig(
        **SIZE, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1
    )
    policy = adapted(make_model(tmp_path / "model", config))
    adapted_names = {name.partition(".lora_")[0] for name in named_weights(policy.model)}
    for name in ("layers.0.mlp.gate_proj", "layers.1.mlp.shared_experts.down_proj", "layers.1.mlp.experts"):
        assert f"model.{name}" in adapted_names
    assert len(adapted_names) == 2 * 4 + 3 + 3 + 2


def test_experts_are_chosen_by_the_name_of_their_stack(mixtral: Path) -> None:
    names = named_weights(adapted(mixtral, targets=("down_proj",)).model)
    assert len(names) == 2 * 2
    assert all(".experts." in name for name in names)
    with pytest.raises(
        BadSetting, match="names w1, which this model has not: those that can are down_proj, gate_up_proj, k_"
    ):
        adapted(mixtral, targets=("w1",))


def test_file_that_is_no_adapter_of_these_experts_is_refused(mixtral: Path, tmp_path: Path) -> None:
    policy, store = published(mixtral, tmp_path)
    path = store.path / store.list()[-1].name
    whole = load_file(path / ADAPTER)
    ours = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w1.lora_A.weight"

    assert read_adapter(path, policy.model).keys() == named_weights(policy.model).keys()
    for odd, words in (
        ({**whole, ours: whole[ours] + 1}, f"two values of {ours}"),
        ({**whole, ours: whole[ours][:2].clone()}, f"another rank: {ours} is \\[2, 64\\]"),
        ({name: value for name, value in whole.items() if name != ours}, f"other layers than {ours}"),
    ):
        save_file(odd, path / ADAPTER)
        with pytest.raises(CorruptCheckpoint, match=words):
            read_adapter(path, policy.model)


def test_stacks_that_files_hold_whole_get_no_adapter() -> None:
    config = GptOssConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2, head_dim=32)
    with torch.device("meta"):
        parts = parts_in_files(AutoModelForCausalLM.from_config(config))
    assert any(part.parameter.endswith("q_proj.weight") for part in parts.values())
    assert not any(".experts." in part.parameter for part in parts.values())
