"""What a learner is timed on: shapes of a step, and rollouts drawn from them. No torch here."""

import random
from dataclasses import dataclass

from asympo.common.errors import BadSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One optimizer step."""

    prompt_tokens: int
    """Tokens of every prompt."""
    max_response_tokens: int
    """The longest response; lengths are spread evenly from 1 to this."""
    num_groups: int
    group_size: int = 8
    """Responses of a group."""

    @property
    def name(self) -> str:
        """Prompt, response, groups, group size: the key of results."""
        return f"{self.prompt_tokens}/{self.max_response_tokens}/{self.num_groups}x{self.group_size}"


SHORT = Shape(prompt_tokens=40, max_response_tokens=16, num_groups=8)
LONG_RESPONSES = Shape(prompt_tokens=64, max_response_tokens=256, num_groups=2)
LONG_PROMPTS = Shape(prompt_tokens=512, max_response_tokens=64, num_groups=2)
SHAPES = (SHORT, LONG_RESPONSES, LONG_PROMPTS)


def parse_shape(text: str) -> Shape:
    """`64/256/2` or `64/256/2x8`; BadSetting says how."""
    head, _, group_size = text.partition("x")
    try:
        prompt, response, groups = (int(part) for part in head.split("/"))
        size = int(group_size or 8)
    except ValueError:
        raise BadSetting(f"--shape is {text}: give PROMPT/RESPONSE/GROUPS like 64/256/2") from None
    if min(prompt, response, groups) < 1 or size < 2:
        raise BadSetting(f"--shape is {text}: every number must be at least 1, and a group needs at least 2")
    return Shape(prompt_tokens=prompt, max_response_tokens=response, num_groups=groups, group_size=size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A prompt with its responses and rewards."""

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]
    """0 or 1, at least one of each: every group has signal, so that nobody may leave one out."""

    @property
    def advantages(self) -> tuple[float, ...]:
        """Reward minus the group's mean."""
        mean = sum(self.rewards) / len(self.rewards)
        return tuple(reward - mean for reward in self.rewards)


def make_rollouts(shape: Shape, *, vocab_size: int, seed: int = 0) -> list[Rollout]:
    """The same rollouts for the same arguments, on every machine.

    Token ids are drawn at random, so responses share their prompt and next to nothing else: real text, with
    system prompts and equal beginnings, gives prefix sharing more to work with.
    """
    # An integer seed: hashing of strings and tuples differs between processes.
    rng = random.Random(seed * 1_000_003 + shape.prompt_tokens * 4099 + shape.max_response_tokens)
    count = shape.num_groups * shape.group_size
    lengths = [-(-(index + 1) * shape.max_response_tokens // count) for index in range(count)]
    rng.shuffle(lengths)
    rollouts = []
    for group in range(shape.num_groups):
        rewards = [float(rng.random() < 0.5) for _ in range(shape.group_size)]
        rewards[0], rewards[1] = 1.0, 0.0
        rollouts.append(
            Rollout(
                prompt_ids=tuple(rng.randrange(vocab_size) for _ in range(shape.prompt_tokens)),
                responses=tuple(
                    tuple(rng.randrange(vocab_size) for _ in range(length))
                    for length in lengths[group * shape.group_size : (group + 1) * shape.group_size]
                ),
                rewards=tuple(rewards),
            )
        )
    return rollouts


def num_true_tokens(rollouts: list[Rollout]) -> int:
    """Prompt and response tokens of every response, without padding, a shared prompt counted each time."""
    return sum(
        len(rollout.prompt_ids) + len(response) for rollout in rollouts for response in rollout.responses
    )
