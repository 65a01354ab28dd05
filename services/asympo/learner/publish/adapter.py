"""A PEFT adapter added to the model that it was trained on: LoRA, plain or rank-stabilised, in float32."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from asympo.common.checkpoints.merge import tiles, with_product
from asympo.common.errors import AsympoError, BadSetting, CorruptCheckpoint
from asympo.common.foreign.documents import parse_object
from asympo.learner.log.create_run import read_config
from asympo.learner.model.adaptable import parts_in_files
from asympo.learner.model.policy import load_model
from asympo.learner.model.weights import named_weights
from asympo.learner.publish.policy_files import files_beside_weights, write_weights
from asympo.tasks.tokenizer import load_tokenizer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_NOT_ADDED = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "lora_bias",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
)
"""Keys of PEFT's config that mean more than adding a product to a weight."""
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda")
"""Ways to begin that change the base as well."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of an adapter."""

    base: str
    changed: int
    """Tensors of the base that it changed, as they are stored."""
    tensors: int
    dtype: str
    """In which they are stored: that of the base."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter that was read and can be added."""

    path: Path
    config: Mapping[str, Any]
    pairs: dict[str, tuple[Tensor, Tensor]]
    """A and B by the name of their module in the base."""

    @classmethod
    def read(cls, path: Path) -> "Adapter":
        """BadSetting where this is none that can be added, CorruptCheckpoint where it is damaged."""
        if not (path / _CONFIG).is_file():
            is_model = (path / "config.json").is_file()
            hint = "a model already: give it to the learner as `model`" if is_model else "no PEFT adapter"
            raise BadSetting(f"{path} has no {_CONFIG}: it is {hint}")
        try:
            config = parse_object((path / _CONFIG).read_bytes(), max_bytes=_MAX_CONFIG_BYTES)
            weights = load_file(path / _WEIGHTS)
        except FileNotFoundError as error:
            raise BadSetting(f"{path} has no {_WEIGHTS}: adapters are read from safetensors only") from error
        except (ValueError, SafetensorError) as error:
            raise CorruptCheckpoint(f"the adapter in {path} cannot be read: {error}") from error
        _refuse_unless_plain(path, config)
        return cls(path=path, config=config, pairs=_pairs_of(path, weights))

    def base(self, given: str | None) -> str:
        """The model that it was trained on, by that name where one is given; BadSetting."""
        named = self.config.get("base_model_name_or_path")
        if given is None:
            if not isinstance(named, str) or not named:
                raise BadSetting(f"the adapter in {self.path} does not name its base: give --base")
            return named
        if isinstance(named, str) and Path(named).name.lower() != Path(given).name.lower():
            raise BadSetting(f"the adapter in {self.path} was trained on {named} and not on {given}")
        return given

    @torch.no_grad()
    def add_to(self, model: PreTrainedModel, *, base: str, dtype: torch.dtype) -> int:
        """Changes the weights in place; how many have other values in `dtype`. Raises BadSetting."""
        weights: dict[str, Tensor] = dict(model.named_parameters())
        # An adapter may call them as files do, where experts have names of their own.
        parts = parts_in_files(model)
        weights = {name: each.of(weights[each.parameter]) for name, each in parts.items()} | weights
        changed = set()
        for module, (a, b) in self.pairs.items():
            weight = weights.get(f"{module}.weight")
            scale = np.float32(self._scale(module, rank=a.shape[0]))
            # As PEFT lays such layers out, the product is added to the transposed weight.
            shown = weight.T if weight is not None and self.config.get("fan_in_fan_out") else weight
            if weight is None or shown is None or shown.shape != (b.shape[0], a.shape[1]):
                what = "does not have" if weight is None else "has in another shape"
                raise BadSetting(
                    f"the adapter in {self.path} changes {module}, which {base} {what}: it was trained on "
                    "another model"
                )
            before = weight.to(dtype, copy=True)
            values, rows, columns = shown.numpy(), b.float().numpy(), a.float().numpy()
            for each in tiles(*shown.shape):
                values[each] = with_product(values[each], columns, rows[each], scale=scale)
            if not torch.equal(before, weight.to(dtype)):
                name = f"{module}.weight"
                changed.add(parts[name].parameter if name in parts else name)
        return len(changed)

    def _scale(self, module: str, *, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        own = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        alpha = float(next(own, self.config.get("lora_alpha", rank)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def merge(path: Path, out: Path, *, base: str | None) -> Merged:
    """Write the base with the adapter added to it, as a model that a run can start from, and load it again.

    Raises BadSetting, BadModel, CorruptCheckpoint; AsympoError where nothing would change.
    """
    transformers_logging.disable_progress_bar()
    adapter = Adapter.read(path)
    name = adapter.base(base)
    config = read_config(name)
    if getattr(config, "quantization_config", None) is not None:
        raise BadSetting(f"{name} is quantised: give the model that it was made from with --base")
    dtype = getattr(config, "dtype", None)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    cpu = torch.device("cpu")
    model = load_model(name, dtype=torch.float32, device=cpu)
    changed = adapter.add_to(model, base=name, dtype=dtype)
    if not changed:
        raise AsympoError(f"the adapter in {path} changes no value of {name} in {_word(dtype)}")
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it and hides its types
    weights = named_weights(model)
    if odd := next((key for key, value in weights.items() if not torch.isfinite(value).all()), None):
        raise BadSetting(f"{name} with the adapter in {path} has values in {odd} that are not finite")
    write_weights(model, out)
    for file, content in files_beside_weights(model, load_tokenizer(name)).items():
        (out / file).write_bytes(content)
    again = named_weights(load_model(out, dtype=dtype, device=cpu))
    if odd := next((key for key in weights if not torch.equal(weights[key], again[key])), None):
        raise CorruptCheckpoint(f"{out} does not hold the {odd} that was written to it")
    return Merged(base=name, changed=changed, tensors=len(weights), dtype=_word(dtype))


def _refuse_unless_plain(path: Path, config: Mapping[str, Any]) -> None:
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        raise BadSetting(f"the adapter in {path} is of the kind {kind}: only LORA can be added")
    odd = [f"{key} = {config[key]!r}" for key in _NOT_ADDED if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append(f"bias = {config['bias']!r}")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        odd.append(f"init_lora_weights = {start!r}")
    if odd:
        raise BadSetting(f"the adapter in {path} has {odd[0]}: only what is added to weights can be merged")


def _pairs_of(path: Path, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        match = _MATRIX.fullmatch(name)
        if match is None or value.ndim != 2:
            raise BadSetting(f"the adapter in {path} holds {name}: only matrices of linears can be merged")
        sides.setdefault(match["module"], {})[match["side"]] = value
    for module, found in sides.items():
        if found.keys() != {"A", "B"} or found["A"].shape[0] != found["B"].shape[1]:
            raise CorruptCheckpoint(f"the adapter in {path} has no fitting A and B of {module}")
    if not sides:
        raise CorruptCheckpoint(f"the adapter in {path} is empty")
    return {module: (found["A"], found["B"]) for module, found in sorted(sides.items())}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
