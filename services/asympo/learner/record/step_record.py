"""What a step is remembered by: the row of numbers."""

import statistics
from collections.abc import Sequence
from typing import Any

from asympo.common.records import MAX_FUNCTION_VALUES, FinishReason
from asympo.common.rollout_log import LogStats
from asympo.learner.log.segment import LogSegment
from asympo.learner.step.step import StepResult


def step_row(
    *,
    step: int,
    fence: int,
    segment: LogSegment,
    result: StepResult,
    staleness: Sequence[int],
    generation_staleness_mean: float | None,
    stats: LogStats,
    seconds: dict[str, float],
    publish_bytes: int,
    policy_step: int,
) -> dict[str, Any]:
    """One JSON row. `seconds` has wall, wait, busy, publish and save; None is "nothing to measure"."""
    responses = [response for group in segment.groups for response in group.record.responses]
    lengths = [len(token_ids) for group in segment.groups for token_ids in group.response_ids]
    truncated = sum(response.finish_reason is FinishReason.LENGTH for response in responses)
    return {
        "step": step,
        "fence": fence,
        "wall_seconds": seconds["wall"],
        "reward_mean": sum(response.reward for response in responses) / len(responses),
        "reward_spread": statistics.fmean(
            statistics.pstdev(response.reward for response in group.record.responses)
            for group in segment.groups
        ),
        "loss": result.loss,
        "nll_positive": result.nll_positive,
        "nll_negative": result.nll_negative,
        "nll_ratio": (
            result.nll_negative / result.nll_positive
            if result.nll_positive and result.nll_negative is not None
            else None
        ),
        "grad_norm": result.grad_norm,
        "is_applied": result.is_applied,
        "entropy": result.entropy,
        "learning_rate": result.learning_rate,
        "response_tokens_mean": sum(lengths) / len(lengths),
        "truncated_ratio": truncated / len(responses),
        "groups": len(segment.groups),
        "groups_without_signal": segment.num_without_signal,
        **_computing(result),
        "wait_seconds": seconds["wait"],
        "busy_seconds": seconds["busy"],
        "wait_ratio": seconds["wait"] / max(1e-9, seconds["wait"] + seconds["busy"]),
        "publish_seconds": seconds["publish"],
        "publish_bytes": publish_bytes,
        "save_seconds": seconds["save"],
        "queue_staleness_mean": sum(staleness) / len(staleness),
        "queue_staleness_max": max(staleness),
        "generation_staleness_mean": generation_staleness_mean,
        "backlog": stats.last_sequence - segment.last_sequence,
        "sequence": segment.last_sequence,
        "policy_step": policy_step,
        **function_numbers(segment),
    }


def _computing(result: StepResult) -> dict[str, Any]:
    """How much was computed, how, and how quickly."""
    flops_per_second = result.flops / result.seconds
    return {
        "tokens_trained": result.num_trained_tokens,
        "tokens_computed": result.num_computed_tokens,
        "tokens_per_second": result.num_trained_tokens / result.seconds,
        "flops_per_second": flops_per_second,
        "mfu": flops_per_second / result.peak_flops if result.peak_flops else None,
        "row_tokens": result.row_tokens,
        "is_slow_path": result.is_slow_path,
        "train_seconds": result.seconds,
    }


def function_numbers(segment: LogSegment) -> dict[str, float]:
    """Mean of each reward function's values, and its mean spread inside groups: 0 says it ranks nothing."""
    means: dict[str, list[float]] = {}
    spreads: dict[str, list[float]] = {}
    for group in segment.groups:
        values: dict[str, list[float]] = {}
        for response in group.record.responses:
            for name, value in response.function_values.items():
                values.setdefault(name, []).append(value)
        for name, each in values.items():
            means.setdefault(name, []).extend(each)
            spreads.setdefault(name, []).append(statistics.pstdev(each))
    numbers = {}
    # Foreign producers may name what they like.
    for name in sorted(means)[:MAX_FUNCTION_VALUES]:
        numbers[f"reward/{name}/mean"] = statistics.fmean(means[name])
        numbers[f"reward/{name}/spread"] = statistics.fmean(spreads[name])
    return numbers
