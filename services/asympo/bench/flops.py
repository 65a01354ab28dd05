"""How many operations the device can do."""

import time

import torch

from asympo.learner.device import wait_for

_SIDE = {"cpu": 2048, "cuda": 8192}


def matmul_peak_flops(device: torch.device, dtype: torch.dtype, *, repeats: int = 5) -> float:
    """FLOP/s of a large square matrix product, the best of a few: the peak that a step is held against."""
    side = _SIDE.get(device.type, 4096)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
