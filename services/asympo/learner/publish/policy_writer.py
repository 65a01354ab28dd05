"""Makes the policy visible: bf16 weights, config, tokenizer and a probe of what the model says with them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asympo.common.checkpoints import PolicyRef, PolicyStore, Probe, ProbeSequence
from asympo.common.errors import AsympoError, BadModel, CorruptCheckpoint
from asympo.learner.model.policy import Policy, vocab_size
from asympo.learner.model.weights import PUBLISHED_DTYPE, Weights, named_weights
from asympo.learner.publish.policy_files import (
    files_beside_weights,
    read_weights,
    write_weights,
)
from asympo.learner.step.probe import ProbeText, fixed_probes, mean_nlls

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPolicy:
    """What is written beside the weights, which the publisher holds."""

    step: int
    fence: int
    probe: Probe


class PolicyWriter:
    """Holds the weights as published last (the shadow): what is written while training goes on."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        shadow: Policy,
        tokenizer: Any,
        tolerance: float,
        keep: int,
    ) -> None:
        self._store = store
        self._shadow = shadow
        self._files = files_beside_weights(shadow.model, tokenizer)
        self._tolerance = tolerance
        self._keep = keep
        self._fixed = fixed_probes(tokenizer, vocab_size=vocab_size(shadow.model.config))
        self._parent: str | None = None
        """Digest of the policy whose weights the shadow holds."""
        self._last: str | None = None
        """Digest of the policy published last."""
        self._base: PolicyRef | None = None
        """The policy that what is written is added to, where that is an adapter."""

    def adopt_newest(self) -> PolicyRef | None:
        """Takes the newest valid policy on storage as the one published last; None when none can be read."""
        try:
            ref = self._store.newest(with_digests=True)
        except OSError as error:
            log.warning("The policy is published anew, as the newest one cannot be read: %s", error)
            return None
        if ref is None:
            return None
        try:
            self._load(ref)
        except (OSError, ValueError, KeyError, RuntimeError, BadModel, CorruptCheckpoint) as error:
            log.warning("The newest policy %s cannot be compared with: %s", ref.name, error)
            return None
        self._parent = self._last = ref.digest
        return ref

    @torch.no_grad()
    def is_published(self, weights: Weights) -> bool:
        """Whether the shadow already equals these weights, rounded, value for value."""
        if self._parent is None:
            return False
        # First all, then the verdict: every tensor must be taken.
        is_equal = [torch.equal(ours, theirs.to(ours.dtype)) for ours, theirs in self._pairs(weights)]
        return all(is_equal)

    def prepare(
        self, weights: Weights, *, step: int, fence: int, probes: Sequence[ProbeText] = ()
    ) -> PreparedPolicy:
        """Takes over the weights of `step`, rounded, and scores the probe; they may change afterwards.

        Only when no `write` is running.
        """
        # From here the shadow holds weights that are not published yet.
        self._parent = None
        self._refresh(weights)
        self._require_finite(step)
        texts = (self._fixed[0], *probes) if probes else self._fixed
        return PreparedPolicy(step=step, fence=fence, probe=self._probe(self._shadow, texts))

    def write(self, prepared: PreparedPolicy) -> PolicyRef:
        """Makes it visible; in any thread, and no arithmetic that would take cores from training.

        Raises PublishFailed when storage fails, and then later weights may be prepared and written; Fenced
        when another learner has published.
        """
        ref = self._store.publish(
            step=prepared.step,
            fence=prepared.fence,
            fill=self._fill,
            probe=prepared.probe,
            parent=self._last,
            base=self._base,
        )
        self._parent = self._last = ref.digest
        return ref

    @property
    def num_bytes(self) -> int:
        """What the policy that was written last takes where it is shared."""
        return self._store.published_bytes

    def prune(self, *, is_in_use: Callable[[PolicyRef], bool]) -> None:
        """Deletes old policies; what cannot be deleted is tried again next time."""
        self._store.prune(keep=self._keep, is_in_use=is_in_use)

    def _probe(self, policy: Policy, texts: Sequence[ProbeText]) -> Probe:
        return Probe(
            sequences=tuple(
                ProbeSequence(
                    token_ids=text.token_ids,
                    num_prompt_tokens=text.num_prompt_tokens,
                    mean_nll=mean_nll,
                )
                for text, mean_nll in zip(texts, mean_nlls(policy, texts), strict=True)
            ),
            tolerance=self._tolerance,
        )

    def _fill(self, directory: Path) -> None:
        write_weights(self._shadow.model, directory)
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    @torch.no_grad()
    def _refresh(self, weights: Weights) -> None:
        for ours, theirs in self._pairs(weights):
            ours.copy_(theirs)

    def _require_finite(self, step: int) -> None:
        for name, parameter in self._shadow.model.named_parameters():
            # A sum is ten times as quick, and never finite where one of its values is not.
            if not torch.isfinite(parameter.sum()) and not torch.isfinite(parameter).all():
                raise AsympoError(f"step {step} is not published: {name} holds values that are not finite")

    def _pairs(self, weights: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ours = Weights(model=self._shadow.model, ranks=None).values(dtype=PUBLISHED_DTYPE)
        return zip(ours, weights.values(dtype=PUBLISHED_DTYPE), strict=True)

    @torch.no_grad()
    def _load(self, ref: PolicyRef) -> None:
        stored = read_weights(self._shadow.model, ref.path)
        for name, ours in named_weights(self._shadow.model).items():
            ours.copy_(stored[name])
