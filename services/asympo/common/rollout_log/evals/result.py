"""The result of one evaluation of one policy, as it travels and as it is kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from asympo.common.rollout_log.evals.values import number, whole

_MAX_ENTRIES = 64
"""Of reward functions, or of k, in one result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """What one evaluation says about one policy."""

    eval: str
    """Name of the evaluation."""
    policy_step: int | None
    """Policy that gave the first response; None for a model that is no policy of the run."""
    policy_fence: int | None
    """Its fence, where it is known."""
    last_policy_step: int | None
    """Policy that gave the last response: another one where generators swapped meanwhile."""
    prompts: int
    """Prompts asked."""
    samples: int
    """Responses to each, k of mean@k."""
    mean: Estimate
    """Mean reward of a response, mean@k."""
    pass_at: dict[int, Estimate]
    """For each k: the chance that one of k responses is right, unbiased."""
    functions: dict[str, float] = field(default_factory=dict)
    """Mean value of each reward function, over the responses that it applies to."""
    unscored: int = 0
    """Responses that could not be scored; they count as reward 0."""
    seconds: float = 0.0
    """How long it took."""
    at_seconds: float = 0.0
    """Unix time of its end."""

    def numbers(self) -> dict[str, float]:
        """One flat mapping for trackers and tables: `eval/NAME/mean@k`, `eval/NAME/pass@k`, ..."""
        prefix = f"eval/{self.eval}"
        found = {f"{prefix}/mean@{self.samples}": self.mean.value}
        found |= {f"{prefix}/pass@{k}": each.value for k, each in self.pass_at.items()}
        found |= {f"{prefix}/reward/{name}": value for name, value in self.functions.items()}
        if self.policy_step is not None:
            found[f"{prefix}/policy_step"] = float(self.policy_step)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the keys of this class, estimates as [value, low, high]."""
        return {
            "eval": self.eval,
            "policy_step": self.policy_step,
            "policy_fence": self.policy_fence,
            "last_policy_step": self.last_policy_step,
            "prompts": self.prompts,
            "samples": self.samples,
            "mean": [self.mean.value, self.mean.low, self.mean.high],
            "pass_at": {str(k): [each.value, each.low, each.high] for k, each in self.pass_at.items()},
            "functions": self.functions,
            "unscored": self.unscored,
            "seconds": self.seconds,
            "at_seconds": self.at_seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result, fields that are not known left out. Raises ValueError when it is none."""
        try:
            pass_at, functions = dict(values["pass_at"]), dict(values.get("functions") or {})
            if max(len(pass_at), len(functions)) > _MAX_ENTRIES:
                raise ValueError("it names too many functions")
            return cls(
                eval=str(values["eval"])[:64],
                policy_step=_whole_or_none(values.get("policy_step")),
                policy_fence=_whole_or_none(values.get("policy_fence")),
                last_policy_step=_whole_or_none(values.get("last_policy_step")),
                prompts=whole(values["prompts"]),
                samples=whole(values["samples"]),
                mean=_estimate(values["mean"]),
                pass_at={int(k): _estimate(each) for k, each in pass_at.items()},
                functions={str(name)[:64]: number(each) for name, each in functions.items()},
                unscored=whole(values.get("unscored", 0)),
                seconds=number(values.get("seconds", 0.0)),
                at_seconds=number(values.get("at_seconds", 0.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is not a result of an evaluation ({error!r})") from None


def best_of(results: Iterable[EvalResult], name: str) -> EvalResult | None:
    """The policy that the evaluation `name` likes best, the later one of two that are equal."""
    # Where generators swapped meanwhile, no single policy earned the result.
    known = [
        each
        for each in results
        if each.eval == name and each.policy_step is not None and each.policy_step == each.last_policy_step
    ]
    return max(
        known, key=lambda each: (each.mean.value, each.policy_fence or 0, each.policy_step or 0), default=None
    )


def _estimate(value: Any) -> Estimate:
    mean, low, high = value
    return Estimate(value=number(mean), low=number(low), high=number(high))


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else whole(value)
