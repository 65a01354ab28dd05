"""The policy being trained: any Hugging Face causal LM, fp32 weights, lower precision inside autocast."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadModel
from asympo.learner.model.attention import PACKED_ATTENTION, plan_layout
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, collate
from asympo.learner.model.fused import fuse, unfused
from asympo.learner.model.nll import HeadOptions, chunk_bounds, token_nll
from asympo.learner.model.transfer import to_device
from asympo.learner.model.tree_mask import TreeMask

log = logging.getLogger(__name__)

SELF_CHECK_TOLERANCE = 1e-3
"""Nats of mean NLL by which our packed forward may differ from the model's own, both in float32."""


@dataclass(frozen=True, kw_only=True)
class ResponseNll:
    """What one forward pass over a packed row says about its responses."""

    mean_nll_R: Tensor
    """Mean over each response's trained tokens; carries the gradient."""
    entropy_sum: Tensor
    """Sum of the next-token entropies of all trained tokens, detached."""


class Policy:
    """Forward passes over packed rows; owns the module and knows its head."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        compute_dtype: torch.dtype,
        chunk_rows: int = 256,
        attention: str = "blocks",
    ) -> None:
        """``attention``: ``blocks``, or ``flex`` which has gradients on GPUs only."""
        self.model = model
        self._plan = TreeMask if attention == "flex" else plan_layout
        self.compute_dtype = compute_dtype
        self._head_options = _head_options(model.config, chunk_rows=chunk_rows, compute_dtype=compute_dtype)
        head = model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear) or model.base_model is model:
            raise BadModel(f"{type(model).__name__} has no linear LM head: a causal language model is needed")
        self._head = head
        self._row: Callable[[PackedBatch], tuple[Tensor, Tensor]] | None = None

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def chunk_rows(self) -> int:
        """Rows of logits that exist at once."""
        return self._head_options.chunk_rows

    @chunk_rows.setter
    def chunk_rows(self, value: int) -> None:
        self._head_options = replace(self._head_options, chunk_rows=value)

    @property
    def parameter_dtype(self) -> torch.dtype:
        return self._head.weight.dtype

    def response_nll(self, batch: PackedBatch) -> ResponseNll:
        """Mean NLL of every response of the row, in float32 or better, from one forward pass."""
        if self._row is None:
            return self.compute_nll(batch)
        mean_nll_R, entropy_sum = self._row(batch)
        return ResponseNll(mean_nll_R=mean_nll_R, entropy_sum=entropy_sum)

    def compute_through(self, row: Callable[[PackedBatch], tuple[Tensor, Tensor]]) -> None:
        """From now on rows go through ``row``, which makes sharded weights whole around `compute_nll`."""
        self._row = row

    def compute_nll(self, batch: PackedBatch) -> ResponseNll:
        """`response_nll` where all weights are here."""
        hidden_TD = self._hidden_states(batch)
        device = self.device
        source_U = to_device(batch.source_U, device)
        row_N = to_device(batch.row_N, device)
        options = self._head_options
        with torch.autocast(device.type, enabled=False):
            nll_N, entropy_U = token_nll(
                hidden_TD.index_select(0, source_U),
                self._head.weight,
                self._head.bias,
                row_N=row_N,
                target_N=to_device(batch.target_N, device),
                token_bounds=chunk_bounds(
                    batch.row_N, num_rows=len(batch.source_U), chunk_rows=options.chunk_rows
                ),
                options=options,
            )
            num_R = to_device(np.array(batch.num_trained_R), device).to(nll_N.dtype)
            response_N = to_device(batch.response_N, device)
            sum_R = torch.zeros_like(num_R).index_add(0, response_N, nll_N)
        return ResponseNll(mean_nll_R=sum_R / num_R, entropy_sum=entropy_U[row_N].sum())

    def _hidden_states(self, batch: PackedBatch) -> Tensor:
        device = self.device
        is_mixed = self.compute_dtype.itemsize < self.parameter_dtype.itemsize
        with torch.autocast(device.type, dtype=self.compute_dtype, enabled=is_mixed):
            output = self.model.base_model(
                input_ids=to_device(batch.token_ids_T, device)[None],
                position_ids=to_device(batch.position_ids_T, device)[None],
                use_cache=False,
                packed_layout=self._plan(batch, device=device),
            )
        hidden_TD: Tensor = output.last_hidden_state[0]
        return hidden_TD

    @torch.no_grad()
    def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        """Mean NLL of the tokens after the prompt of one sequence, without gradient."""
        group = TrainedGroup(
            prompt_ids=tuple(token_ids[:num_prompt_tokens]),
            responses=(TrainedResponse(token_ids=tuple(token_ids[num_prompt_tokens:]), advantage=1.0),),
        )
        return float(self.response_nll(collate([group], share_prefixes=True)).mean_nll_R[0])

    @torch.no_grad()
    def self_check(self) -> None:
        """Compares the packed, shared-prompt forward with the model's own on a few tokens.

        Raises BadModel when they differ: the architecture does something that the packed forward leaves out.
        """
        ids = [
            (7 * index + 11) % min(self.model.config.get_text_config().vocab_size, 997) for index in range(24)
        ]
        prompt, answers = ids[:8], (ids[8:14], ids[14:17], ids[17:24])
        group = TrainedGroup(
            prompt_ids=tuple(prompt),
            responses=tuple(TrainedResponse(token_ids=tuple(a), advantage=1.0) for a in answers),
        )
        with self._exact():
            ours = self.response_nll(collate([group], share_prefixes=True)).mean_nll_R.tolist()
            with _attention(self.model, "eager"), unfused(self.model):
                theirs = [_reference_nll(self.model, prompt, answer) for answer in answers]
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        if not worst <= SELF_CHECK_TOLERANCE:
            raise BadModel(
                f"{type(self.model).__name__}: packed responses have another mean NLL than separate ones "
                f"(difference {worst:.2g}): its attention or head is not supported"
            )

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """No autocast for a while."""
        dtype, options, was_training = self.compute_dtype, self._head_options, self.model.training
        self.compute_dtype = self.parameter_dtype
        self._head_options = _head_options(
            self.model.config, chunk_rows=options.chunk_rows, compute_dtype=self.parameter_dtype
        )
        self.model.eval()
        try:
            yield
        finally:
            self.compute_dtype, self._head_options = dtype, options
            self.model.train(was_training)


def load_model(path: str | Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with ``dtype`` weights and packed attention; raises BadModel with one sentence."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.set_attn_implementation(PACKED_ATTENTION)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadModel(f"the model {path} cannot be loaded as a causal language model: {error}") from error
    model = model.to(device)  # type: ignore[arg-type]
    fuse(model)
    return model


def vocab_size(config: PretrainedConfig) -> int:
    """Rows of the embedding: ids at or above it are refused."""
    return int(config.get_text_config().vocab_size)


def end_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Every token at which its engines end a response."""
    given = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(
        each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int)
    )


def read_model_config(path: str | Path) -> PretrainedConfig:
    """The model's config; raises BadModel."""
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"the model {path} has no readable config: {error}") from error


def _head_options(config: PretrainedConfig, *, chunk_rows: int, compute_dtype: torch.dtype) -> HeadOptions:
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(
        getattr(text, "logits_scaling", None) or 1.0
    )
    return HeadOptions(
        logit_scale=scale,
        softcap=getattr(text, "final_logit_softcapping", None),
        chunk_rows=chunk_rows,
        compute_dtype=compute_dtype,
    )


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED_ATTENTION)


def _reference_nll(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([prompt + answer], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, len(prompt) :]))
