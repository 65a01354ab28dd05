"""Which tensors make up the training state of a model and its optimizer, under stable names."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.learner.model.weights import adapter_scale, is_adapted, named_weights
from asympo.learner.state.dcp import DTYPES, dtype_name
from asympo.learner.state.manifest import StateTensor
from asympo.learner.step.memory import room_for_momenta
from asympo.learner.step.muon import ADAMW, MUON

BASE_DIGEST = "base.sha256"
"""In a state of an adapter, which holds nothing else of its base."""
_COMPILED_PREFIX = "_orig_mod."
"""Put into parameter names by torch.compile."""


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor to save, shared with the model and the optimizer, not copied. Tied weights occur once."""
    tensors = {f"model.{_plain(name)}": value for name, value in named_weights(model).items()}
    if is_adapted(model):
        tensors[BASE_DIGEST] = cast(Tensor, model.base_sha256)
    for name, parameter in _named(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise BadSetting(f"the optimizer keeps {key!r} of {name} in a form that cannot be saved")
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def describe_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's parameter groups with names for parameters; BadSetting for odd values."""
    names = {id(parameter): name for name, parameter in _named(model, optimizer)}
    groups = []
    for group in optimizer.param_groups:
        described: dict[str, Any] = {}
        for key, value in group.items():
            if key == "params":
                described[key] = [names[id(parameter)] for parameter in value]
            elif value is None or isinstance(value, bool | int | float | str):
                described[key] = value
            elif isinstance(value, tuple) and all(isinstance(part, int | float) for part in value):
                described[key] = list(value)
            else:
                raise BadSetting(f"the optimizer's {key}={value!r} cannot be saved; give a plain number")
        groups.append(described)
    return groups


def allocate_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    groups: Sequence[Mapping[str, Any]],
    stored: Mapping[str, StateTensor],
) -> None:
    """Give the optimizer uninitialised state tensors of the stored shapes, sharded like their parameters.

    Its own hyperparameters stay. Raises BadSetting when the state is of another optimizer or of other
    parameters, StepTooLarge when memory has no room for it.
    """
    given = describe_groups(model, optimizer)
    if (here := _optimizer_name(given)) != (there := _optimizer_name(groups)):
        raise BadSetting(
            f"the training state is of the optimizer {there}, and the settings say {here}: its momenta mean"
            f" something else; set optimizer to {there}, or start a run with a name of its own"
        )
    names = [list(group["params"]) for group in given]
    if names != [list(group["params"]) for group in groups]:
        ours, theirs = (
            set(itertools.chain(*held)) for held in (names, (group["params"] for group in groups))
        )
        differs = min(ours ^ theirs, default="their groups")
        hint = "; give lora.targets as the run started with it" if is_adapted(model) else ""
        raise BadSetting(f"the training state is of other parameters than are trained here: {differs}{hint}")
    parameters = dict(_named(model, optimizer))
    index = {name: position for position, name in enumerate(name for group in names for name in group)}
    state: dict[int, dict[str, Tensor]] = {}
    with room_for_momenta(optimizer):
        for entry in stored.values():
            kind, _, rest = entry.name.partition(".")
            name, _, key = rest.rpartition(".")
            if kind == "optimizer" and name in parameters:
                state.setdefault(index[name], {})[key] = _allocate(parameters[name], entry)
    restored = [
        {**group, "params": [index[name] for name in held]}
        for group, held in zip(optimizer.param_groups, names, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def check_tensors(tensors: Mapping[str, Tensor], stored: Mapping[str, StateTensor], *, what: str) -> None:
    """BadSetting naming the first difference in name, shape or type."""
    for name in sorted(tensors.keys() ^ stored.keys()):
        place = "the state" if name in stored else "this model and optimizer"
        raise BadSetting(f"{what} does not fit: only {place} has {name}")
    for name, tensor in tensors.items():
        entry = stored[name]
        if tuple(tensor.shape) != entry.shape or dtype_name(tensor) != entry.dtype:
            raise BadSetting(
                f"{what} does not fit: {name} is {entry.dtype} {list(entry.shape)} there and"
                f" {dtype_name(tensor)} {list(tensor.shape)} here"
            )


def check_scale(model: nn.Module, stored: float | None, *, what: str) -> None:
    """BadSetting where an adapter would be added to its base more or less than it was."""
    here = adapter_scale(model)
    if stored is not None and stored != here:
        raise BadSetting(
            f"{what} holds an adapter that is scaled by {stored:g}, and by {here:g} with the settings here: "
            "give lora.alpha and lora.rank_stabilised as the run started with them"
        )


def _optimizer_name(groups: Sequence[Mapping[str, Any]]) -> str:
    """As settings call it; groups without a name are of a release that had AdamW alone."""
    names = {group.get("optimizer", ADAMW) for group in groups}
    return MUON if MUON in names else str(min(names))


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters with their names, in its order."""
    names = {id(parameter): _plain(name) for name, parameter in model.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise BadSetting("the optimizer holds a parameter that the model does not have")
            found.append((names[id(parameter)], parameter))
    return found


def _allocate(parameter: Tensor, entry: StateTensor) -> Tensor:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CorruptCheckpoint(f"{entry.name} is of the unknown type {entry.dtype!r}")
    if tuple(parameter.shape) == entry.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(entry.shape, dtype=dtype)


def _plain(name: str) -> str:
    return name.replace(_COMPILED_PREFIX, "")
