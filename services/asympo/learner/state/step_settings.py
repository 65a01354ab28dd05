"""The settings that decide what a step makes of the weights: kept in each training state."""

import logging
from collections.abc import Mapping
from typing import Any

from asympo.learner.settings import LearnerSettings
from asympo.learner.step.optimizer import learning_rate_at

log = logging.getLogger(__name__)

STEP_SETTINGS = (
    *("objective", "mean_nll_floor", "negative_scale", "learning_rate", "schedule", "warmup_steps"),
    *("final_learning_rate_ratio", "total_steps", "optimizer", "beta1", "beta2", "epsilon", "weight_decay"),
    *("muon_momentum", "max_grad_norm", "max_row_tokens"),
)
"""Their names. What the run decides once is not among them."""


def step_settings(settings: LearnerSettings) -> dict[str, Any]:
    """By name; JSON values."""
    return {name: getattr(settings, name) for name in STEP_SETTINGS}


def warn_of_changes(stored: Mapping[str, Any], settings: LearnerSettings, *, step: int) -> None:
    """Says what differs from the settings that `step` was made with; nothing of what they do not say."""
    given = step_settings(settings)
    changed = [name for name in STEP_SETTINGS if name in stored and stored[name] != given[name]]
    if "schedule" not in changed and given["schedule"] == "constant":
        # It only says when the run ends.
        changed = [name for name in changed if name != "total_steps"]
    if not changed:
        return
    log.warning(
        "The run goes on with other settings than those of step %d: %s",
        step,
        "; ".join(f"{name} {stored[name]} to {given[name]}" for name in changed),
    )
    if "total_steps" in changed and stored.keys() == given.keys():
        log.warning(
            "The %s schedule is laid out over total_steps: the learning rate of step %d was %.3g, and that "
            "of step %d is %.3g",
            *(given["schedule"], step, _learning_rate(stored, step)),
            *(step + 1, _learning_rate(given, step + 1)),
        )


def _learning_rate(settings: Mapping[str, Any], step: int) -> float:
    return learning_rate_at(
        step,
        peak=settings["learning_rate"],
        schedule=settings["schedule"],
        warmup_steps=settings["warmup_steps"],
        total_steps=settings["total_steps"],
        final_ratio=settings["final_learning_rate_ratio"],
    )
