"""What is known of the weights after a reload: what was read back, and whether they still speak sense."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from asympo.common.checkpoints import ProbeSequence
from asympo.engines.base import Readback

GROSS = 30.0
"""How many times its noise the mean NLL may be off before weights that are proved are refused."""
MIN_TOKEN_NOISE = 0.05
"""Noise of one token's NLL that is assumed at least and before any was measured, nats; bfloat16 has 0.1."""


class Verdict(StrEnum):
    """Outcome of one reload."""

    PROVED = "proved"
    """Every layer holds the policy's values, and some differ from the weights before."""
    UNCHANGED = "unchanged"
    """Every layer holds the policy's values, which are those of the weights before."""
    UNPROVEN = "unproven"
    """Nothing speaks against the weights, but some layers cannot be read back."""
    FAILED = "failed"
    """A layer holds other values, or the engine speaks no sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NllCheck:
    """Mean NLL of the probe sequences under the engine, against the learner's own."""

    error: float
    """Difference of the mean over all tokens, in nats."""
    noise: float
    """What the arithmetic of engine and learner explains of it, in nats."""
    token_noise: float
    """The noise of one token that these sequences show by themselves, in nats."""

    @property
    def is_gross(self) -> bool:
        return not self.error <= GROSS * self.noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A verdict with what it rests on."""

    verdict: Verdict
    readback: Readback
    nll: NllCheck | None
    """None without probe sequences."""

    @property
    def is_accepted(self) -> bool:
        """Whether the policy may be served."""
        return self.verdict is not Verdict.FAILED

    def __str__(self) -> str:
        readback = self.readback
        words = [f"{readback.num_values} values read back"]
        for what, layers in (("differ in", readback.wrong), ("cannot see", readback.uncovered)):
            if layers:
                words.append(f"{what} {len(layers)} layers, {layers[0]} first")
        if self.nll is not None:
            words.append(f"mean NLL off by {self.nll.error:.4g} where noise is {self.nll.noise:.4g}")
        return f"{self.verdict}: {', '.join(words)}"


def check_nll(
    measured: Sequence[float], sequences: Sequence[ProbeSequence], *, token_noise: float | None
) -> NllCheck | None:
    """Compare the engine's mean NLL of each sequence with the manifest's; None without sequences.

    `token_noise` is what one token's NLL is usually off by, None before anything was measured. A value that
    is not finite makes the error infinite.
    """
    if not sequences:
        return None
    num_tokens = [len(sequence.token_ids) - sequence.num_prompt_tokens for sequence in sequences]
    errors = [got - sequence.mean_nll for got, sequence in zip(measured, sequences, strict=True)]
    total = sum(num_tokens)
    if not all(map(math.isfinite, errors)):
        errors = [math.inf]
        num_tokens = [total]
    squares = [error**2 * count for error, count in zip(errors, num_tokens, strict=True)]
    return NllCheck(
        error=abs(sum(error * count for error, count in zip(errors, num_tokens, strict=True))) / total,
        noise=max(token_noise or 0.0, MIN_TOKEN_NOISE) / math.sqrt(total),
        token_noise=math.sqrt(sum(squares) / len(squares)),
    )


def judge(readback: Readback, nll: NllCheck | None) -> Judgement:
    """Values that differ fail a policy, however few; an NLL does so only if it is far beyond its noise."""
    if readback.wrong or (nll is not None and nll.is_gross):
        verdict = Verdict.FAILED
    elif readback.uncovered or not readback.num_values:
        verdict = Verdict.UNPROVEN
    elif readback.num_changed == 0:
        verdict = Verdict.UNCHANGED
    else:
        verdict = Verdict.PROVED
    return Judgement(verdict=verdict, readback=readback, nll=nll)
