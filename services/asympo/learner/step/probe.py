"""Sequences that prove a reload, scored on the weights as they are published."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asympo.learner.model.batching import TrainedGroup, TrainedResponse, collate
from asympo.learner.model.policy import Policy

_FIXED_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "To add two numbers, write them one below the other and start from the right.",
)
_MAX_PROBE_TOKENS = 512
"""Longer trained sequences are left out: a probe delays every generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeText:
    """One sequence to score."""

    token_ids: tuple[int, ...]
    """The whole of it."""
    num_prompt_tokens: int
    """Leading tokens that only condition."""


def fixed_probes(tokenizer: Any) -> tuple[ProbeText, ...]:
    """The same for every policy of a run."""
    probes = []
    for text in _FIXED_TEXTS:
        token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        if len(token_ids) >= 2:
            probes.append(ProbeText(token_ids=token_ids, num_prompt_tokens=1))
    return tuple(probes)


def choose_probes(candidates: Sequence[tuple[float, ProbeText]], *, count: int) -> tuple[ProbeText, ...]:
    """The distinct sequences of the largest weight: those that a step moves most, so a stale reload shows."""
    chosen: list[ProbeText] = []
    for _, probe in sorted(candidates, key=lambda item: -item[0]):
        if len(chosen) == count:
            break
        if probe not in chosen and len(probe.token_ids) <= _MAX_PROBE_TOKENS:
            chosen.append(probe)
    return tuple(chosen)


@torch.no_grad()
def mean_nlls(policy: Policy, probes: Sequence[ProbeText]) -> list[float]:
    """Mean NLL of every sequence from one forward pass; arithmetic in the policy's compute precision."""
    groups = [
        TrainedGroup(
            prompt_ids=probe.token_ids[: probe.num_prompt_tokens],
            responses=(TrainedResponse(token_ids=probe.token_ids[probe.num_prompt_tokens :], advantage=1.0),),
        )
        for probe in probes
    ]
    with _weights_as(policy.model, policy.compute_dtype):
        values: list[float] = policy.response_nll(collate(groups, share_prefixes=True)).mean_nll_R.tolist()
    return values


@contextmanager
def _weights_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While a module runs, its own weights are widened to ``dtype``: exact, and one module's worth of memory.

    For CPUs without bfloat16 products, where computing in the published precision would take seconds.
    """
    hooks = []
    for module in model.modules():
        narrow = {name: p for name, p in module._parameters.items() if p is not None and p.dtype != dtype}
        if narrow:
            hooks.append(module.register_forward_pre_hook(_widen(narrow, dtype)))
            hooks.append(module.register_forward_hook(_restore(narrow)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(narrow: dict[str, nn.Parameter], dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, _: Any) -> None:
        for name, parameter in narrow.items():
            module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)

    return hook


def _restore(narrow: dict[str, nn.Parameter]) -> Any:
    def hook(module: nn.Module, _: Any, __: Any) -> None:
        module._parameters.update(narrow)

    return hook
