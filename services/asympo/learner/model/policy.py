"""The policy being trained: a Hugging Face causal LM, fp32 weights, lower precision inside autocast."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadModel
from asympo.common.foreign.text import reason_of
from asympo.learner.model.attention import plan_layout
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, pack
from asympo.learner.model.forward_path import FAST, ForwardPath
from asympo.learner.model.nll import HeadOptions, chunk_bounds, token_nll
from asympo.learner.model.transfer import to_device
from asympo.learner.model.tree_mask import TreeMask

log = logging.getLogger(__name__)


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
        path: ForwardPath = FAST,
    ) -> None:
        """Makes `model` compute the way that `path` says; raises BadModel where it cannot."""
        path.apply(model)
        self.model = model
        self.path = path
        self._plan = TreeMask if path.attention == "flex" else plan_layout
        self.compute_dtype = compute_dtype
        self._head_options = _head_options(model.config, chunk_rows=chunk_rows, compute_dtype=compute_dtype)
        head = model.get_output_embeddings()
        self._backbone = _backbone(model)
        if not path.is_own and (not isinstance(head, torch.nn.Linear) or self._backbone is model):
            raise BadModel(f"{type(model).__name__} has no linear LM head")
        self._head = head
        self._row: Callable[[PackedBatch], tuple[Tensor, Tensor]] | None = None
        self._dynamic_positions: list[Any] = [
            m for m in model.modules() if getattr(m, "rope_type", None) == "dynamic"
        ]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def chunk_rows(self) -> int:
        """Rows of logits that exist at once."""
        return self._head_options.chunk_rows

    @chunk_rows.setter
    def chunk_rows(self, value: int) -> None:
        self._head_options = replace(self._head_options, chunk_rows=value)

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Of what is trained."""
        trained = (each for each in self.model.parameters() if each.requires_grad)
        return next(trained, next(self.model.parameters())).dtype

    def pack(
        self, groups: Sequence[TrainedGroup], *, token_budget: int, share_prefixes: bool
    ) -> list[PackedBatch]:
        """Rows as this policy computes them."""
        return pack(
            groups,
            token_budget=token_budget,
            share_prefixes=share_prefixes,
            alone_above=self.path.alone_above,
        )

    def response_nll(self, batch: PackedBatch) -> ResponseNll:
        """Mean NLL of every response of the row, in float32 or better, from one forward pass."""
        if self._row is None:
            return self.compute_nll(batch)
        mean_nll_R, entropy_sum = self._row(batch)
        return ResponseNll(mean_nll_R=mean_nll_R, entropy_sum=entropy_sum)

    def compute_through(self, row: Callable[[PackedBatch], tuple[Tensor, Tensor]]) -> None:
        """From now on rows go through `row`, which makes sharded weights whole around `compute_nll`."""
        self._row = row

    def compute_nll(self, batch: PackedBatch) -> ResponseNll:
        """`response_nll` where all weights are here."""
        for module in self._dynamic_positions:
            # They keep what the longest row so far made of them; here no row depends on those before it.
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
        if self.path.is_own:
            return self._own_nll(batch)
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

    def _own_nll(self, batch: PackedBatch) -> ResponseNll:
        """The model's own logits of one sequence."""
        if batch.num_sequences != 1:
            raise ValueError(
                f"{batch.num_sequences} sequences in a row: this model computes one sequence at a time"
            )
        device = self.device
        with self._autocast():
            logits_TV = self.model(
                input_ids=to_device(batch.token_ids_T, device)[None], use_cache=False
            ).logits[0]
        logits_UV = logits_TV[to_device(batch.source_U, device)]
        log_share_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32)).log_softmax(-1)
        row_N = to_device(batch.row_N, device)
        nll_N = -log_share_UV[row_N, to_device(batch.target_N, device)]
        shown_UV = log_share_UV.detach()
        entropy_U = -torch.linalg.vecdot(shown_UV.exp(), shown_UV)
        return ResponseNll(mean_nll_R=nll_N.mean()[None], entropy_sum=entropy_U[row_N].sum())

    def _hidden_states(self, batch: PackedBatch) -> Tensor:
        device = self.device
        token_ids = to_device(batch.token_ids_T, device)[None]
        with self._autocast():
            output = self._backbone(
                input_ids=token_ids,
                # Given, so that no tree is taken for several sequences by its positions.
                attention_mask=torch.ones_like(token_ids),
                position_ids=to_device(batch.position_ids_T, device)[None],
                use_cache=False,
                packed_layout=self._plan(batch, device=device),
            )
        hidden_TD: Tensor = output.last_hidden_state[0]
        return hidden_TD

    def _autocast(self) -> torch.autocast:
        is_mixed = self.compute_dtype.itemsize < self.parameter_dtype.itemsize
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=is_mixed)

    @torch.no_grad()
    def mean_nlls(self, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        """Mean NLL of each response after its prompt, without gradient."""
        groups = [
            TrainedGroup(prompt_ids=prompt, responses=(TrainedResponse(token_ids=response, advantage=1.0),))
            for prompt, response in dict.fromkeys(sequences)
        ]
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        num_tokens = sum(len(prompt) + len(response) for prompt, response in sequences)
        for batch in self.pack(groups, token_budget=num_tokens, share_prefixes=True):
            means = self.response_nll(batch).mean_nll_R.tolist()
            found |= zip(batch.sequences_R, means, strict=True)
        return [found[sequence] for sequence in sequences]

    @contextmanager
    def exact(self) -> Iterator[None]:
        """No autocast for a while."""
        dtype, options = self.compute_dtype, self._head_options
        self.compute_dtype = self.parameter_dtype
        self._head_options = replace(options, compute_dtype=self.parameter_dtype)
        try:
            yield
        finally:
            self.compute_dtype, self._head_options = dtype, options


def _backbone(model: PreTrainedModel) -> torch.nn.Module:
    """Everything below the head; the model itself if it has no such part."""
    parts = (model.base_model, getattr(model, "model", None))
    return next((part for part in parts if isinstance(part, torch.nn.Module) and part is not model), model)


def load_model(path: str | Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with `dtype` weights, as it is; raises BadModel with one sentence."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except Exception as error:
        # A damaged file or config raises whatever the library that meets it has for that.
        said = f"the model {path} cannot be loaded as a causal language model: {reason_of(error)}"
        raise BadModel(said) from error
    model: PreTrainedModel
    model, report = loaded
    if missing := report["missing_keys"]:
        raise BadModel(f"the model {path} lacks {min(missing)}: it would be trained from random values")
    # What transformers has dequantised no longer says so.
    if getattr(model.config, "quantization_config", None) is not None:
        raise BadModel(f"the model {path} is quantised: give the one that it was made from")
    try:
        return model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        size = sum(each.numel() * each.element_size() for each in model.parameters()) / (1 << 30)
        raise BadModel(
            f"the model {path}, which takes {size:.1f} GiB, does not fit into the memory of {device}: give "
            "it a larger one, or one that nothing else uses"
        ) from error


def vocab_size(config: PretrainedConfig) -> int:
    """Rows of the embedding: ids at or above it are refused."""
    return int(config.get_text_config().vocab_size)


def end_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Every token at which its engines end a response."""
    given = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(
        each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int)
    )


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
