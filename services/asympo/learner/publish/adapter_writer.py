"""Makes an adapter visible: bf16 pairs of matrices, and once the base that they are added to."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.digests import tensor_spans, weight_files
from asympo.common.errors import AsympoError, BadModel, CorruptCheckpoint
from asympo.learner.model.lora import adapts, base_digest, quantised_values
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import PUBLISHED_DTYPE, Weights, named_weights
from asympo.learner.publish.adapter_files import read_adapter, what_does_not_fit, write_adapter
from asympo.learner.publish.policy_files import files_beside_weights, write_weights
from asympo.learner.publish.policy_writer import PolicyWriter, PreparedPolicy

log = logging.getLogger(__name__)


class AdapterWriter(PolicyWriter):
    """Holds the adapter as published last. The base is published whole, before the first adapter for it."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        policy: Policy,
        is_copy: bool = False,
        model: str,
        tokenizer: Any,
        tolerance: float,
        keep: int,
    ) -> None:
        """`policy`: the one that is trained, or where that is sharded a copy, whole and adapted alike."""
        super().__init__(store=store, shadow=policy, tokenizer=tokenizer, tolerance=tolerance, keep=keep)
        self._is_copy = is_copy
        self._model = model
        self._tokenizer = tokenizer
        self._held: dict[str, Tensor] = {}

    def write(self, prepared: PreparedPolicy) -> PolicyRef:
        """Of a policy that adds nothing the base itself, where that is not published yet."""
        if self._base is None:
            is_base = not any(value.any() for name, value in self._held.items() if adapts(name))
            base = self._publish_base(step=prepared.step if is_base else 0, fence=prepared.fence)
            self._base, self._last = base, base.digest
            if is_base:
                self._parent = base.digest
                return base
        return super().write(prepared)

    @torch.no_grad()
    def is_published(self, weights: Weights) -> bool:
        values = self._rounded(weights)
        return self._parent is not None and all(
            torch.equal(held, values[name]) for name, held in self._held.items()
        )

    def _publish_base(self, *, step: int, fence: int) -> PolicyRef:
        model = load_model(self._model, dtype=PUBLISHED_DTYPE, device=torch.device("cpu")).eval()
        for name, values in quantised_values(self._shadow.model):
            model.get_parameter(name).data.copy_(values)
        policy = Policy(model=model, compute_dtype=self._shadow.compute_dtype, path=self._shadow.path)

        def fill(directory: Path) -> None:
            write_weights(model, directory)
            for name, content in files_beside_weights(model, self._tokenizer).items():
                (directory / name).write_bytes(content)
            written = [tensor for file in weight_files(directory) for tensor in tensor_spans(file)]
            if odd := what_does_not_fit(self._shadow.model, written):
                raise BadModel(
                    f"the files of {type(model).__name__} do not hold {odd} as it is: an adapter for it "
                    "could not be merged; leave it out of lora.targets"
                )

        log.info("Publishing the base of all adapters as the policy of step %d", step)
        probe = self._probe(policy, self._fixed)
        return self._store.publish(step=step, fence=fence, fill=fill, probe=probe, parent=self._last)

    def _load(self, ref: PolicyRef) -> None:
        """Raises CorruptCheckpoint unless it is the base that is trained here, or an adapter for that."""
        held = self._store.load_manifest(ref).base
        digest = (held or ref).digest
        base = next((each for each in self._store.list() if each.digest == digest), None)
        if base is None:
            raise CorruptCheckpoint("its base is no longer whole")
        model = load_model(base.path, dtype=PUBLISHED_DTYPE, device=torch.device("cpu"))
        if not torch.equal(base_digest(model), base_digest(self._shadow.model)):
            raise CorruptCheckpoint(f"{base.path} holds other weights than the model of this run")
        if odd := what_does_not_fit(self._shadow.model, self._store.load_manifest(base).tensors):
            raise CorruptCheckpoint(f"{base.path} does not hold {odd} as an adapter for it needs it")
        self._base = base
        self._held = read_adapter(self._store.path / ref.name, self._shadow.model)

    @torch.no_grad()
    def _refresh(self, weights: Weights) -> None:
        self._held = self._rounded(weights)
        if self._is_copy:
            for name, ours in named_weights(self._shadow.model).items():
                ours.copy_(self._held[name])

    def _require_finite(self, step: int) -> None:
        for name, value in self._held.items():
            if not torch.isfinite(value).all():
                raise AsympoError(f"step {step} is not published: {name} holds values that are not finite")

    def _fill(self, directory: Path) -> None:
        write_adapter(directory, self._held, model=self._shadow.model, base=self._model)

    def _rounded(self, weights: Weights) -> dict[str, Tensor]:
        values = zip(named_weights(self._shadow.model), weights.values(dtype=PUBLISHED_DTYPE), strict=True)
        return {name: value.to("cpu", PUBLISHED_DTYPE, copy=True).contiguous() for name, value in values}
