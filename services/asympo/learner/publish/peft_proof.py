"""Whether PEFT itself makes of an adapter's files the policy that they are."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from asympo.common.errors import AsympoError
from asympo.common.foreign.text import reason_of
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
    peft = import_peft()
    try:
        wrapped: Any = peft.PeftModel.from_pretrained(_load(base, torch.float32), str(adapter))
        merged = wrapped.merge_and_unload()
    except Exception as error:
        raise _unread(reason_of(error)) from error
    read = {name: value.to(PUBLISHED_DTYPE) for name, value in named_weights(merged).items()}
    # The wider model goes before the others come.
    del wrapped, merged
    wanted = named_weights(_load(policy, PUBLISHED_DTYPE))
    missed = {name: int((value != read.pop(name).to(value.dtype)).sum()) for name, value in wanted.items()}
    for name, before in named_weights(_load(base, PUBLISHED_DTYPE)).items():
        num_changed = int((wanted[name] != before).sum())
        if missed[name] > _MOST_MISSED * num_changed:
            raise _unread(f"of {num_changed} values of {name} that it changes, {missed[name]} are others")


def _load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    return load_model(path, dtype=dtype, device=torch.device("cpu"))


def _unread(reason: str) -> AsympoError:
    return AsympoError(
        f"PEFT {import_peft().__version__} does not read this adapter as it was trained: {reason}; export "
        "the policy with --merge"
    )
