"""The policy's weights as a whole, wherever their shards are."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asympo.learner.ranks import Ranks

PUBLISHED_DTYPE = torch.bfloat16
"""Of what generators serve, whatever is trained."""


class Weights:
    """What is published of a model: parameters, and the buffers that a checkpoint holds."""

    def __init__(self, *, model: nn.Module, ranks: Ranks | None) -> None:
        self._model = model
        self._ranks = ranks

    def values(self, *, dtype: torch.dtype) -> Iterator[Tensor]:
        """Every tensor once, in the model's order, one whole tensor at a time.

        Only shards are rounded to `dtype`: that halves what travels. The first rank calls, the others
        answer with `contribute`; all of it must be taken, because every rank takes part in each tensor.
        """
        if self._ranks is not None:
            self._ranks.tell({"do": "contribute"})
        return self._values(dtype)

    def contribute(self, *, dtype: torch.dtype) -> None:
        """This rank's part in `values` of the first one."""
        for _ in self._values(dtype):
            pass

    def _values(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for value in named_weights(self._model).values():
            yield cast(DTensor, value.to(dtype)).full_tensor() if isinstance(value, DTensor) else value
        if self._ranks is not None:
            self._ranks.all_done()


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is published of a model: parameters, tied ones once, and the buffers that a checkpoint holds.

    Of one with an adapter only that.
    """
    if is_adapted(model):
        return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    saved = model.state_dict().keys()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in saved}


def is_adapted(model: nn.Module) -> bool:
    """Whether an adapter is all that is trained of it."""
    return hasattr(model, "base_sha256")


def adapter_scale(model: nn.Module) -> float | None:
    """What the product of an adapter's matrices is multiplied with; None without an adapter."""
    return cast(float, model.adapter_scale) if is_adapted(model) else None
