"""What a directory of weights says when it is loaded, and whether that is what a policy says."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from asympo.common.errors import AsympoError, BadSetting, CorruptCheckpoint
from asympo.learner.log.create_run import read_config
from asympo.learner.model.policy import load_model, vocab_size
from asympo.learner.model.weights import PUBLISHED_DTYPE, named_weights
from asympo.learner.step.probe import ProbeText, fixed_probes
from asympo.tasks.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One model, as it was after loading; it is not kept itself."""

    shapes: dict[str, tuple[int, ...]]
    digests: dict[str, str]
    """Of each tensor's bytes."""
    logits: tuple[Tensor, ...]
    """For every token of each text."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a copy of a policy compares with the policy and with the model that its run started from."""

    tensors: int
    differ_from_base: int
    """Tensors whose bytes are not those of the base, rounded as a policy's are."""
    prompts: int
    """Texts whose logits are those of the policy, bit for bit."""
    logits_from_base: float
    """Largest difference to the base's logits."""


def prove(copy: Path, *, policy: Path, base: str, is_start: bool, adapter_base: Path | None = None) -> Proof:
    """Loads all of them, one after the other.

    `adapter_base`: to what the run has added the adapter that is taken away alone. Raises CorruptCheckpoint
    unless the copy holds and says what the policy does, AsympoError where it is the base itself (unless
    `is_start`: before the first step it is), BadSetting where the base is another model, or an adapter's has
    other values.
    """
    transformers_logging.disable_progress_bar()
    texts = fixed_probes(load_tokenizer(str(copy)), vocab_size=vocab_size(read_config(str(copy))))
    again, original = _load(copy, texts), _load(policy, texts)
    if again.digests != original.digests:
        odd = min(name for name, _ in again.digests.items() ^ original.digests.items())
        raise CorruptCheckpoint(f"{copy} is not the policy in {policy} once it is loaded: {odd} differs")
    if not all(map(torch.equal, again.logits, original.logits)):
        raise CorruptCheckpoint(f"{copy} does not answer as the policy in {policy} does: its logits differ")
    start = _load(Path(base) if Path(base).is_dir() else base, texts)
    if start.shapes != again.shapes:
        odd = min(name for name, _ in start.shapes.items() ^ again.shapes.items())
        raise BadSetting(
            f"{base} and {policy} are different models ({odd}): name the run's start with --base"
        )
    if adapter_base is not None and (held := _load(adapter_base, ())).digests != start.digests:
        odd = min(name for name, _ in held.digests.items() ^ start.digests.items())
        raise BadSetting(
            f"the adapter was not trained on {base} as it is, but on values that differ in {odd}, as with "
            "lora.base_bits: export it merged, or name its base, which is the export of step 0, with --base"
        )
    num_different = sum(start.digests[name] != digest for name, digest in again.digests.items())
    if not num_different and not is_start:
        raise AsympoError(
            f"the policy in {policy} is {base} itself: none of its {len(again.digests)} tensors differs, so "
            "there is nothing to take away"
        )
    return Proof(
        tensors=len(again.digests),
        differ_from_base=num_different,
        prompts=len(texts),
        logits_from_base=max(
            float((ours.float() - theirs.float()).abs().max())
            for ours, theirs in zip(again.logits, start.logits, strict=True)
        ),
    )


@torch.inference_mode()
def _load(path: str | Path, texts: Sequence[ProbeText]) -> Loaded:
    model = load_model(path, dtype=PUBLISHED_DTYPE, device=torch.device("cpu"))
    weights = named_weights(model)
    return Loaded(
        shapes={name: tuple(value.shape) for name, value in weights.items()},
        digests={name: _digest(value) for name, value in weights.items()},
        logits=tuple(
            model(input_ids=torch.tensor([text.token_ids]), use_cache=False).logits[0] for text in texts
        ),
    )


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
