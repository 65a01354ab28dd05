"""From the host to where the policy is computed, without waiting for what the device still does."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; on a CPU without a copy.

    A GPU copies from pinned memory when it comes to it. An ordinary copy would wait for all work before it,
    and the next row could not be prepared while this one is computed.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
