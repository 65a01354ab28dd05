"""The groups of a step as people see them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from asympo.common.records import Response
from asympo.learner.log.segment import LogSegment, ReadGroup

MAX_SAMPLES_A_STEP = 8
_MAX_SHOWN_CHARS = 8192


def sample_groups(
    segment: LogSegment, *, step: int, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """The first groups of a segment as the page shows them."""
    return [_sample(group, step=step, decode=decode) for group in segment.groups[:MAX_SAMPLES_A_STEP]]


def _sample(group: ReadGroup, *, step: int, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    record = group.record
    prompt = record.prompt.text or decode(group.prompt_ids)
    responses = zip(record.responses, group.response_ids, group.advantages, strict=True)
    return {
        "group_id": record.group_id,
        "sequence": group.sequence,
        "step": step,
        "prompt": prompt[:_MAX_SHOWN_CHARS],
        "asks": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        "responses": [
            {
                "text": _text(response, token_ids, decode)[:_MAX_SHOWN_CHARS],
                "reward": response.reward,
                "functions": dict(response.function_values),
                "notes": {name: text[:_MAX_SHOWN_CHARS] for name, text in response.function_notes.items()},
                "advantage": advantage,
                "finish_reason": str(response.finish_reason),
                "num_tokens": len(token_ids),
                "num_segments": len(response.segments),
            }
            for response, token_ids, advantage in responses
        ],
        "unscored": [
            {"text": each.text[:_MAX_SHOWN_CHARS], "reason": each.reason[:_MAX_SHOWN_CHARS]}
            for each in record.unscored
        ],
        "columns": record.columns_json[:_MAX_SHOWN_CHARS],
    }


def _text(response: Response, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    if not response.segments:
        return response.text or decode(token_ids)
    return "\n\n[history rewritten]\n\n".join(decode(each.token_ids) for each in response.segments)
