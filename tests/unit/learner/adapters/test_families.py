"""Adapters in families of which something is odd: what is trained is what is served."""

from pathlib import Path

import pytest
import torch
from asympo.common.checkpoints.opening import open_policies
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.lora import adapted_weights, add_adapter
from asympo.learner.model.miniature import make_miniature
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.settings import LoraSettings
from asympo.testing.tiny_model import load_tiny_tokenizer
from transformers import AutoConfig

from tests.unit.learner.adapters.test_adapter_policies import move, publish, writer_for

CPU = torch.device("cpu")
EAGER = ForwardPath(attention="eager", alone_above=0)


def policy_of(model_type: str, path: Path, *, bits: int | None) -> Policy:
    config = AutoConfig.for_model(model_type)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_miniature(config, dtype=torch.float32, is_narrow=True).save_pretrained(path)
    load_tiny_tokenizer(path)
    model = load_model(path, dtype=torch.float32, device=CPU).eval()
    add_adapter(model, LoraSettings(rank=2, alpha=4, base_bits=bits), compute_dtype=torch.float32, seed=0)
    EAGER.apply(model)
    return Policy(model=model, compute_dtype=torch.float32, path=EAGER)


@pytest.mark.parametrize(
    ("model_type", "bits", "left_out"),
    [
        pytest.param("hy_v3", None, (), id="linears that files call otherwise"),
        pytest.param("jamba", None, ("dt_proj",), id="a weight that its parent multiplies with"),
        pytest.param("longcat_flash", 8, ("classifier",), id="the same of a base in fewer bits"),
        pytest.param("ernie4_5_moe", None, ("gate",), id="routers that policies hold in float32"),
        pytest.param("zamba2", None, ("q_proj", "gate_up_proj"), id="layers that share a weight"),
        pytest.param("mamba", None, ("out_proj",), id="a linear that PEFT refuses"),
    ],
)
def test_generators_serve_what_is_trained(
    model_type: str, bits: int | None, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    source = tmp_path / "model"
    policy = policy_of(model_type, source, bits=bits)
    writer = writer_for(policy, source, tmp_path)
    publish(writer, policy, step=0)
    move(policy, seed=0)
    publish(writer, policy, step=1)
    store = open_policies(tmp_path, "run")
    manifest = store.verify(store.list()[-1])

    names = {name.removesuffix(".weight").rpartition(".")[2] for name in adapted_weights(policy.model)}
    assert names
    assert not names & set(left_out)
    texts = [
        (each.token_ids[: each.num_prompt_tokens], each.token_ids[each.num_prompt_tokens :])
        for each in manifest.probe.sequences
    ]
    base, served = (load_model(ref.path, dtype=torch.float32, device=CPU) for ref in store.list())
    before, found = (
        Policy(model=each.eval(), compute_dtype=torch.float32, path=EAGER).mean_nlls(texts)
        for each in (base, served)
    )
    trained = policy.mean_nlls(texts)
    assert found == pytest.approx(trained, abs=2e-4)
    assert max(abs(a - b) for a, b in zip(before, trained, strict=True)) > 0.02
