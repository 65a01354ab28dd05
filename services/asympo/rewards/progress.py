"""How far the run is: what reward functions may ask of a trainer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """As far as whoever scores knows it."""

    step: int = 0
    """Of the policy that answered."""
    total_steps: int = 0
    """Of the run; 0 where it has no end, or nobody knows it."""
    epoch: int = 0
    """Pass over the prompts, from 0."""
    num_epochs: int = 0
    """Passes that the run makes; 0 is endless."""
