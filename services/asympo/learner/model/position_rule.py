"""Which positions a layer may see: windows and chunks, as the model itself states them.

transformers describes every mask by a function of a query's and a key's position. In a packed row positions
are depths in the tree, so the same function holds there, whatever a layer knows of its window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionRule:
    """A mask over positions, in addition to the order of the tree."""

    is_visible: Callable[[Any, Any, Any, Any], Tensor]
    """Of batch, head, position of the query and position of the key; tensors that broadcast."""
    window: int | None
    """The rule is: nearer than this. None: something else."""

    def hidden(self, position_Q: Tensor, position_K: Tensor) -> Tensor:
        """Keys that queries must not see, `[Q, K]`."""
        if self.window is not None:
            return position_Q[:, None] - position_K[None] >= self.window
        return ~self.is_visible(0, 0, position_Q[:, None], position_K[None])


def position_rule(*, mask_function: Any, config: Any, **_: Any) -> PositionRule | None:
    """What layers get as their mask where attention is ours; None is the plain causal order."""
    if mask_function is causal_mask_function:
        return None
    window = getattr(config, "sliding_window", None)
    is_window = isinstance(window, int) and _is_window(mask_function, window)
    return PositionRule(is_visible=mask_function, window=window if is_window else None)


def _is_window(mask_function: Any, window: int) -> bool:
    query = torch.tensor([window, window + 1, 2 * window, 2 * window + 1, 3 * window + 2])

    def sees(distance: int) -> Tensor:
        visible: Tensor = mask_function(0, 0, query, query - distance)
        return visible.expand(query.shape)

    return not sees(window).any() and bool(sees(window - 1).all()) and bool(sees(0).all())
