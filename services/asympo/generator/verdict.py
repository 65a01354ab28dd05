"""What a probe says about a reload: pure arithmetic on mean NLLs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

PROOF_TOLERANCES = 3.0
"""How many tolerances the weights before must be away from the new ones for a match to prove anything."""


class Verdict(StrEnum):
    """Outcome of the probe of one reload."""

    PROVED = "proved"
    """The engine answers as the new policy does, and the old one would have answered differently."""
    CONSISTENT = "consistent"
    """The engine answers as the new policy does, but so would the old one."""
    FAILED = "failed"
    """The engine does not answer as the new policy does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A verdict with the numbers it rests on."""

    verdict: Verdict
    max_error: float
    """Largest |measured - expected| over the sequences, in nats per token."""
    max_distance: float | None
    """Largest |expected - before| over the sequences; None when nothing is known of the weights before."""
    tolerance: float

    @property
    def is_accepted(self) -> bool:
        """Whether the policy may be served."""
        return self.verdict is not Verdict.FAILED

    def __str__(self) -> str:
        distance = "unknown" if self.max_distance is None else f"{self.max_distance:.4g}"
        return (
            f"{self.verdict}: off by {self.max_error:.4g} at tolerance {self.tolerance:.4g}, "
            f"weights before are {distance} away"
        )


def judge(
    *,
    measured: Sequence[float],
    expected: Sequence[float],
    before: Sequence[float | None],
    tolerance: float,
) -> Judgement:
    """Compare the engine's mean NLL of each probe sequence with the policy's own.

    `before` is what the weights that were loaded until now give: the parent's values, or the engine's own
    from its last probe. Any sequence off by more than the tolerance, or not finite, fails the reload. One
    sequence on which the weights before are more than three tolerances away proves it.
    Raises ValueError for no sequences, or lists of different lengths.
    """
    if not expected or not len(measured) == len(expected) == len(before):
        raise ValueError(
            f"a probe needs as many measured ({len(measured)}) and former ({len(before)}) values "
            f"as expected ones ({len(expected)}), and at least one"
        )
    errors = [abs(got - want) for got, want in zip(measured, expected, strict=True)]
    distances = [abs(want - old) for want, old in zip(expected, before, strict=True) if old is not None]
    distances = [distance for distance in distances if math.isfinite(distance)]
    # max() of a list with a NaN depends on its order; one bad number must fail in any place.
    max_error = max(errors) if all(map(math.isfinite, errors)) else math.inf
    max_distance = max(distances) if distances else None
    if not max_error <= tolerance:
        verdict = Verdict.FAILED
    elif max_distance is not None and max_distance > PROOF_TOLERANCES * tolerance:
        verdict = Verdict.PROVED
    else:
        verdict = Verdict.CONSISTENT
    return Judgement(verdict=verdict, max_error=max_error, max_distance=max_distance, tolerance=tolerance)
