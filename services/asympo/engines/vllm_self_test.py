"""Start-up self-test: each kind of tensor must move the output, and every column must read back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from asympo.common.errors import EngineBroken
from asympo.engines.base import Readback

log = logging.getLogger(__name__)

_MIN_MOVE = 1e-3
"""Mean NLL; the perturbation is half the tensor's own size, so a tensor in use moves it by far more."""
_NUM_TOKENS = 24


class TestedEngine(Protocol):
    """What the test asks of the engine."""

    @property
    def tokenizer(self) -> Any: ...

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float: ...

    async def list_tensor_kinds(self) -> list[str]: ...

    async def load_weights(self, path: Path, tensors: list[Any] | None) -> object: ...

    async def load_perturbed(self, path: Path, kind: str) -> None: ...

    async def read_weights_back(self, path: Path, *, num_columns: int | None) -> Readback: ...


async def self_test(engine: TestedEngine, model_path: Path) -> None:
    """Reload the model once for each kind of tensor; EngineBroken naming the kinds without effect.

    A kind is a tensor name without its layer index. Costs one reload and one probe a kind, and finishes
    with the unchanged model, which must give the first answer again.
    """
    vocab_size = len(engine.tokenizer)
    token_ids = [(7 + 31 * position) % vocab_size for position in range(_NUM_TOKENS)]
    before = await engine.mean_nll(token_ids, num_prompt_tokens=1)
    without_effect = []
    for kind in await engine.list_tensor_kinds():
        await engine.load_perturbed(model_path, kind)
        moved = abs(await engine.mean_nll(token_ids, num_prompt_tokens=1) - before)
        log.info("self-test: %s moves the mean NLL by %.4f", kind, moved)
        if not moved > _MIN_MOVE:
            without_effect.append(kind)
    await engine.load_weights(model_path, None)
    readback = await engine.read_weights_back(model_path, num_columns=None)
    after = await engine.mean_nll(token_ids, num_prompt_tokens=1)
    if without_effect:
        raise EngineBroken(
            f"the self-test changed {', '.join(without_effect)} and the output stayed the same: "
            "reloads of this model do not reach the engine"
        )
    if readback.wrong:
        raise EngineBroken(
            f"the self-test restored the model but {len(readback.wrong)} layers hold other values: "
            f"{readback.wrong[0]}"
        )
    if not abs(after - before) <= _MIN_MOVE:
        raise EngineBroken(
            f"the self-test restored the model but its mean NLL is {after:.4f} instead of {before:.4f}"
        )
