"""What is faster on this device, tried once: which precision, shared prefixes or not, which attention."""

import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from asympo.learner.model.batching import TrainedGroup, TrainedResponse, pack
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.policy import Policy

PROMPT_TOKENS, NUM_RESPONSES, MAX_RESPONSE_TOKENS = 64, 8, 128
"""The hard case of sharing: responses so much longer than their prompt that it saves little."""
_LONG = 512
"""Tokens of prompt and longest response where kinds of attention are compared: it must be what takes time."""
_REPEATS = 3
_ROWS, _INNER, _COLUMNS = 128, 512, 1024
"""Of the matrices that decide between precisions: small, since bf16 without hardware is 50 times slower."""


def product_seconds(dtype: torch.dtype) -> float:
    """Best of a few on the CPU: forward and both backward products of one linear layer."""
    x, w = torch.ones(_ROWS, _INNER, dtype=dtype), torch.ones(_COLUMNS, _INNER, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        y = x @ w.T
        _ = y @ w
        _ = y.T @ x
        best = min(best, time.perf_counter() - start)
    return best


def sharing_seconds(
    device: torch.device, compute_dtype: torch.dtype, *, attention: str
) -> tuple[float, float]:
    """Seconds of forward and backward with shared prefixes, and without: the best of a few, in turns."""
    policy = _small_policy(device, compute_dtype, attention=attention)
    group = _group(PROMPT_TOKENS, MAX_RESPONSE_TOKENS)
    return _best_of_both(
        lambda: _seconds(policy, group, is_shared=True), lambda: _seconds(policy, group, is_shared=False)
    )


def attention_seconds(device: torch.device, compute_dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of forward and backward with attention in blocks, and with FlexAttention.

    Compiling is not counted. Raises RuntimeError where FlexAttention cannot be compiled or run.
    """
    blocks = _small_policy(device, compute_dtype, attention="blocks")
    flex = _small_policy(device, compute_dtype, attention="flex")
    group = _group(_LONG, _LONG)
    return _best_of_both(
        lambda: _seconds(blocks, group, is_shared=True), lambda: _seconds(flex, group, is_shared=True)
    )


def _small_policy(device: torch.device, compute_dtype: torch.dtype, *, attention: str) -> Policy:
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
    return Policy(model=model.eval(), compute_dtype=compute_dtype, path=ForwardPath(attention=attention))


def _group(prompt_tokens: int, max_response_tokens: int) -> TrainedGroup:
    lengths = [max_response_tokens * (n + 1) // NUM_RESPONSES for n in range(NUM_RESPONSES)]
    return TrainedGroup(
        prompt_ids=tuple(index % 512 for index in range(prompt_tokens)),
        responses=tuple(
            TrainedResponse(token_ids=tuple((7 * i + 3 * n) % 500 for i in range(length)), advantage=1.0)
            for n, length in enumerate(lengths)
        ),
    )


def _best_of_both(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    taken = [(first(), second()) for _ in range(_REPEATS)]
    return min(seconds for seconds, _ in taken), min(seconds for _, seconds in taken)


def _seconds(policy: Policy, group: TrainedGroup, *, is_shared: bool) -> float:
    start = time.perf_counter()
    for batch in pack([group], token_budget=4096, share_prefixes=is_shared):
        policy.response_nll(batch).mean_nll_R.sum().backward()
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    policy.model.zero_grad()
    return time.perf_counter() - start
