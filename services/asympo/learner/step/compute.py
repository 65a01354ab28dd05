"""Choices that change arithmetic: made once, measured where they must be, kept in the training state."""

import logging
import random
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from asympo.common.errors import BadSetting
from asympo.learner.step.device import choose_device

log = logging.getLogger(__name__)

Sharing = Literal["auto", "always", "never"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ROWS, _INNER, _COLUMNS = 128, 512, 1024
"""Of the matrices that decide between precisions: small, since bf16 without hardware is 50 times slower."""


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
    """Likewise."""
    attention: str = "blocks"
    """How a row attends: ``blocks`` or ``flex``."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.compute_dtype]

    def to_decisions(self) -> dict[str, Any]:
        """As the training state keeps it."""
        return asdict(self)


def set_up_torch(*, seed: int, num_threads: int | None) -> None:
    """Deterministic algorithms, fixed threads, seeds."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN is for finding bugs and costs a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    torch.manual_seed(seed)


def choose_compute(
    *,
    device: str,
    compute_dtype: str,
    share_prefixes: Sharing,
    attention: str,
    decided: dict[str, Any],
    num_ranks: int = 1,
) -> Compute:
    """Settings first, then what the training state decided before, then a measurement; raises BadSetting."""
    chosen_device = choose_device(device)
    is_same_device = decided.get("device") == chosen_device
    if compute_dtype == "auto":
        known = decided.get("compute_dtype") if is_same_device else None
        compute_dtype = known or _faster_dtype(torch.device(chosen_device))
    if attention == "auto":
        # States that do not say are of a time when there was one way.
        known = decided.get("attention", "blocks") if is_same_device else None
        attention = known or _faster_attention(chosen_device, compute_dtype)
    if attention == "flex" and chosen_device == "cpu":
        raise BadSetting("attention is flex: it has no gradients on CPUs; give blocks, auto or device = cuda")
    if share_prefixes == "auto":
        known = decided.get("share_prefixes") if is_same_device else None
        is_shared = (
            _does_sharing_pay(chosen_device, compute_dtype, attention) if known is None else bool(known)
        )
    else:
        is_shared = share_prefixes == "always"
    compute = Compute(
        device=chosen_device,
        compute_dtype=compute_dtype,
        num_threads=torch.get_num_threads(),
        num_ranks=num_ranks,
        share_prefixes=is_shared,
        attention=attention,
    )
    for name, value in compute.to_decisions().items():
        if name in decided and decided[name] != value:
            log.warning(
                "The run was trained with %s %s so far and goes on with %s: same groups, same order, "
                "but no longer bit for bit what an undisturbed run gives",
                *(name, decided[name], value),
            )
    return compute


def _faster_attention(device: str, compute_dtype: str) -> str:
    if device == "cpu":
        return "blocks"
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
    # Policy and its libraries are not needed for anything else here.
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
    seconds = {name: _product_seconds(dtype) for name, dtype in _DTYPES.items()}
    chosen = min(seconds, key=lambda name: seconds[name])
    log.info(
        "Matrix products take %.2f ms in float32 and %.2f ms in bfloat16 here: training with %s",
        *(1e3 * seconds["float32"], 1e3 * seconds["bfloat16"], chosen),
    )
    return chosen


def _product_seconds(dtype: torch.dtype) -> float:
    """Best of a few: forward and both backward products of one linear layer."""
    x, w = torch.ones(_ROWS, _INNER, dtype=dtype), torch.ones(_COLUMNS, _INNER, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        y = x @ w.T
        _ = y @ w
        _ = y.T @ x
        best = min(best, time.perf_counter() - start)
    return best
