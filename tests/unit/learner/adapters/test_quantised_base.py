"""A base in 4 or 8 bits: what is computed with is what is published, and takes as little as it says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asympo.common.errors import BadSetting
from asympo.learner.model.adapted_weights import AdaptedLinear
from asympo.learner.model.lora import add_adapter, base_digest, prepare_for_shards, quantised_values
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.quantised_base import QuantisedWeight
from asympo.learner.settings import LoraSettings
from torch import Tensor

from tests.unit.learner.adapters.test_lora import adapted, nlls_and_gradients
from tests.unit.learner.test_policy import make_groups

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(96, 64), (33, 57), (1, 5)])
@pytest.mark.parametrize(("bits", "error"), [(4, 0.11), (8, 0.01)])
def test_values_are_near_and_stay_when_they_are_rounded_again(
    shape: tuple[int, int], bits: int, error: float
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul_(0.02)
    once = QuantisedWeight(weight, bits=bits).values()
    assert (once.dtype, once.shape) == (torch.bfloat16, weight.shape)
    assert (once.float() - weight).norm() < error * weight.norm()
    assert torch.equal(QuantisedWeight(once, bits=bits).values(), once)


def test_zeros_stay_zero() -> None:
    for bits in (4, 8):
        assert not QuantisedWeight(torch.zeros(8, 64), bits=bits).values().any()


def live_bytes(policy: Policy) -> int:
    """Of the base's linears, however they are held."""
    held: list[Tensor] = []
    for module in policy.model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, AdaptedLinear) and forward.quantised is not None:
            quantised = forward.quantised
            held += [quantised._values, quantised._state.absmax, *forward.base.parameters()]
    return sum(each.numel() * each.element_size() for each in held if not each.is_meta)


@pytest.mark.parametrize("bits", [4, 8])
def test_step_is_that_of_a_plain_base_with_the_rounded_values(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    policy = adapted(tiny_model, base_bits=bits)
    plain = load_model(tiny_model, dtype=torch.float32, device=CPU)
    num_values = 0
    for name, values in quantised_values(policy.model):
        weight = plain.get_parameter(name)
        assert isinstance(weight, Tensor)
        assert not torch.equal(weight.bfloat16(), values)
        weight.data.copy_(values)
        num_values += values.numel()
    assert num_values * bits / 8 <= live_bytes(policy) < num_values * (bits / 8 + 0.1)
    plain.save_pretrained(tmp_path / "rounded")

    groups = make_groups(2)
    expected = nlls_and_gradients(adapted(tmp_path / "rounded"), groups, budget=60, share=True)
    found = nlls_and_gradients(policy, groups, budget=60, share=True)
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(base_digest(policy.model), base_digest(plain))


def test_bitsandbytes_is_imported_for_a_quantised_base_alone_and_no_code_of_the_hub_for_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): raise SystemExit('code was loaded')")
    script = (
        "import sys, torch, kernels\nfrom pathlib import Path\n"
        "from asympo.learner.settings import LoraSettings\n"
        "from asympo.learner.model import lora, policy, quantised_base\n"
        f"model, cpu = Path({str(tiny_model)!r}), torch.device('cpu')\n"
        "model = policy.load_model(model, dtype=torch.float32, device=cpu)\n"
        "lora.add_adapter(model, LoraSettings(rank=2), compute_dtype=torch.float32, seed=0)\n"
        "print('bitsandbytes' in sys.modules)\n"
        "print(quantised_base.QuantisedWeight(torch.ones(2, 64), bits=4).values().sum().item())\n"
        "assert sys.modules['kernels'] is kernels"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n128.0\n"), done.stderr


def test_ranks_that_share_a_base_do_not_take_a_quantised_one(tiny_model: Path) -> None:
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    add_adapter(model, LoraSettings(rank=2, base_bits=4), compute_dtype=torch.float32, seed=0)
    with pytest.raises(BadSetting, match=r"lora\.base_bits is for a learner of one process: leave it out"):
        prepare_for_shards(model, device=CPU)
