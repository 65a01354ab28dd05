"""What one policy answered to one prompt of an evaluation, as it travels and as people see it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from asympo.common.rollout_log.evals.values import number, whole

MAX_RESPONSES = 4
"""Kept of one prompt."""
_MAX_NAMES = 8
_MAX_NAME_CHARS, _MAX_CHARS = 64, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResponse:
    """One response."""

    text: str
    reward: float | None
    """None when it could not be scored."""
    functions: dict[str, float] = field(default_factory=dict)
    """Value of each reward function that applies."""
    reason: str = ""
    """Why it has no reward."""
    num_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSample:
    """A prompt with the first of its responses."""

    eval: str
    """Name of the evaluation."""
    policy_step: int | None
    """Policy that gave the responses; None for a model that is no policy of the run."""
    prompt: str
    answer: str
    """The right one, as the data has it."""
    responses: tuple[EvalResponse, ...]
    at_seconds: float
    """Unix time of the evaluation's end."""

    def to_json(self, *, max_bytes: int) -> str:
        """With texts cut off so far that it is no longer than that."""
        max_chars = _MAX_CHARS
        while True:
            text = json.dumps(_cut(dataclasses.asdict(self), max_chars), ensure_ascii=False)
            data = text.encode(errors="replace")
            if len(data) <= max_bytes or max_chars == 0:
                return data.decode()
            max_chars //= 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The sample, fields that are not known left out. Raises ValueError when it is none."""
        try:
            return cls(
                eval=str(values["eval"])[:_MAX_NAME_CHARS],
                policy_step=None if values["policy_step"] is None else whole(values["policy_step"]),
                prompt=_text(values["prompt"]),
                answer=_text(values["answer"]),
                responses=tuple(map(_response, list(values["responses"])[:MAX_RESPONSES])),
                at_seconds=number(values["at_seconds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is not a sample of an evaluation ({error!r})") from None

    def to_group(self, *, number: int) -> dict[str, Any]:
        """In the form of the groups that are trained, so that one browser shows both."""
        scored = [each for each in self.responses if each.reward is not None]
        return {
            "eval": self.eval,
            "group_id": self.eval,
            "sequence": number,
            "step": self.policy_step,
            "prompt": self.prompt,
            "asks": hashlib.sha256(f"{self.eval}/{self.prompt}".encode()).hexdigest()[:16],
            "responses": [
                {
                    "text": each.text,
                    "reward": each.reward,
                    "functions": each.functions,
                    "num_tokens": each.num_tokens,
                }
                for each in scored
            ],
            "unscored": [
                {"text": each.text, "reason": each.reason} for each in self.responses if each.reward is None
            ],
            "columns": json.dumps({"answer": self.answer}, ensure_ascii=False) if self.answer else "",
        }


def _cut(value: Any, max_chars: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= max(_MAX_NAME_CHARS, max_chars) else f"{value[:max_chars]}…"
    if isinstance(value, Mapping):
        return {str(key)[:_MAX_NAME_CHARS]: _cut(each, max_chars) for key, each in value.items()}
    return [_cut(each, max_chars) for each in value] if isinstance(value, list | tuple) else value


def _response(values: Any) -> EvalResponse:
    if not isinstance(values, Mapping):
        raise ValueError(f"{values!r} is no response")
    functions = list(dict(values.get("functions") or {}).items())[:_MAX_NAMES]
    reward = values["reward"]
    return EvalResponse(
        text=_text(values["text"]),
        reward=None if reward is None else number(reward),
        functions={str(name)[:_MAX_NAME_CHARS]: number(value) for name, value in functions},
        reason=_text(values.get("reason", "")),
        num_tokens=whole(values.get("num_tokens", 0)),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value
