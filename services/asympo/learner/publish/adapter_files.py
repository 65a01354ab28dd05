"""An adapter in files, in PEFT's form: two matrices for each tensor of the base's files that it changes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from asympo.common.checkpoints.digests import TensorSpan
from asympo.common.checkpoints.manifest import TensorEntry
from asympo.common.checkpoints.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from asympo.common.errors import CorruptCheckpoint
from asympo.learner.model.lora import adapted_weights, adapter_config, adapts, is_quantised
from asympo.learner.model.weights import PUBLISHED_DTYPE, named_weights

_PREFIX = "base_model.model."


def write_adapter(
    directory: Path, values: Mapping[str, Tensor], *, model: PreTrainedModel, base: str
) -> None:
    """`values`: the matrices, named as in the model. Raises OSError."""
    held = {name: matrix.contiguous().clone() for name, matrix in _matrices(model, values)}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(held, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    # PEFT declares no types for it.
    config: dict[str, Any] = adapter_config(model).to_dict()  # type: ignore[no-untyped-call]
    # A path of this machine says nothing elsewhere, and a base that was rounded is no model with a name.
    named = None if is_quantised(model) else Path(base).name if Path(base).is_dir() else base
    config |= {"base_model_name_or_path": named, "inference_mode": True}
    # PEFT finds the stack of experts by what files call their matrices. Where ends of names did not tell
    # layers apart, whole ones are given.
    is_whole = any("." in each for each in config["target_modules"])
    targets = {_module(name) if is_whole else _module(name).rpartition(".")[2] for name in held}
    config |= {"target_modules": sorted(targets), "target_parameters": None}
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1) + "\n")


@torch.no_grad()
def read_adapter(path: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """What a policy says of the matrices of a model's adapter: of the base, that nothing is added.

    Raises CorruptCheckpoint where it is of other layers, or scaled otherwise.
    """
    values = {
        name: torch.zeros(each.shape, dtype=PUBLISHED_DTYPE) for name, each in named_weights(model).items()
    }
    if not (path / ADAPTER_WEIGHTS).exists():
        return {name: value for name, value in values.items() if adapts(name)}
    stored, ours = load_file(path / ADAPTER_WEIGHTS), dict(_matrices(model, values))
    if stored.keys() != ours.keys():
        raise CorruptCheckpoint(
            f"{path} is an adapter of other layers than {min(stored.keys() ^ ours.keys())}"
        )
    theirs, config = json.loads((path / ADAPTER_CONFIG).read_text()), adapter_config(model)
    if (theirs["lora_alpha"], theirs["use_rslora"]) != (config.lora_alpha, config.use_rslora):
        raise CorruptCheckpoint(f"{path} is an adapter with another alpha, or another use of it")
    if odd := next((name for name, matrix in ours.items() if matrix.shape != stored[name].shape), None):
        raise CorruptCheckpoint(f"{path} is an adapter of another rank: {odd} is {list(stored[odd].shape)}")
    for name, matrix in ours.items():
        matrix.copy_(stored[name])
    if odd := next((name for name, matrix in ours.items() if not torch.equal(matrix, stored[name])), None):
        raise CorruptCheckpoint(f"{path} has two values of {odd}, which is one matrix of a stack")
    return values


def what_does_not_fit(model: PreTrainedModel, tensors: Iterable[TensorEntry | TensorSpan]) -> str | None:
    """Which weight of a model with an adapter its base's files do not hold as the adapter needs it."""
    held = {each.name: (each.dtype, tuple(each.shape)) for each in tensors}
    for weight, adapted in adapted_weights(model).items():
        columns = adapted.base_weight().shape[-1]
        for file, part in adapted.files.items():
            if held.get(file) != ("BF16", (part.rows.stop - part.rows.start, columns)):
                return weight
    return None


def _module(name: str) -> str:
    return name.removeprefix(_PREFIX).partition(".lora_")[0]


def _matrices(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Views of the model's, by their names in files: parts of a stack of experts share an A."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    for adapted in adapted_weights(model).values():
        a, b = adapted.laid_out(*(values[names[side.weight]] for side in (adapted.a, adapted.b)))
        for file, part in adapted.files.items():
            pair = (a if part.expert is None else a[part.expert], part.of(b))
            for side, matrix in zip("AB", pair, strict=True):
                yield f"{_PREFIX}{file.removesuffix('.weight')}.lora_{side}.weight", matrix
