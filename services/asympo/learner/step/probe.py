"""Sequences that an engine must score as the learner does, on the weights as they are published."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asympo.learner.model.policy import Policy
from asympo.tasks.encoding import TextRefused, encode_plain

_FIXED_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "To add two numbers, write them one below the other and start from the right.",
    "A river begins where rain and melting snow collect on high ground. Small streams run downhill and meet, "
    "and each meeting makes the water wider and slower. On its way it carries sand and stones, cuts valleys "
    "into soft rock, and leaves good soil on the fields beside it. People have always lived near rivers, "
    "because they give water to drink, fish to eat, and a road for boats. In the end most of them reach the "
    "sea, where fresh water mixes with salt and the sand that was carried so far sinks to the ground.",
)
"""The last is long: the noise of an engine's arithmetic shows on many tokens only. Scoring it takes a
tenth of a small step, so it goes with policies that have no trained sequences, a run's first among them."""
_MAX_FIXED_TOKENS = 128
_NUM_VOCABULARY_TOKENS = 16
_MAX_PROBE_TOKENS = 512
"""Longer trained sequences are left out: a probe delays every generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeText:
    """One sequence to score."""

    token_ids: tuple[int, ...]
    """The whole of it."""
    num_prompt_tokens: int
    """Leading tokens that only condition."""


def fixed_probes(tokenizer: Any, *, vocab_size: int) -> tuple[ProbeText, ...]:
    """The same for every policy of a run: English, or tokens of all the vocabulary where it knows none."""
    texts = [ids for text in _FIXED_TEXTS if len(set(ids := _ids_of(text, tokenizer, vocab_size))) >= 2]
    if not texts:
        stride = max(1, vocab_size // _NUM_VOCABULARY_TOKENS)
        special = {*tokenizer.all_special_ids}
        ids = [index for index in range(stride // 2, vocab_size, stride) if index not in special]
        # A vocabulary of two has two special tokens.
        texts = [ids if len(ids) >= 2 else [*range(vocab_size)]]
    return tuple(ProbeText(token_ids=tuple(ids[:_MAX_FIXED_TOKENS]), num_prompt_tokens=1) for ids in texts)


def _ids_of(text: str, tokenizer: Any, vocab_size: int) -> list[int]:
    """Empty where the tokenizer cannot encode the text, or the model does not know the ids."""
    try:
        ids = encode_plain(text, tokenizer)
    except TextRefused:
        return []
    unknown = getattr(tokenizer, "unk_token_id", None)
    return [] if unknown in ids or max(ids, default=0) >= vocab_size else ids


def choose_probes(candidates: Sequence[tuple[float, ProbeText]], *, count: int) -> tuple[ProbeText, ...]:
    """The distinct sequences of the largest weight: those that a step moves most."""
    chosen: list[ProbeText] = []
    for _, probe in sorted(candidates, key=lambda item: -item[0]):
        if len(chosen) == count:
            break
        if probe not in chosen and len(probe.token_ids) <= _MAX_PROBE_TOKENS:
            chosen.append(probe)
    return tuple(chosen)


def mean_nlls(policy: Policy, probes: Sequence[ProbeText]) -> list[float]:
    """Mean NLL of every sequence; arithmetic in the policy's compute precision."""
    texts = [(p.token_ids[: p.num_prompt_tokens], p.token_ids[p.num_prompt_tokens :]) for p in probes]
    with _weights_as(policy.model, policy.compute_dtype):
        return policy.mean_nlls(texts)


@contextmanager
def _weights_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While a layer runs, its weights are widened to `dtype`: exact, and one layer's worth of memory.

    For CPUs without bfloat16 products, where computing in the published precision would take seconds.
    """
    hooks = []
    for outer, inner in _run_together(model):
        narrow = {
            module: {name: p for name, p in module._parameters.items() if p is not None and p.dtype != dtype}
            for module in inner
        }
        if any(narrow.values()):
            hooks.append(outer.register_forward_pre_hook(_widen(narrow, dtype)))
            hooks.append(outer.register_forward_hook(_restore(narrow)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run_together(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Each module with those whose weights its forward may read: in a layer, all that are inside it."""
    layers = {*(getattr(model, "_no_split_modules", None) or ())}
    seen: set[nn.Module] = set()
    for module in model.modules():
        if module not in seen:
            inner = [*module.modules()] if type(module).__name__ in layers else [module]
            seen.update(inner)
            yield module, inner


def _widen(narrow: dict[nn.Module, dict[str, nn.Parameter]], dtype: torch.dtype) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        for module, parameters in narrow.items():
            for name, parameter in parameters.items():
                module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
        # Some models give a layer what has the type that its weights had.
        return tuple(
            each.to(dtype) if torch.is_tensor(each) and each.is_floating_point() else each for each in given
        )

    return hook


def _restore(narrow: dict[nn.Module, dict[str, nn.Parameter]]) -> Any:
    def hook(*_: Any) -> None:
        for module, parameters in narrow.items():
            module._parameters.update(parameters)

    return hook
