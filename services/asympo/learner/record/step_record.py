"""What a step is remembered by: the row of numbers, and its groups for people."""

from collections.abc import Callable, Sequence
from typing import Any

from asympo.common.records import FinishReason
from asympo.common.rollout_log import LogStats
from asympo.learner.log.segment import ReadGroup, Segment
from asympo.learner.step.step import StepResult

MAX_SAMPLES_A_STEP = 8
_MAX_SHOWN_CHARS = 8192


def step_row(
    *,
    step: int,
    fence: int,
    segment: Segment,
    result: StepResult,
    staleness: Sequence[int],
    generation_staleness_mean: float | None,
    stats: LogStats,
    seconds: dict[str, float],
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
        "tokens_trained": result.num_trained_tokens,
        "tokens_computed": result.num_computed_tokens,
        "tokens_per_second": result.num_trained_tokens / result.seconds,
        "train_seconds": result.seconds,
        "wait_seconds": seconds["wait"],
        "busy_seconds": seconds["busy"],
        "wait_ratio": seconds["wait"] / max(1e-9, seconds["wait"] + seconds["busy"]),
        "publish_seconds": seconds["publish"],
        "save_seconds": seconds["save"],
        "queue_staleness_mean": sum(staleness) / len(staleness),
        "queue_staleness_max": max(staleness),
        "generation_staleness_mean": generation_staleness_mean,
        "backlog": stats.last_sequence - segment.last_sequence,
        "sequence": segment.last_sequence,
        "policy_step": policy_step,
    }


def sample_groups(
    segment: Segment, *, step: int, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """The first groups of a segment as the page shows them."""
    return [_sample(group, step=step, decode=decode) for group in segment.groups[:MAX_SAMPLES_A_STEP]]


def _sample(group: ReadGroup, *, step: int, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    record = group.record
    responses = zip(record.responses, group.response_ids, group.advantages, strict=True)
    return {
        "group_id": record.group_id,
        "sequence": group.sequence,
        "step": step,
        "prompt": (record.prompt.text or decode(group.prompt_ids))[:_MAX_SHOWN_CHARS],
        "responses": [
            {
                "text": (response.text or decode(token_ids))[:_MAX_SHOWN_CHARS],
                "reward": response.reward,
                "advantage": advantage,
                "finish_reason": str(response.finish_reason),
                "num_tokens": len(token_ids),
            }
            for response, token_ids, advantage in responses
        ],
    }
