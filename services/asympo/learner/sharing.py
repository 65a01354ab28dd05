"""Whether computing shared prefixes once pays on this device: tried once on a small model."""

import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from asympo.learner.attention import PACKED_ATTENTION
from asympo.learner.batching import TrainedGroup, TrainedResponse, pack
from asympo.learner.fused import fuse
from asympo.learner.policy import Policy

PROMPT_TOKENS, NUM_RESPONSES, MAX_RESPONSE_TOKENS = 64, 8, 128
"""The hard case: responses so much longer than their prompt that sharing saves little."""
_REPEATS = 3


def sharing_seconds(device: torch.device, compute_dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of forward and backward with shared prefixes, and without: the best of a few, in turns."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    # The run's own random numbers must not depend on whether this was measured.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(device)  # type: ignore[arg-type]
    model.set_attn_implementation(PACKED_ATTENTION)
    fuse(model)
    policy = Policy(model=model.eval(), compute_dtype=compute_dtype)
    lengths = [MAX_RESPONSE_TOKENS * (n + 1) // NUM_RESPONSES for n in range(NUM_RESPONSES)]
    responses = tuple(
        TrainedResponse(token_ids=tuple((7 * i + 3 * n) % 500 for i in range(length)), advantage=1.0)
        for n, length in enumerate(lengths)
    )
    group = TrainedGroup(prompt_ids=tuple(range(PROMPT_TOKENS)), responses=responses)
    best = {True: float("inf"), False: float("inf")}
    for _ in range(_REPEATS):
        for is_shared in best:
            best[is_shared] = min(best[is_shared], _seconds(policy, group, is_shared=is_shared))
    return best[True], best[False]


def _seconds(policy: Policy, group: TrainedGroup, *, is_shared: bool) -> float:
    start = time.perf_counter()
    for batch in pack([group], token_budget=4096, share_prefixes=is_shared):
        policy.response_nll(batch).mean_nll_R.sum().backward()
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    policy.model.zero_grad()
    return time.perf_counter() - start
