"""Methods of every vLLM worker: load a policy, repair what vLLM leaves stale, read the weights back.

vLLM 0.32.0 on CPU multiplies by a packed copy of each weight that lives in a closure. A layer whose weight is
tied to another one receives nothing itself on reload, so its packed copy stays as it was: the logits keep
coming from the old policy while everything before them is new. Checksums of the parameters cannot see it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import psutil
import torch

from asympo.common.errors import CorruptCheckpoint, EngineBroken
from asympo.engines.base import Readback
from asympo.engines.vllm_blueprint import Blueprint, as_first_load
from asympo.engines.vllm_readback import Expectation, changes_between, file_tensors
from asympo.local.heap import return_free_pages

if TYPE_CHECKING:
    from torch import nn

if "vllm" in sys.modules:
    # It imports this module in each of its workers, before it chooses how to compute attention.
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import asympo.engines.vllm_small_blocks  # noqa: F401

TensorRow = tuple[str, str, Sequence[int], str]
"""Name, safetensors type name, shape and sha256: a manifest's tensor entry, flat for the serializer."""

_DTYPE_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
_PERTURBATION_RATIO = 0.5
_CLIENT_CHECK_SECONDS = 1.0
_LAYER_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class PolicyWorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`); every method runs on every worker."""

    vllm_config: Any
    model_runner: Any
    reload_weights: Any
    _blueprint: Blueprint | None = None
    _expectation: Future[Expectation]
    _loaded_path: Path | None = None

    def load_policy(self, path: str, tensors: Sequence[TensorRow] | None) -> int:
        """Replace all weights in place by the checkpoint directory `path`; returns the tensors handed over.

        With `tensors`, each tensor handed to the loader must match its row, and no row may be left over.
        Raises CorruptCheckpoint or EngineBroken part-way: the weights are then unusable.
        """
        handed = _Handed(tensors)
        self._load(path, handed.checked(self._checkpoint_tensors(path)))
        handed.require_complete(getattr(self.model_runner.get_model(), "is_unused_checkpoint_weight", None))
        return handed.num_tensors

    def load_perturbed(self, path: str, kind: str) -> None:
        """load_policy() with all tensors of one kind changed on the way, for the self-test."""
        self._load(path, _perturbed(self._checkpoint_tensors(path), kind))

    def _load(self, path: str, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        model = self.model_runner.get_model()
        ties = _ties(model)
        self._loaded_path = Path(path)
        loaded = self.replace_weights(model, weights)
        if loaded is not None and (missing := sorted(self._parameter_names() - loaded)):
            raise EngineBroken(
                f"{path} left {len(missing)} parameters of the model untouched, {missing[0]} first"
            )
        self.refresh_tied_layers(model, ties, loaded)

    def expect_policy(self, path: str, seed: int, num_columns: int | None, has_before: bool) -> None:
        """Begin to work out what the checkpoint directory `path` looks like inside this worker.

        In a thread, while responses go on. With `has_before`, places are drawn where it differs from the
        weights that are loaded now; without the files of those, nothing is proved.
        """
        if self._unprovable() is not None:
            return
        expectation = Expectation(self._built_blueprint(), seed=seed, num_columns=num_columns)
        before = (self._loaded_path or Path(self.vllm_config.model_config.model)) if has_before else None
        pool = ThreadPoolExecutor(1, thread_name_prefix="expect-policy")
        self._expectation = pool.submit(_worked_out, expectation, Path(path), before, self._dtype())
        pool.shutdown(wait=False)

    def is_policy_expected(self) -> bool:
        """Whether expect_policy() has come to its end."""
        return self._unprovable() is not None or self._expectation.done()

    def read_policy_back(self) -> dict[str, Any]:
        """Compare the engine's layers with the checkpoint that was expected: a Readback, flat."""
        reason = self._unprovable()
        if reason is None and (error := self._expectation.exception()) is not None:
            reason = f"what the policy looks like in the engine could not be worked out: {error!r}"
        if reason is not None:
            return asdict(Readback(num_values=0, num_changed=None, uncovered=(reason,)))
        return asdict(self._expectation.result().compare(self.model_runner.get_model()))

    def exit_with(self, process_id: int) -> None:
        """End this process soon after `process_id`, which started it, is gone.

        vLLM's engine process does not notice that its client was killed, and would keep its memory and the
        model for ever.
        """
        Thread(target=_exit_after, args=(process_id,), name="exit-with-client", daemon=True).start()

    def list_tensor_kinds(self) -> list[str]:
        """Kinds of tensors in the loaded checkpoint: their names with the layer index taken out."""
        path = self.vllm_config.model_config.model
        return sorted({_kind(name) for name, _ in self._checkpoint_tensors(path)})

    def refresh_tied_layers(
        self, model: nn.Module, ties: Sequence[Sequence[str]], loaded: set[str] | None
    ) -> None:
        """Point every tied layer at the weight that was loaded, and pack it again."""
        for names in ties:
            source = next((name for name in names if loaded is None or name in loaded), names[0])
            weight = model.get_parameter(source)
            for name in names:
                if name == source:
                    continue
                module, attribute = _owner(model, name)
                setattr(module, attribute, weight)
                method = getattr(module, "quant_method", None)
                if method is not None:
                    method.process_weights_after_loading(module)

    def _checkpoint_tensors(self, path: str) -> Iterator[tuple[str, torch.Tensor]]:
        from vllm.model_executor.model_loader import get_model_loader

        config = self.vllm_config.model_config
        config.model, config.model_weights, config.revision = path, "", None
        loader: Any = get_model_loader(self.vllm_config.load_config)
        return loader.get_all_weights(config, self.model_runner.get_model())

    def replace_weights(
        self, model: nn.Module, weights: Iterator[tuple[str, torch.Tensor]]
    ) -> set[str] | None:
        """vLLM's own reload; returns what load_weights reports, which vLLM only compares to log a warning."""
        reported: list[set[str] | None] = []
        load_weights: Any = model.load_weights

        def recording(*args: Any, **kwargs: Any) -> set[str] | None:
            reported.append(load_weights(*args, **kwargs))
            return reported[-1]

        object.__setattr__(model, "load_weights", recording)
        try:
            with as_first_load(model):
                self.reload_weights(weights_iterator=weights)
        finally:
            object.__delattr__(model, "load_weights")
        return reported[0] if reported else None

    def _parameter_names(self) -> set[str]:
        """Parameters that a checkpoint must fill; vLLM derives others from them."""
        return set() if self._unprovable() else self._built_blueprint().parameter_names

    def _built_blueprint(self) -> Blueprint:
        if self._blueprint is None:
            self._blueprint = Blueprint(self.vllm_config)
        return self._blueprint

    def _unprovable(self) -> str | None:
        """Why no layer of this engine shows a file's own values; None when they do."""
        quantization = self.vllm_config.model_config.quantization
        if quantization is not None:
            return f"weights quantised by {quantization}, which do not keep the file's values"
        return None if self.vllm_config.lora_config is None else "layers wrapped for adapters"

    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vllm_config.model_config.dtype
        return dtype


class _Handed:
    """What the loader was given, against what the manifest lists."""

    def __init__(self, tensors: Sequence[TensorRow] | None) -> None:
        self._rows = None if tensors is None else {row[0]: row for row in tensors}
        self._left = set(self._rows or ())
        self.num_tensors = 0

    def checked(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.num_tensors += 1
            if self._rows is not None:
                self._check(name, tensor, self._rows)
            yield name, tensor

    def require_complete(self, is_unused: Any) -> None:
        left = sorted(name for name in self._left if is_unused is None or not is_unused(name))
        if left:
            raise CorruptCheckpoint(
                f"{len(left)} tensors of the manifest never reached the engine, {left[0]} first"
            )

    def _check(self, name: str, tensor: torch.Tensor, rows: dict[str, TensorRow]) -> None:
        if name not in rows:
            raise CorruptCheckpoint(f"the engine was handed {name}, which the manifest does not list")
        if name not in self._left:
            raise CorruptCheckpoint(f"the engine was handed {name} twice")
        _, dtype, shape, digest = rows[name]
        given = (_DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        if given != (dtype, tuple(shape)):
            raise CorruptCheckpoint(
                f"the engine was handed {name} as {given[0]} {list(given[1])}; "
                f"the manifest says {dtype} {list(shape)}"
            )
        if tensor_digest(tensor) != digest:
            raise CorruptCheckpoint(f"the engine was handed other values for {name} than the manifest has")
        self._left.discard(name)


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of the tensor's bytes in row-major order, as in a safetensors file; hexadecimal."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _exit_after(process_id: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        client = psutil.Process(process_id)
        while client.is_running() and client.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_CLIENT_CHECK_SECONDS)
    os._exit(1)


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same object, as [[first, second, ...], ...]."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _owner(model: nn.Module, name: str) -> tuple[Any, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _worked_out(expectation: Expectation, path: Path, before: Path | None, dtype: torch.dtype) -> Expectation:
    # The thread began on the cores of the engine, where it would stand in the way of the responses.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    if before is not None:
        if any(before.glob("*.safetensors")):
            expectation.note_changes(changes_between(path, before, dtype=dtype))
        else:
            expectation.note_unknown(
                f"what changed: {before}, which was served before, has no weights any more"
            )
    expectation.note_values(file_tensors(path))
    # What was compared lay in temporaries as large as whole layers, which this thread's heap would keep.
    return_free_pages()
    return expectation


def _kind(name: str) -> str:
    return _LAYER_INDEX.sub("*", name)


def _perturbed(weights: Iterator[tuple[str, torch.Tensor]], kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights:
        if _kind(name) != kind:
            yield name, tensor
            continue
        values = tensor.float().cpu()
        scale = float(values.square().mean().sqrt()) or 0.05
        noise = torch.randn(values.shape, generator=generator)
        yield name, (values + _PERTURBATION_RATIO * scale * noise).to(tensor)
