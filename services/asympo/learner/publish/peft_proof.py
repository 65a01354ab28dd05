"""Whether PEFT itself makes of an adapter's files the policy that they are."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from asympo.common.errors import AsympoError
from asympo.learner.model.lora import import_peft
from asympo.learner.model.policy import load_model
from asympo.learner.model.weights import PUBLISHED_DTYPE, named_weights

_MOST_MISSED = 0.5
"""Of a tensor's changes. PEFT adds in another order, so that a few values are rounded otherwise."""


@torch.no_grad()
def require_that_peft_reads(adapter: Path, *, base: Path, policy: Path) -> None:
    """Raises AsympoError where PEFT leaves out, or adds elsewhere, what the policy has.

    It finds stacked experts by names, and takes those of some linears for theirs.
    """
    before, wanted = (named_weights(_load(path, PUBLISHED_DTYPE)) for path in (base, policy))
    peft = import_peft()
    try:
        wrapped: Any = peft.PeftModel.from_pretrained(_load(base, torch.float32), str(adapter))
        read = named_weights(wrapped.merge_and_unload())
    except Exception as error:
        raise _unread(next(iter(str(error).split("\n")), "") or type(error).__name__) from error
    for name, value in wanted.items():
        num_changed = int((value != before[name]).sum())
        num_missed = int((value != read[name].to(PUBLISHED_DTYPE)).sum())
        if num_missed > _MOST_MISSED * num_changed:
            raise _unread(f"of {num_changed} values of {name} that it changes, {num_missed} are others")


def _load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    return load_model(path, dtype=dtype, device=torch.device("cpu"))


def _unread(reason: str) -> AsympoError:
    return AsympoError(
        f"PEFT {import_peft().__version__} does not read this adapter as it was trained: {reason}; export "
        "the policy with --merge"
    )
