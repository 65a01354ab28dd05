"""One optimizer step on one segment: forward, objective, backward, guarded update."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from asympo.common.errors import StepTooLarge
from asympo.learner.model.batching import PackedBatch, TrainedGroup
from asympo.learner.model.flops import FlopCount, known_peak
from asympo.learner.model.policy import Policy
from asympo.learner.model.transfer import to_device
from asympo.learner.step.memory import is_out_of_memory, room_for_momenta
from asympo.learner.step.objectives import Objective, ObjectiveOptions, StepScope
from asympo.learner.step.optimizer import guarded_step
from asympo.learner.step.probe import ProbeText, choose_probes
from asympo.learner.step.published_values import PublishedValues

if TYPE_CHECKING:
    # Only its type: whoever trains on groups at hand (benchmarks) needs no client of the log.
    from asympo.learner.log.segment import LogSegment
    from asympo.learner.step.shards import Shards

log = logging.getLogger(__name__)

MIN_CHUNK_ROWS = 16
"""Fewer rows of logits at once would save nothing that matters."""
_NUM_PROBES = 2
"""Each is scored twice at every publish, and by every generator at every reload."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step did. NLLs in nats, under the policy before the step."""

    loss: float
    grad_norm: float
    """Before clipping; may be inf or nan, and then nothing was applied."""
    is_applied: bool
    learning_rate: float
    nll_positive: float | None
    """Mean over responses with a positive advantage; None without any."""
    nll_negative: float | None
    """Mean over responses with a negative advantage; None without any."""
    entropy: float
    """Mean over trained tokens."""
    num_trained_tokens: int
    """Response tokens that entered the loss."""
    num_computed_tokens: int
    """Tokens that went through the model, after sharing."""
    flops: int
    """Operations that its forward and backward passes need."""
    peak_flops: float | None
    """What all its devices could do in a second; None where that is unknown."""
    row_tokens: int
    """Most tokens that a row could have; less than was given once memory ran out."""
    is_slow_path: bool
    """Whether the model is computed in a slower way, since the fastest is wrong for it."""
    seconds: float
    optimizer_seconds: float
    """Of those, clipping and update."""
    probes: tuple[ProbeText, ...]
    """Sequences of this step that its update moves most."""


class RowLimits(Protocol):
    """Most tokens of a row and most logits at once; they decide how sums round, so they have one home."""

    def row_limits(self, step: int) -> tuple[int, int]:
        """Those of a step."""
        ...

    def rows_made_smaller(self, limits: tuple[int, int], *, step: int) -> None:
        """Memory ran out in this step, which is done again with these: returns once they are durable."""
        ...


class Stepper:
    """Owns how a step is computed; deterministic in policy, optimizer state and segment."""

    def __init__(
        self,
        *,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        options: ObjectiveOptions,
        learning_rate: Callable[[int], float],
        max_grad_norm: float,
        token_budget: int,
        share_prefixes: bool,
        shards: "Shards | None" = None,
        rows: RowLimits | None = None,
    ) -> None:
        self._policy = policy
        self._optimizer = optimizer
        self._objective = objective
        self._options = options
        self._learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._token_budget = token_budget
        self._share_prefixes = share_prefixes
        self._shards = shards
        self._rows = rows
        self._published_values = PublishedValues(policy)
        self._flops = FlopCount.of(policy.model)
        peak = known_peak(policy.device, policy.compute_dtype)
        self._peak_flops = peak and peak * (1 if shards is None else shards.num_ranks)

    def step(self, segment: "LogSegment", *, step: int) -> StepResult:
        """Trains on a segment with at least one group with signal; `step` counts from 1."""
        scope = StepScope(
            num_responses=segment.num_responses,
            num_groups=len(segment.groups),
            num_groups_without_signal=segment.num_without_signal,
        )
        groups = [(group.sequence, group.to_trained()) for group in segment.groups if group.has_signal]
        if self._shards is None:
            return self.train([group for _, group in groups], scope, step=step)
        held = self._shards.hand_out(
            groups,
            scope,
            step=step,
            share_prefixes=self._share_prefixes,
            digests={entry.sequence: entry.payload_digest for entry in segment.entries},
        )
        result = self.train(held, scope, step=step)
        self._shards.all_done()
        return result

    def train(self, groups: Sequence[TrainedGroup], scope: StepScope, *, step: int) -> StepResult:
        """The step itself, on the responses that enter the loss.

        Raises StepTooLarge. Nothing of it was applied then, unless the optimizer was what did not fit.
        """
        start = time.perf_counter()
        if self._rows is not None:
            self.row_limits = self._rows.row_limits(step)
        sums = self._gradients(groups, scope, step=step)
        learning_rate = self._learning_rate(step)
        backward_end = time.perf_counter()
        with room_for_momenta(self._optimizer):
            norm, is_applied = guarded_step(
                self._optimizer, learning_rate=learning_rate, max_norm=self._max_grad_norm
            )
        return StepResult(
            loss=sums.loss,
            grad_norm=norm,
            is_applied=is_applied,
            learning_rate=learning_rate,
            nll_positive=_mean(sums.positive),
            nll_negative=_mean(sums.negative),
            entropy=sums.entropy / sums.num_trained_tokens,
            num_trained_tokens=sums.num_trained_tokens,
            num_computed_tokens=sums.num_computed_tokens,
            flops=self._flops.step(
                num_tokens=sums.num_computed_tokens,
                num_head_rows=sums.num_head_rows,
                num_pairs=sums.num_pairs,
            ),
            peak_flops=self._peak_flops,
            row_tokens=self._token_budget,
            is_slow_path=self._policy.path.is_slow,
            seconds=(end := time.perf_counter()) - start,
            optimizer_seconds=end - backward_end,
            probes=choose_probes(sums.weighted_probes(), count=_NUM_PROBES),
        )

    @property
    def row_limits(self) -> tuple[int, int]:
        """Most tokens of a row and logits at once; less than was given once memory ran out."""
        return self._token_budget, self._policy.chunk_rows

    @row_limits.setter
    def row_limits(self, value: tuple[int, int]) -> None:
        self._token_budget, self._policy.chunk_rows = value

    def _gradients(self, groups: Sequence[TrainedGroup], scope: StepScope, *, step: int) -> "_Sums":
        """Of all rows; of smaller ones, from the start, when memory runs out."""
        batches = self._pack(groups)
        while True:
            try:
                with self._published_values.in_place():
                    return self._run(batches, scope)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Out here nothing holds what the failed row had allocated.
            self._optimizer.zero_grad(set_to_none=True)
            if self._policy.device.type == "cuda":
                torch.cuda.empty_cache()
            if self._shards is not None or (smaller := self._smaller(groups, batches)) is None:
                largest = max((batch.num_tokens for batch in batches), default=0)
                raise StepTooLarge(
                    f"a row of {largest} tokens does not fit into memory ({reason}): give a smaller "
                    "token_budget, gradient_checkpointing or more memory (beside a generator also "
                    "run.gpu_sharing = 'sleep'), or a smaller max_row_tokens, which sets groups with longer "
                    "rows aside"
                )
            batches = smaller
            if self._rows is not None:
                self._rows.rows_made_smaller(self.row_limits, step=step)
            log.warning(
                "Memory ran out: rows of up to %d tokens and %d logits at once from now on (%s)",
                *(*self.row_limits, reason),
            )

    def _pack(self, groups: Sequence[TrainedGroup]) -> list[PackedBatch]:
        return self._policy.pack(groups, token_budget=self._token_budget, share_prefixes=self._share_prefixes)

    def _smaller(
        self, groups: Sequence[TrainedGroup], batches: Sequence[PackedBatch]
    ) -> list[PackedBatch] | None:
        """The same in smaller rows, or smaller chunks where rows cannot shrink; None at the end of it."""
        largest = max(batch.num_tokens for batch in batches)
        budget = min(self._token_budget, largest)
        while budget > 1:
            budget //= 2
            packed = self._policy.pack(groups, token_budget=budget, share_prefixes=self._share_prefixes)
            if max(batch.num_tokens for batch in packed) < largest:
                self._token_budget = budget
                return packed
        if self._policy.chunk_rows < 2 * MIN_CHUNK_ROWS:
            return None
        self._policy.chunk_rows //= 2
        return list(batches)

    def _run(self, batches: list[PackedBatch], scope: StepScope) -> "_Sums":
        """Rows one after the other; nothing is read from the device before the last of them.

        On a GPU this thread thereby prepares and launches row k + 1 while the device computes row k. That is
        all the overlap there is inside a step, on purpose: reading, packing and planning take a thousandth of
        a step where CPUs compute, and a thread for them would only be one more way to train groups other than
        an undisturbed learner.
        """
        if self._shards is not None:
            batches = self._shards.level(batches)
        computed = []
        for index, batch in enumerate(batches):
            if self._shards is not None:
                self._shards.before_backward(is_last=index == len(batches) - 1)
            computed.append(self._backward(batch, scope))
        if self._shards is not None:
            self._shards.after_backward()
        sums = _Sums()
        for batch, row in zip(batches, computed, strict=True):
            if any(batch.advantage_R):  # others only keep step with other ranks
                sums.add(batch, row)
        if self._shards is not None:
            sums = _Sums.joined(self._shards.gather(sums.to_document()))
        return sums

    def _backward(self, batch: PackedBatch, scope: StepScope) -> "_Row":
        nll = self._policy.response_nll(batch)
        advantage_R = to_device(np.array(batch.advantage_R, dtype=np.float32), nll.mean_nll_R.device)
        loss, _ = self._objective(nll.mean_nll_R, advantage_R, scope, self._options)
        loss.backward()
        return _Row(loss=loss.detach(), entropy_sum=nll.entropy_sum, mean_nll_R=nll.mean_nll_R.detach())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Row:
    """What a row came to, still on its device."""

    loss: Tensor
    entropy_sum: Tensor
    mean_nll_R: Tensor


class _Sums:
    """Totals over the micro-batches of a step."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.entropy = 0.0
        self.num_trained_tokens = 0
        self.num_computed_tokens = 0
        self.num_head_rows = 0
        self.num_pairs = 0
        self.positive: list[float] = []
        self.negative: list[float] = []
        self.probes: list[tuple[float, Sequence[int], int]] = []
        """Weight, token ids, tokens of the prompt."""

    def add(self, batch: PackedBatch, row: _Row) -> None:
        """One row; waits for the device."""
        self.num_trained_tokens += batch.num_trained_tokens
        self.num_computed_tokens += batch.num_tokens
        self.num_head_rows += len(batch.source_U)
        self.num_pairs += batch.num_pairs
        self.loss += float(row.loss)
        self.entropy += float(row.entropy_sum)
        for mean, advantage, (prompt, response) in zip(
            row.mean_nll_R.tolist(), batch.advantage_R, batch.sequences_R, strict=True
        ):
            (self.positive if advantage > 0 else self.negative).append(mean)
            # A step changes log m in proportion to A, hence m to |A| * m.
            self.probes.append((abs(advantage) * mean, prompt + response, len(prompt)))

    def weighted_probes(self) -> list[tuple[float, ProbeText]]:
        """Every sequence with the weight of its change."""
        return [
            (weight, ProbeText(token_ids=tuple(token_ids), num_prompt_tokens=num_prompt))
            for weight, token_ids, num_prompt in self.probes
        ]

    def to_document(self) -> dict[str, Any]:
        """For other ranks; of the probes those that can be chosen."""
        chosen = choose_probes(self.weighted_probes(), count=_NUM_PROBES)
        probes = [
            item
            for item in self.probes
            if ProbeText(token_ids=tuple(item[1]), num_prompt_tokens=item[2]) in chosen
        ]
        return {**vars(self), "probes": probes}

    @classmethod
    def joined(cls, documents: Sequence[dict[str, Any]]) -> "_Sums":
        """Of all ranks together."""
        sums = cls()
        for document in documents:
            for name, value in document.items():
                setattr(sums, name, getattr(sums, name) + value)
        return sums


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
