"""Choices that change arithmetic: made once in a run, measured where they must be, and then kept."""

import logging
import os
import platform
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import torch

from asympo.common.checkpoints.digests import available_cores
from asympo.common.errors import BadSetting
from asympo.learner.device import choose_device

log = logging.getLogger(__name__)

Sharing = Literal["auto", "always", "never"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_INSTRUCTIONS = re.compile(r"bf16|fp16|amx|sve")
"""Instructions that processors of one capability may or may not have, and that matrix products use."""
_SWITCHES = {
    "cpu": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"),
    "cuda": ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
}
"""Environment variables that make a library take other kernels."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the arithmetic is done; the same for every step of a run unless settings say otherwise."""

    device: str
    """torch device type."""
    compute_dtype: str
    """Precision of matrix products."""
    num_threads: int
    """CPU threads; another number may round sums differently."""
    share_prefixes: bool
    """Whether what responses have in common is computed once."""
    num_ranks: int = 1
    """Processes that share the work; another number sums in another order."""
    attention: str = "blocks"
    """How a row attends: `blocks` or `flex`."""
    processor: str = ""
    """What `processor_class` said; empty where nobody wrote it down."""
    path: dict[str, Any] | None = None
    """Fields of the ForwardPath that was found to be right for the model; None where nobody wrote it down."""
    transformers: str = ""
    """Version whose models that was tried with; empty where nobody wrote it down."""

    @classmethod
    def of(cls, decided: Mapping[str, Any]) -> Self:
        """From what was kept; TypeError where something is missing."""
        return cls(**{item.name: decided[item.name] for item in fields(cls) if item.name in decided})

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.compute_dtype]

    def to_decisions(self) -> dict[str, Any]:
        """As JSON values, to be kept."""
        return asdict(self)


def set_up_torch(*, seed: int, num_threads: int | None = None) -> None:
    """Deterministic algorithms, seeds, and threads where they are known already."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN is for finding bugs and costs a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    torch.manual_seed(seed)


def processor_class(device: str) -> str:
    """What must be the same for the same bits: another class of processor has other kernels."""
    switches = [f"{name}={os.environ[name]}" for name in _SWITCHES[device] if os.environ.get(name)]
    if device == "cuda":
        return " ".join((torch.cuda.get_device_name(), *switches))
    # Libraries choose by maker as well as by instructions.
    known = torch.cpu.get_capabilities()
    instructions = sorted(name for name, has in known.items() if has is True and _INSTRUCTIONS.search(name))
    maker = str(known.get("cpu_name", "")).partition(" ")[0]
    capability = torch.backends.cpu.get_cpu_capability()
    return " ".join(filter(None, (platform.machine(), maker, capability, *instructions, *switches)))


def choose_compute(
    *,
    device: str,
    compute_dtype: str,
    share_prefixes: Sharing,
    attention: str,
    decided: Mapping[str, Any],
    num_threads: int | None = None,
    num_ranks: int = 1,
    decide_anew: bool = False,
) -> Compute:
    """Settings first, then what the run has decided before, then a measurement; sets torch's threads.

    Raises BadSetting for a choice that is not possible, and where `decided` is of another class of device
    than this one and `decide_anew` does not allow that.
    """
    device = choose_device(device)
    processor = processor_class(device)
    known = decided if _is_fit(decided, device, processor, decide_anew=decide_anew) else {}
    threads = num_threads or known.get("num_threads") or min(torch.get_num_threads(), available_cores())
    # Set even where it is the same: from then on no library takes fewer because the machine is busy.
    torch.set_num_threads(threads)
    if compute_dtype == "auto":
        compute_dtype = known.get("compute_dtype") or _faster_dtype(torch.device(device))
    if attention == "auto":
        # Decisions without this field were made when blocks were the only way.
        attention = known.get("attention", "blocks") if known else _faster_attention(device, compute_dtype)
    if attention == "flex" and device == "cpu":
        raise BadSetting("attention is flex: it has no gradients on CPUs; give blocks, auto or device = cuda")
    if share_prefixes == "auto":
        is_known = "share_prefixes" in known
        is_shared = (
            known["share_prefixes"] if is_known else _does_sharing_pay(device, compute_dtype, attention)
        )
    else:
        is_shared = share_prefixes == "always"
    compute = Compute(
        device=device,
        compute_dtype=compute_dtype,
        num_threads=threads,
        num_ranks=num_ranks,
        share_prefixes=is_shared,
        attention=attention,
        processor=processor,
        path=known.get("path"),
        transformers=known.get("transformers", ""),
    )
    for name, value in compute.to_decisions().items():
        if name in decided and decided[name] not in (value, "", None):
            log.warning(
                "The run was trained with %s %s so far and goes on with %s: same groups, same order, "
                "but no longer bit for bit what an undisturbed run gives",
                *(name, decided[name], value),
            )
    return compute


def _is_fit(decided: Mapping[str, Any], device: str, processor: str, *, decide_anew: bool) -> bool:
    """Whether what was decided holds here; if not, raises BadSetting unless `decide_anew` is set."""
    was = (decided.get("device", device), decided.get("processor") or processor)
    if was == (device, processor):
        return True
    if not decide_anew:
        raise BadSetting(
            f"the run was trained on {was[0]} ({was[1]}) so far and this is {device} ({processor}), which "
            "rounds differently: continue on a machine of the same class, or give --decide-anew to "
            "choose what "
            "is fastest here for the next steps"
        )
    return False


def _faster_attention(device: str, compute_dtype: str) -> str:
    if device == "cpu":
        return "blocks"
    # Here and below: the policy and its libraries are not needed where nothing is measured.
    from asympo.learner.step.trial import attention_seconds

    try:
        blocks, flex = attention_seconds(torch.device(device), _DTYPES[compute_dtype])
    except RuntimeError as error:
        # A compiler or a kernel that this machine lacks is a reason to do without, not to end.
        log.warning("FlexAttention cannot be used here, training without it: %s", error)
        return "blocks"
    chosen = "flex" if flex < blocks else "blocks"
    log.info(
        "Long responses take %.0f ms with attention in blocks and %.0f ms with FlexAttention: %s",
        *(1e3 * blocks, 1e3 * flex, chosen),
    )
    return chosen


def _does_sharing_pay(device: str, compute_dtype: str, attention: str) -> bool:
    from asympo.learner.step.trial import sharing_seconds

    shared, separate = sharing_seconds(torch.device(device), _DTYPES[compute_dtype], attention=attention)
    log.info(
        "A group of long responses takes %.0f ms with its prompt computed once and %.0f ms without: %s",
        *(1e3 * shared, 1e3 * separate, "computed once" if shared <= separate else "not shared"),
    )
    return shared <= separate


def _faster_dtype(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    from asympo.learner.step.trial import product_seconds

    seconds = {name: product_seconds(dtype) for name, dtype in _DTYPES.items()}
    chosen = min(seconds, key=lambda name: seconds[name])
    log.info(
        "Matrix products take %.2f ms in float32 and %.2f ms in bfloat16 here: training with %s",
        *(1e3 * seconds["float32"], 1e3 * seconds["bfloat16"], chosen),
    )
    return chosen
