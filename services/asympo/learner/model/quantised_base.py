"""Linears of a base that is not trained, in 4 or 8 bits a value, through bitsandbytes.

What is computed with is what the bits say, rounded to bfloat16. The base is published so, and an adapter is
trained at the weights that generators serve. Values that were rounded once stay when they are rounded again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from asympo.learner.model.hidden_package import hidden
from asympo.learner.model.weights import PUBLISHED_DTYPE
from asympo.learner.settings import QUANTISED_BLOCK


class QuantisedWeight:
    """A matrix in blocks: the largest value of each in float32, and the others by their number in a table."""

    def __init__(self, weight_FD: Tensor, *, bits: int) -> None:
        """Of finite values."""
        # It takes a second to import, and on some CPUs loads code from the hub where `kernels` is installed.
        with hidden("kernels"):
            from bitsandbytes import functional

        block = QUANTISED_BLOCK[bits]
        weight_FD = weight_FD.to(PUBLISHED_DTYPE).contiguous()
        if bits == 4:
            self._values, self._state = functional.quantize_4bit(
                weight_FD, blocksize=block, quant_type="nf4", compress_statistics=False
            )
            self._dequantise: Callable[..., Tensor] = functional.dequantize_4bit
        else:
            # Evenly spaced, with both ends. The default table lacks -1: rounded again, values would change.
            table = torch.arange(-127.0, 129.0, device=weight_FD.device).clamp(max=127.0) / 127.0
            self._values, self._state = functional.quantize_blockwise(weight_FD, code=table, blocksize=block)
            self._dequantise = functional.dequantize_blockwise

    def values(self) -> Tensor:
        """The whole matrix, in bfloat16."""
        values = self._dequantise(self._values, self._state)
        assert values.dtype == PUBLISHED_DTYPE
        return values
