"""Arms by name: an objective, its constant, and what is done to advantages and step scope before it."""

from collections.abc import Callable
from dataclasses import dataclass

from asympo.common.errors import BadSetting
from asympo.lab.variants import (
    TokenLosses,
    bounded,
    fading,
    fixed,
    normalised,
    plain,
    two_sided,
)
from asympo.learner.step.objectives import OBJECTIVES, Objective, ObjectiveOptions

Constant = float
MakeObjective = Callable[[TokenLosses, Constant], Objective]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    summary: str
    make: MakeObjective
    """From the laboratory's token losses and the arm's constant to the objective."""
    constant_name: str
    """What is tuned beside the learning rate."""
    candidates: tuple[Constant, Constant]
    """Values tried, the same number for every arm; the first one is used untuned."""
    needs_behaviour: bool = False
    """Reads log-probs that no record of the product carries."""
    divides_by_std: bool = False
    """Advantages are divided by their group's standard deviation."""
    drops_groups_without_signal: bool = False
    """The loss averages over the responses of groups with signal only."""

    def options(self, constant: Constant) -> ObjectiveOptions:
        """Constants of the product's objectives."""
        if self.constant_name == "negative_scale":
            return ObjectiveOptions(negative_scale=constant)
        if self.constant_name == "mean_nll_floor":
            return ObjectiveOptions(mean_nll_floor=constant)
        return ObjectiveOptions()

    def max_grad_norm(self, constant: Constant) -> float:
        """1.0 unless the clip norm is what is tuned."""
        return constant if self.constant_name == "max_grad_norm" else 1.0


def _product(name: str) -> MakeObjective:
    return lambda tokens, constant: OBJECTIVES[name]


def _sides(positive: Callable[[float], object], negative: Callable[[float], object]) -> MakeObjective:
    return lambda tokens, constant: two_sided(
        positive=positive(constant),  # type: ignore[arg-type]
        negative=negative(constant),  # type: ignore[arg-type]
    )


def _arm(
    name: str, summary: str, make: MakeObjective, constant_name: str, candidates: tuple[Constant, Constant],
    **switches: bool,
) -> Arm:  # fmt: skip
    """An arm as a row of a table."""
    return Arm(
        name=name,
        summary=summary,
        make=make,
        constant_name=constant_name,
        candidates=candidates,
        **switches,
    )


_NORM_FLOOR = "mean_nll_floor"
_CLIP = "max_grad_norm"

HEADLINE = (
    _arm("asympo", "A * m / sg(m)", _product("asympo"), _NORM_FLOOR, (1e-4, 1e-2)),
    _arm("spo", "A * m, negatives scaled by c", _product("spo"), "negative_scale", (0.3, 0.1)),
    _arm("naive", "A * m", _product("naive"), _CLIP, (1.0, 0.1)),
    _arm("gpg", "A * m * B / (B - M)", _product("gpg"), _CLIP, (1.0, 0.1)),
    _arm(
        "grpo",
        "clipped ratio to the behaviour policy",
        lambda tokens, clip: tokens.clipped_ratio(clip),
        "clip",
        (0.2, 0.5),
        needs_behaviour=True,
    ),
    _arm(
        "tis",
        "truncated importance weights",
        lambda tokens, cap: tokens.truncated_weights(cap),
        "cap",
        (2.0, 1.0),
        needs_behaviour=True,
    ),
)

SIDES = (
    _arm(
        "norm-positives",
        "positives divided by sg(m), negatives plain",
        _sides(lambda _: normalised(), lambda _: plain),
        _CLIP,
        (1.0, 0.1),
    ),
    _arm(
        "norm-negatives",
        "negatives divided by sg(m), positives plain",
        _sides(lambda _: plain, lambda _: normalised()),
        _CLIP,
        (1.0, 0.1),
    ),
    _arm(
        "spo-0.1", "the scale asympo has on longer responses", _product("spo"), "negative_scale", (0.1, 0.1)
    ),
    _arm("spo-0.2", "the scale asympo has when stale", _product("spo"), "negative_scale", (0.2, 0.2)),
    _arm("spo-0.45", "the scale asympo has when fresh", _product("spo"), "negative_scale", (0.45, 0.45)),
)

CANDIDATES = (
    _arm("asympo-floor", "asympo with a large floor", _product("asympo"), _NORM_FLOOR, (0.1, 0.3)),
    _arm(
        "asympo-bound",
        "asympo; negatives above a bound of nats a token are dropped",
        _sides(lambda _: normalised(), lambda bound: bounded(bound)),
        "bound",
        (1.0, 2.0),
    ),
    _arm(
        "asympo-fade",
        "positives divided by sg(m), negatives times exp(-rate m)",
        _sides(lambda _: normalised(), lambda rate: fading(rate)),
        "rate",
        (1.0, 3.0),
    ),
    _arm(
        "norm-scaled",
        "positives divided by sg(m), negatives times a fixed scale",
        _sides(lambda _: normalised(), lambda scale: fixed(scale)),
        "scale",
        (0.3, 0.1),
    ),
    _arm(
        "positives",
        "negatives dropped, positives plain",
        _sides(lambda _: plain, lambda _: fixed(0.0)),
        _CLIP,
        (1.0, 0.1),
    ),
    _arm(
        "norm-positives-only",
        "negatives dropped, positives divided by sg(m)",
        _sides(lambda _: normalised(), lambda _: fixed(0.0)),
        _CLIP,
        (1.0, 0.1),
    ),
)

SWITCHES = (
    _arm(
        "asympo-token-sum",
        "asympo summed over tokens, in units of 5 tokens",
        lambda tokens, _: tokens.token_sum(kind="asympo", length=5.0),
        _CLIP,
        (1.0, 0.1),
    ),
    _arm(
        "naive-token-sum",
        "naive summed over tokens, in units of 5 tokens",
        lambda tokens, _: tokens.token_sum(kind="naive", length=5.0),
        _CLIP,
        (1.0, 0.1),
    ),
    _arm(
        "asympo-std",
        "asympo with advantages divided by their group's standard deviation",
        _product("asympo"),
        _NORM_FLOOR,
        (1e-4, 1e-2),
        divides_by_std=True,
    ),
    _arm(
        "asympo-drop",
        "asympo averaged over groups with signal only",
        _product("asympo"),
        _NORM_FLOOR,
        (1e-4, 1e-2),
        drops_groups_without_signal=True,
    ),
    _arm("asympo-clip", "asympo with another clip norm", _product("asympo"), _CLIP, (0.1, 10.0)),
)

ARMS: dict[str, Arm] = {arm.name: arm for arm in (*HEADLINE, *SIDES, *CANDIDATES, *SWITCHES)}


def find_arm(name: str) -> Arm:
    """The arm of that name; BadSetting lists the names."""
    if name not in ARMS:
        raise BadSetting(f"there is no arm {name}: choose from {', '.join(ARMS)}")
    return ARMS[name]
