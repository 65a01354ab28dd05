"""Groups from what a producer has at hand, and ids for them."""

import secrets
import time
from collections.abc import Sequence

from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup

Answers = Sequence[Response | tuple[str, float]]
"""Responses, or pairs of text and reward."""


def new_id() -> str:
    """An id for a group: the time in milliseconds, and a suffix that no other process draws."""
    return f"{time.time_ns() // 1_000_000}-{secrets.token_hex(6)}"


def text_group(
    prompt: str | Prompt, responses: Answers, *, group_id: str | int | None = None
) -> RolloutGroup:
    """A group; pairs become finished responses of text."""
    return RolloutGroup(
        group_id=new_id() if group_id in (None, "") else str(group_id),
        prompt=Prompt(text=prompt) if isinstance(prompt, str) else prompt,
        responses=tuple(
            each
            if isinstance(each, Response)
            else Response(text=each[0], reward=each[1], finish_reason=FinishReason.STOP)
            for each in responses
        ),
    )
