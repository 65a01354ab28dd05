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


_NORM_FLOOR = "mean_nll_floor"
_CLIP = "max_grad_norm"

HEADLINE = (
    Arm(
        name="asympo",
        summary="A * m / sg(m)",
        make=_product("asympo"),
        constant_name=_NORM_FLOOR,
        candidates=(1e-4, 1e-2),
    ),
    Arm(
        name="spo",
        summary="A * m, negatives scaled by c",
        make=_product("spo"),
        constant_name="negative_scale",
        candidates=(0.3, 0.1),
    ),
    Arm(name="naive", summary="A * m", make=_product("naive"), constant_name=_CLIP, candidates=(1.0, 0.1)),
    Arm(
        name="gpg",
        summary="A * m * B / (B - M)",
        make=_product("gpg"),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="grpo",
        summary="clipped ratio to the behaviour policy",
        make=lambda tokens, clip: tokens.clipped_ratio(clip),
        constant_name="clip",
        candidates=(0.2, 0.5),
        needs_behaviour=True,
    ),
    Arm(
        name="tis",
        summary="truncated importance weights",
        make=lambda tokens, cap: tokens.truncated_weights(cap),
        constant_name="cap",
        candidates=(2.0, 1.0),
        needs_behaviour=True,
    ),
)

SIDES = (
    Arm(
        name="norm-positives",
        summary="positives divided by sg(m), negatives plain",
        make=_sides(lambda _: normalised(), lambda _: plain),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="norm-negatives",
        summary="negatives divided by sg(m), positives plain",
        make=_sides(lambda _: plain, lambda _: normalised()),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="spo-0.2",
        summary="the scale asympo has when stale",
        make=_product("spo"),
        constant_name="negative_scale",
        candidates=(0.2, 0.2),
    ),
    Arm(
        name="spo-0.45",
        summary="the scale asympo has when fresh",
        make=_product("spo"),
        constant_name="negative_scale",
        candidates=(0.45, 0.45),
    ),
)

CANDIDATES = (
    Arm(
        name="asympo-floor",
        summary="asympo with a large floor",
        make=_product("asympo"),
        constant_name=_NORM_FLOOR,
        candidates=(0.1, 0.3),
    ),
    Arm(
        name="asympo-bound",
        summary="asympo; negatives above a bound of nats a token are dropped",
        make=_sides(lambda _: normalised(), lambda bound: bounded(bound)),
        constant_name="bound",
        candidates=(1.0, 2.0),
    ),
    Arm(
        name="asympo-fade",
        summary="positives divided by sg(m), negatives times exp(-rate m)",
        make=_sides(lambda _: normalised(), lambda rate: fading(rate)),
        constant_name="rate",
        candidates=(1.0, 3.0),
    ),
    Arm(
        name="norm-scaled",
        summary="positives divided by sg(m), negatives times a fixed scale",
        make=_sides(lambda _: normalised(), lambda scale: fixed(scale)),
        constant_name="scale",
        candidates=(0.3, 0.1),
    ),
    Arm(
        name="positives",
        summary="negatives dropped, positives plain",
        make=_sides(lambda _: plain, lambda _: fixed(0.0)),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="norm-positives-only",
        summary="negatives dropped, positives divided by sg(m)",
        make=_sides(lambda _: normalised(), lambda _: fixed(0.0)),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
)

SWITCHES = (
    Arm(
        name="asympo-token-sum",
        summary="asympo summed over tokens, in units of 5 tokens",
        make=lambda tokens, _: tokens.token_sum(kind="asympo", length=5.0),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="naive-token-sum",
        summary="naive summed over tokens, in units of 5 tokens",
        make=lambda tokens, _: tokens.token_sum(kind="naive", length=5.0),
        constant_name=_CLIP,
        candidates=(1.0, 0.1),
    ),
    Arm(
        name="asympo-std",
        summary="asympo with advantages divided by their group's standard deviation",
        make=_product("asympo"),
        constant_name=_NORM_FLOOR,
        candidates=(1e-4, 1e-2),
        divides_by_std=True,
    ),
    Arm(
        name="asympo-drop",
        summary="asympo averaged over groups with signal only",
        make=_product("asympo"),
        constant_name=_NORM_FLOOR,
        candidates=(1e-4, 1e-2),
        drops_groups_without_signal=True,
    ),
    Arm(
        name="asympo-clip",
        summary="asympo with another clip norm",
        make=_product("asympo"),
        constant_name=_CLIP,
        candidates=(0.1, 10.0),
    ),
)

ARMS: dict[str, Arm] = {arm.name: arm for arm in (*HEADLINE, *SIDES, *CANDIDATES, *SWITCHES)}


def find_arm(name: str) -> Arm:
    """The arm of that name; BadSetting lists the names."""
    if name not in ARMS:
        raise BadSetting(f"there is no arm {name}: choose from {', '.join(ARMS)}")
    return ARMS[name]
