"""What a study consists of. Plain data: nothing here imports torch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from asympo.lab.ages import Staleness

COLLAPSE_SHARE = 0.5
"""Collapsed: final accuracy below this share of the start's, or a number that was not finite."""
MOONSHOT_SHARE = 0.98
"""Share of the best synchronous accuracy that a current-policy-only setting must keep when stale."""

Constants = Literal["tuned", "first", "both", "passed"]
"""Which values of an arm's constant are run: what tuning chose, the first candidate, or each candidate.
`passed`: no arms of the grid's own, but the settings that passed the moonshot in the grids before it."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Digit addition and the network that learns it."""

    num_digits: int
    """Of each of the two numbers."""
    num_held_out: int
    hidden_size: int
    num_layers: int
    num_heads: int
    token_budget: int
    """Tokens of one micro-batch."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Supervised steps before the reinforcement learning."""

    seed: int
    batch: int
    """Right answers in each step."""
    learning_rate: float
    ramp_steps: int
    """Linear warm-up of the learning rate."""
    max_steps: int
    target: float
    """Sampled accuracy that ends the warm-up."""
    ceiling: float
    """Sampled accuracy that would leave too little to learn."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of these is a cell."""

    name: str
    question: str
    """What the report says it answers."""
    arms: tuple[str, ...]
    staleness: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    constants: Constants = "tuned"
    kinds: tuple[Staleness, ...] = ("fixed",)
    optimizers: tuple[Literal["adamw", "sgd"], ...] = ("adamw",)
    compute_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    task: str = "short"
    """Key into the preset's tasks."""

    def is_confirmation(self, confirming_seeds: Collection[int]) -> bool:
        """All of its seeds are confirming ones: it tries again what passed on others."""
        return set(self.seeds) <= set(confirming_seeds)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The same number of runs for every arm, before the others and on a seed of their own.

    At the greatest staleness, every candidate constant meets every learning rate; an arm keeps the candidate
    with the higher mean final accuracy over the learning rates, the first one on a tie.
    """

    staleness: int
    learning_rates: tuple[float, ...]
    seed: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A study."""

    name: str
    summary: str
    tasks: dict[str, TaskSettings]
    """By name; empty when the policy is a language model with a task of the product."""
    warm_up: WarmUp | None
    """None: the model as it is published is the start."""
    groups_per_step: int
    group_size: int
    evaluate_every: int
    """Steps between two looks at the held-out problems."""
    tuning: Tuning | None
    grids: tuple[Grid, ...]
    """The first one is run unless others are named."""
    confirming_seeds: tuple[int, ...] = ()
    """A grid of no other seeds tries again what passed; what it measures is kept apart."""

    def grids_named(self, names: Sequence[str]) -> tuple[Grid, ...]:
        """The grids to run; `full` is all of them, none is the first. Unknown names raise KeyError."""
        if not names:
            return self.grids[:1]
        if "full" in names:
            return self.grids
        by_name = {grid.name: grid for grid in self.grids}
        return tuple(by_name[name] for name in names)
