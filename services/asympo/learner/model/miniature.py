"""A model of the same kind, small enough to try everything on: built from a config, with other sizes.

Widths, depth, experts and vocabulary shrink; so do windows and the range that positions were trained on, so
that sequences of a hundred tokens go beyond them. What kind each layer is of, and every switch, stays.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

WINDOW, TRAINED_RANGE, MAX_POSITIONS, VOCABULARY = 16, 32, 160, 160
FIRST_PLAIN_ID = 16
"""Token ids below are the special ones of a miniature."""
FAMILY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What unfamiliar model code may raise; RuntimeError is torch's."""
_MAX_LAYERS, _MAX_EXPERTS, _MAX_CHOSEN = 8, 16, 4
_MAX_PARAMETERS = 24_000_000

_DEPTH = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks|depth)$")
_PER_HEAD = re.compile(
    r"(head_dim|headdim|pre_attn_scalar|d_head|dim_head|head_size|kv_channels|rotary_dim)$"
)
_HEADS = re.compile(r"(heads?|heads_per_layer|query_groups|n_?groups)$")
_WIDTH = re.compile(
    r"hidden_size|intermediate_size|intermediate_dim|d_model$|n_embd$|n_inner$|d_inner$|ffn_dim|ffn_hidden|dim_ff$"
    r"|dff$|lora_rank|embed\w*_(size|dim)$|emb_dim$|proj_dim$|lru_width|d_ssm$|feed_forward_size|head_width"
)
_OWN_HEADS = re.compile(r"^(num_attention_heads|n_heads?|num_heads)$")
_LEFT_OUT = ("quantization_config", "dtype", "_name_or_path", "output_attentions")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "emb_dim")
_EXPERTS = re.compile(r"(num|n)_(routed_|local_)?experts$|moe_num_experts$|^zero_expert_num$")
_CHOSEN = re.compile(r"experts_per_tok|moe_top_?k$|^moe_k$")
_WINDOW = re.compile(
    r"window(_size)?$|^(mamba_)?chunk_size$|^local_attention$|attn_chunk_length$|^attention_chunk_size$|^floor_scale$|^index_topk$"
)
_POSITIONS = re.compile(
    r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions"
    r"|context_length|model_max_length)$"
)
_EARLY = re.compile(r"^(first_k_dense_replace|num_dense_layers|num_kv_shared_layers)$")


class CannotTry(Exception):
    """No miniature of a family can be made, or it does not run; the family itself may be good."""


def make_miniature(config: PretrainedConfig, *, dtype: torch.dtype, is_narrow: bool) -> PreTrainedModel:
    """Random weights of which every feature shows; raises CannotTry.

    `is_narrow`: widths shrink too, which not every family's code stands.
    """
    try:
        small = _shrunk(config, is_narrow=is_narrow, max_layers=_MAX_LAYERS)
        small = _shrunk(config, is_narrow=is_narrow, max_layers=_num_needed(_outline(small)))
        size = sum(parameter.numel() for parameter in _outline(small).parameters())
        if size > _MAX_PARAMETERS:
            raise CannotTry(f"the smallest one has {size} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                small, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
            )
        scatter_weights(model)
    except FAMILY_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise CannotTry(f"no small one could be built ({reason})") from error
    return model


def _outline(config: PretrainedConfig) -> PreTrainedModel:
    """Without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def scatter_weights(model: PreTrainedModel) -> None:
    """Fresh weights are nearly uniform, zero or linear somewhere, which hides faults; these are not."""
    generator = torch.Generator().manual_seed(1)

    def noise(parameter: Tensor) -> Tensor:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)

    head = getattr(model.get_output_embeddings(), "weight", None)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() < 2:
            parameter.add_(noise(parameter), alpha=0.3)
        elif id(parameter) in tables:
            parameter.copy_(noise(parameter))
            if parameter is head:
                parameter.mul_(4 / math.sqrt(parameter.shape[1]))
        else:
            fan_in = math.prod(parameter.shape[1:]) if parameter.dim() == 2 else parameter[0].numel() ** 0.5
            parameter.copy_(noise(parameter)).mul_(2.0 / math.sqrt(fan_in))


def _num_needed(model: PreTrainedModel) -> int:
    """Layers from the first on that together have every kind of layer, two of each where there are."""
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len, default=())
    kinds = [repr([(name, type(m), _switches(m)) for name, m in layer.named_modules()]) for layer in layers]
    seen: dict[str, int] = {}
    needed = 2
    for number, kind in enumerate(kinds, 1):
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= 2:
            needed = max(needed, number)
    return needed


def _switches(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [
        (k, v)
        for k, v in vars(module).items()
        if isinstance(v, bool | str | int | None) and not k.endswith(("_idx", "layer_id"))
    ]


def _shrunk(config: PretrainedConfig, *, is_narrow: bool, max_layers: int) -> PretrainedConfig:
    return type(config).from_dict(_shrink(config.to_dict(), is_narrow=is_narrow, max_layers=max_layers))


def _shrink(document: dict[str, Any], *, is_narrow: bool, max_layers: int) -> dict[str, Any]:
    heads, per_head = _divisors(document) if is_narrow else (1, 1)
    depth = next((v for k, v in document.items() if _DEPTH.search(k) and isinstance(v, int)), 0)
    kept = _kept_layers(document, depth, max_layers)

    def value_of(name: str, value: Any) -> Any:
        if name.endswith("rope_parameters") and isinstance(value, dict):
            return _shrink_rope(value, per_head, document)
        if isinstance(value, dict):
            if depth and value and all(str(key).isdigit() for key in value):
                return {str(kept.index(int(k))): v for k, v in value.items() if int(k) in kept}
            is_config = "model_type" in value or name.endswith("_config")
            return _shrink(value, is_narrow=is_narrow, max_layers=max_layers) if is_config else value
        if isinstance(value, list):
            if depth and len(value) == depth:
                value = [value[index] for index in kept]
            elif name.endswith(("_ids", "_layers", "_idxs")) and all(isinstance(each, int) for each in value):
                return [kept.index(each) for each in value if each in kept]
            return [value_of(name, each) for each in value] if all(type(e) is int for e in value) else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            return value
        return _number(name, value)

    def _number(name: str, value: int) -> int:
        rules: list[tuple[re.Pattern[str], Callable[[int], int]]] = [
            (_DEPTH, lambda v: min(v, len(kept) or max_layers)),
            (_EARLY, lambda v: min(v, 2 if "shared" in name else 1)),
            (re.compile("vocab_size|group_vocab$"), lambda v: min(v, VOCABULARY)),
            (re.compile("(token_id|_index|^pad_idx)$"), lambda v: v % FIRST_PLAIN_ID),
            (re.compile("original_max_position"), lambda v: min(v, TRAINED_RANGE)),
            (_POSITIONS, lambda v: _positions(document, v)),
            (_WINDOW, lambda v: min(v, WINDOW)),
            (_EXPERTS, lambda v: min(v, _MAX_EXPERTS)),
            (_CHOSEN, lambda v: min(v, _MAX_CHOSEN)),
            (_PER_HEAD, lambda v: max(1, v // per_head)),
            (_HEADS, lambda v: v if v % heads else v // heads),
            (_WIDTH, lambda v: max(1, v // (heads * per_head))),
        ]
        for pattern, change in rules:
            if pattern.search(name):
                return change(value)
        return value

    return {name: value_of(name, value) for name, value in document.items() if name not in _LEFT_OUT}


def _divisors(document: dict[str, Any]) -> tuple[int, int]:
    """By which numbers of heads, and sizes of heads, can be divided; widths by their product."""
    numbers = {k: v for k, v in document.items() if type(v) is int and v > 0}
    counts = [v for k, v in numbers.items() if v > 1 and _HEADS.search(k) and not _PER_HEAD.search(k)]
    common = math.gcd(*counts)
    heads = next((h for h in range(common // 2, 1, -1) if common % h == 0 and max(counts) // h >= 4), 1)
    if common > 16 and heads == 1:
        heads = common
    hidden = next((numbers[k] for k in _HIDDEN if k in numbers), 0)
    sizes = [v for k, v in numbers.items() if _PER_HEAD.search(k)]
    if hidden and not sizes:
        own = max((v for k, v in numbers.items() if _OWN_HEADS.search(k)), default=0)
        sizes = [hidden // own] if own and hidden % own == 0 else [hidden // 16]
    per_head = 1
    while sizes and all(s % (2 * per_head) == 0 and s // (2 * per_head) >= 4 for s in sizes):
        if max(sizes) // (2 * per_head) < 8 or hidden % (heads * 2 * per_head):
            break
        per_head *= 2
    return heads, per_head


def _kept_layers(document: dict[str, Any], depth: int, max_layers: int) -> list[int]:
    """Two layers of every kind that the config's lists name, in order; without lists the first few."""
    lists = [v for k, v in document.items() if isinstance(v, list) and len(v) == depth and "token" not in k]
    if not lists:
        return list(range(min(depth, max_layers)))
    kept: list[int] = []
    seen: dict[str, int] = {}
    for index in range(depth):
        kind = repr([each[index] for each in lists])
        if seen.get(kind, 0) < 2 and len(kept) < _MAX_LAYERS:
            kept.append(index)
            seen[kind] = seen.get(kind, 0) + 1
    return kept


def _positions(document: dict[str, Any], value: int) -> int:
    """Beyond the range that positions were trained on by the same factor."""
    rope = document.get("rope_parameters") or {}
    ropes = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    if any(each.get("rope_type") == "dynamic" for each in ropes):
        return min(value, TRAINED_RANGE)
    ranges = [
        each["original_max_position_embeddings"]
        for each in ropes
        if each.get("original_max_position_embeddings")
    ]
    if ranges and value > ranges[0]:
        return value * TRAINED_RANGE // ranges[0]
    return min(value, MAX_POSITIONS)


def _shrink_rope(rope: dict[str, Any], per_head: int, document: dict[str, Any]) -> dict[str, Any]:
    shrunk: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            value = _shrink_rope(value, per_head, document)
        elif name.endswith("original_max_position_embeddings") and value:
            value = min(value, TRAINED_RANGE)
        elif name.endswith("_factor") and isinstance(value, list):
            value = value[::per_head]
        elif name.endswith("_section") and isinstance(value, list):
            value = [each // per_head for each in value]
        shrunk[name] = value
    return shrunk
