"""Reward functions that cost nothing themselves, or only wait."""

import asyncio
from typing import Any

JUDGE_SECONDS = 1.0


def length(completions: list[Any], **columns: Any) -> list[float]:
    """In TRL's form; takes everything that is passed, as most of them do."""
    return [float(len(completion)) for completion in completions]


async def judge(response_text: str, **columns: Any) -> float:
    """Like a function that asks a server."""
    await asyncio.sleep(JUDGE_SECONDS)
    return 1.0
