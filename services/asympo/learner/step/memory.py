"""What memory ran out of, in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asympo.common.errors import StepTooLarge
from asympo.learner.step.muon import ADAMW

_GIB = 1 << 30


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed; torch's CPU allocator has no exception of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def room_for_momenta(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Raises StepTooLarge when memory runs out inside: momenta are made by the first step, or by a load."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise StepTooLarge(
            f"the optimizer does not fit into memory ({reason}): weights, gradients and momenta take "
            f"{_num_bytes(optimizer) / _GIB:.1f} GiB over all ranks, besides the rows: give more memory or "
            "more ranks, or train an adapter with lora"
        ) from error


def _num_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all that is trained: weight and gradient, with two momenta in AdamW and one in Muon."""
    return sum(
        (4 if group.get("optimizer", ADAMW) == ADAMW else 3) * parameter.numel() * parameter.element_size()
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
