"""A wrong way of computing a model is found, whatever makes it wrong; the table of families has the rest."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from asympo.common.errors import BadModel, BadSetting
from asympo.learner.model.attention import PACKED_ATTENTION, packed_attention
from asympo.learner.model.check import check_model, check_weights, one_thread
from asympo.learner.model.forward_path import FAST, ForwardPath, set_mode
from asympo.learner.model.miniature import FIRST_PLAIN_ID, make_miniature
from asympo.learner.model.policy import Policy
from asympo.learner.settings import LearnerSettings
from asympo.learner.step.compute import Compute
from asympo.learner.step.stepper import policy_around
from transformers import AttentionInterface, AutoConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_bidirectional_model_is_refused() -> None:
    with pytest.raises(BadModel, match="not causal"):
        check_model(AutoConfig.for_model("bert"), is_checkpointed=False)


def test_family_that_cannot_be_tried_in_small_is_left_as_it_is() -> None:
    checked = check_model(AutoConfig.for_model("gemma3n"), is_checkpointed=False)
    assert checked.path.is_own
    assert checked.difference is None


def _without(*names: str) -> Callable[..., Any]:
    """The packed attention, deaf to what a model asks of it."""

    def deaf(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        kept = {name: value for name, value in options.items() if name not in names}
        return packed_attention(module, query, key, value, None if "rule" in names else mask, **kept)

    return deaf


@pytest.mark.parametrize(
    ("family", "ignored"), [("gemma2", "softcap"), ("gpt_oss", "s_aux"), ("mistral", "rule")]
)
def test_packed_way_that_leaves_something_out_is_found(family: str, ignored: str) -> None:
    AttentionInterface.register(PACKED_ATTENTION, _without(ignored))
    try:
        checked = check_model(AutoConfig.for_model(family), is_checkpointed=False)
    finally:
        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    assert checked.path.is_own
    assert checked.path.attention == ("sdpa" if family == "mistral" else "eager")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointed_layers_compute_twice_and_nothing_in_them_is_random(family: str) -> None:
    config = AutoConfig.for_model(family)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.5)
    model = make_miniature(config, dtype=torch.float32, is_narrow=True)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    calls = []
    layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.full((1, 8), FIRST_PLAIN_ID)
    plain = model.eval()(input_ids=ids, use_cache=False).logits
    set_mode(model, is_checkpointed=True)
    logits = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits, plain, rtol=0, atol=0)
    logits.sum().backward()
    assert len(calls) == 3
    set_mode(model, is_checkpointed=False)
    assert not any(module.training for module in model.modules())


def test_positions_that_grow_with_the_longest_row_so_far_are_forgotten_by_the_next() -> None:
    config = AutoConfig.for_model(
        "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    )
    model = make_miniature(config, dtype=torch.float64, is_narrow=True).eval()
    policy = Policy(model=model, compute_dtype=torch.float64, path=ForwardPath(alone_above=0))
    longer, shorter, short = (((20,) * 9, tuple(range(20, 20 + n))) for n in (90, 60, 9))
    fresh = [policy.mean_nlls([text]) for text in (short, shorter)]
    policy.mean_nlls([longer])
    assert [policy.mean_nlls([text]) for text in (short, shorter)] == fresh


def test_weights_that_will_be_shared_out_from_a_cpu_are_checked_there() -> None:
    model = make_miniature(AutoConfig.for_model("llama"), dtype=torch.float32, is_narrow=True).eval()
    check_weights(Policy(model=model, compute_dtype=torch.float32, path=ForwardPath(attention="flex")))


def test_run_that_turns_on_checkpoints_which_its_family_lacks_is_told_so() -> None:
    model = make_miniature(AutoConfig.for_model("ctrl"), dtype=torch.float32, is_narrow=True)
    settings = LearnerSettings(run="r", gradient_checkpointing=True)
    decided = Compute(
        device="cpu", compute_dtype="float32", num_threads=1, share_prefixes=True, path=asdict(FAST)
    )
    with pytest.raises(BadSetting, match=r"CTRL.* does not support gradient checkpointing: set it to false"):
        policy_around(model, settings, decided)


def test_family_whose_code_stumbles_in_bfloat16_is_told_what_to_set() -> None:
    config = AutoConfig.for_model("dbrx", attn_config={"rope_theta": 5e5, "kv_n_heads": 8, "clip_qkv": 8.0})
    model = make_miniature(config, dtype=torch.float32, is_narrow=True).eval()
    check_weights(Policy(model=model, compute_dtype=torch.float32))
    with pytest.raises(BadModel, match=r"bfloat16 .*: set compute_dtype to float32"):
        check_weights(Policy(model=model, compute_dtype=torch.bfloat16))
