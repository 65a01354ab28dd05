"""The same draws for a plain Llama of a few thousand parameters, where calls cost more than arithmetic.

A test holds it against the product's own forward pass. Legend: `_R` responses, `_B` prompts, `P` prompt
tokens, `_D` hidden, `H` heads, `E` head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu
from transformers import LlamaConfig, PreTrainedModel

from asympo.lab.sampling import Drawn, TokenIds, cut_at_end


class FastSampler:
    """Ancestral sampling at temperature 1 over weights it is given; prompts of one call have one length."""

    def __init__(self, model: PreTrainedModel, *, end_token_ids: frozenset[int], max_tokens: int) -> None:
        config = model.config
        assert isinstance(config, LlamaConfig)
        if config.num_key_value_heads != config.num_attention_heads or config.attention_bias:
            raise ValueError("only the laboratory's own tiny Llama is supported")
        self._config = config
        (self._end_token_id,) = end_token_ids
        self._max_tokens = max_tokens
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = model.get_submodule("model.rotary_emb")(torch.empty(0), positions)
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]
        self._weights: dict[str, Tensor] = {}
        self._qkv: list[Tensor] = []
        self._gate_up: list[Tensor] = []

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over a snapshot; nothing is copied but what is joined."""
        self._weights = weights
        layers = range(self._config.num_hidden_layers)
        self._qkv = [
            torch.cat([weights[f"model.layers.{i}.self_attn.{name}_proj.weight"] for name in "qkv"])
            for i in layers
        ]
        self._gate_up = [
            torch.cat([weights[f"model.layers.{i}.mlp.{name}_proj.weight"] for name in ("gate", "up")])
            for i in layers
        ]

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[TokenIds], *, num_samples: int, generator: torch.Generator
    ) -> list[list[Drawn]]:
        """`num_samples` responses to each prompt."""
        ids_BP = torch.tensor(prompts)
        caches = self._empty_caches(len(prompts), num_tokens=ids_BP.shape[1] + self._max_tokens)
        logits = self._forward(ids_BP, caches, start=0)
        caches = [
            (keys.repeat_interleave(num_samples, 0), values.repeat_interleave(num_samples, 0))
            for keys, values in caches
        ]
        logits = logits.repeat_interleave(num_samples, 0)
        length_R = torch.zeros(len(logits), dtype=torch.long)
        is_alive = torch.ones(len(logits), dtype=torch.bool)
        tokens, logprobs = [], []
        for index in range(self._max_tokens):
            logprob_RV = torch.log_softmax(logits, dim=-1)
            token_R1 = torch.multinomial(logprob_RV.exp(), 1, generator=generator)
            tokens.append(token_R1)
            logprobs.append(logprob_RV.gather(1, token_R1))
            length_R += is_alive
            is_alive &= token_R1[:, 0] != self._end_token_id
            if index + 1 == self._max_tokens or not bool(is_alive.any()):
                break
            logits = self._forward(token_R1, caches, start=ids_BP.shape[1] + index)
        drawn = cut_at_end(torch.cat(tokens, 1), torch.cat(logprobs, 1), length_R)
        return [drawn[start : start + num_samples] for start in range(0, len(drawn), num_samples)]

    def _empty_caches(self, rows: int, *, num_tokens: int) -> list[tuple[Tensor, Tensor]]:
        config = self._config
        heads = config.num_attention_heads
        shape = (rows, num_tokens, heads, config.hidden_size // heads)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]

    def _forward(self, ids: Tensor, caches: list[tuple[Tensor, Tensor]], *, start: int) -> Tensor:
        """Logits of the last token; keys and values are written into the caches."""
        config, weights = self._config, self._weights
        eps, size = config.rms_norm_eps, (config.hidden_size,)
        rows, width = ids.shape
        positions = slice(start, start + width)
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = embedding(ids, weights["model.embed_tokens.weight"])
        for i in range(config.num_hidden_layers):
            prefix = f"model.layers.{i}."
            normed = rms_norm(hidden, size, weights[prefix + "input_layernorm.weight"], eps)
            joined = linear(normed, self._qkv[i]).view(rows, width, 3 * config.num_attention_heads, -1)
            query, key, value = joined.chunk(3, dim=2)
            query, key = query * cos + _half_turned(query) * sin, key * cos + _half_turned(key) * sin
            keys, values = caches[i]
            keys[:, positions], values[:, positions] = key, value
            past = slice(0, positions.stop)
            mixed = _attend(query, keys[:, past], values[:, past]).reshape(rows, width, -1)
            hidden = hidden + linear(mixed, weights[prefix + "self_attn.o_proj.weight"])
            normed = rms_norm(hidden, size, weights[prefix + "post_attention_layernorm.weight"], eps)
            gate, up = linear(normed, self._gate_up[i]).chunk(2, dim=-1)
            hidden = hidden + linear(silu(gate) * up, weights[prefix + "mlp.down_proj.weight"])
        last = rms_norm(hidden[:, -1], size, weights["model.norm.weight"], eps)
        return linear(last, weights["lm_head.weight"])


def _half_turned(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`[rows, tokens, heads, size]` each; one query attends to everything, several to their past."""
    scale = query.shape[-1] ** -0.5
    if query.shape[1] == 1:
        # Products of this size are cheaper one by one than as a batch of tiny matrices.
        share = torch.softmax((query * key).sum(-1) * scale, dim=1)
        return (share[..., None] * value).sum(1, keepdim=True)
    future = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).triu(1)
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * scale
    share = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return (share @ value.transpose(1, 2)).transpose(1, 2)
