"""Draws responses from a policy and keeps their log-probs: the laboratory's own generator.

Two arms correct for staleness with behaviour log-probs. They exist here only, because here the sampler and
the learner are one process; the product's records never carry them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One response."""

    token_ids: TokenIds
    """The end token included where one was drawn."""
    logprobs: tuple[float, ...]
    """Of each token under the policy that drew it, in float32."""


class AncestralSampler:
    """Ancestral sampling at temperature 1 with a key-value cache; its model is not the one being trained."""

    def __init__(self, model: PreTrainedModel, *, end_token_ids: frozenset[int], max_tokens: int) -> None:
        self._model = model.eval()
        self._end_token_ids = torch.tensor(sorted(end_token_ids), device=model.device)
        self._max_tokens = max_tokens

    @property
    def model(self) -> PreTrainedModel:
        return self._model

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over a snapshot."""
        set_weights(self._model, weights)

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[TokenIds], *, num_samples: int, generator: torch.Generator
    ) -> list[list[Drawn]]:
        """`num_samples` responses to each prompt; prompts may differ in length."""
        ids_BT, mask_BT = _left_padded(prompts, device=self._model.device)
        is_even = bool(mask_BT.all())
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids_BT, None if is_even else mask_BT, cache)
        cache.batch_repeat_interleave(num_samples)
        mask_RT = mask_BT.repeat_interleave(num_samples, dim=0)
        logits = logits.repeat_interleave(num_samples, dim=0)
        is_done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        tokens, logprobs, alive = [], [], []
        for index in range(self._max_tokens):
            logprob_RV = torch.log_softmax(logits.float(), dim=-1)
            # Drawn on the CPU: the same generator gives the same tokens on every device.
            token_R1 = torch.multinomial(logprob_RV.exp().cpu(), 1, generator=generator).to(logits.device)
            tokens.append(token_R1)
            logprobs.append(logprob_RV.gather(1, token_R1))
            alive.append(~is_done)
            is_done = is_done | torch.isin(token_R1[:, 0], self._end_token_ids)
            if index + 1 == self._max_tokens or bool(is_done.all()):
                break
            mask_RT = torch.cat([mask_RT, torch.ones_like(mask_RT[:, :1])], dim=1)
            logits = self._forward(token_R1, None if is_even else mask_RT, cache)
        drawn = cut_at_end(torch.cat(tokens, 1), torch.cat(logprobs, 1), torch.stack(alive, 1).sum(1))
        return [drawn[start : start + num_samples] for start in range(0, len(drawn), num_samples)]

    def _forward(self, ids: Tensor, mask: Tensor | None, cache: DynamicCache) -> Tensor:
        positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def set_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _left_padded(prompts: Sequence[TokenIds], *, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def cut_at_end(token_RT: Tensor, logprob_RT: Tensor, length_R: Tensor) -> list[Drawn]:
    """What came before the end of each row."""
    rows = zip(token_RT.tolist(), logprob_RT.tolist(), length_R.tolist(), strict=True)
    return [
        Drawn(token_ids=tuple(tokens[:length]), logprobs=tuple(logprobs[:length]))
        for tokens, logprobs, length in rows
    ]
