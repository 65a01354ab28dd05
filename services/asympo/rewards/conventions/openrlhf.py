"""`reward_func(queries, prompts, labels, **kwargs) -> {"rewards", "scores", "extra_logs"}`: for a group."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from asympo.rewards.conventions.base import (
    Asked,
    FunctionOutcome,
    Notes,
    failed,
    outcomes_of_list,
    plain_extra,
)


class OpenRlhf:
    """Queries are prompt and response in one text; labels are the answers."""

    takes_group = True
    wants_token_ids = False

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        number, prompt = len(asked.texts), asked.prompt_text
        label = asked.first_of("label", "answer")
        return (), {
            "queries": [prompt + text for text in asked.texts],
            "prompts": [prompt] * number,
            "labels": [label] * number,
        }

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        if not isinstance(result, Mapping):
            return outcomes_of_list(result, asked)
        if "rewards" not in result:
            reason = f"the dict has no rewards, only {', '.join(map(str, result))}"
            return [failed("wrong_result", reason)] * len(asked.texts)
        outcomes = outcomes_of_list(result["rewards"], asked)
        extras = self._extras(result, len(outcomes))
        return [
            dataclasses.replace(outcome, extras=extra) if extra and outcome.kind is None else outcome
            for outcome, extra in zip(outcomes, extras, strict=True)
        ]

    @staticmethod
    def _extras(result: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        logs = dict(result.get("extra_logs") or {})
        if "scores" in result:
            logs["scores"] = result["scores"]
        extras: list[dict[str, Any]] = [{} for _ in range(number)]
        for name, values in logs.items():
            values = values.tolist() if hasattr(values, "tolist") else values
            each = (
                list(values)
                if isinstance(values, list | tuple) and len(values) == number
                else [values] * number
            )
            for place, value in enumerate(each):
                extras[place][str(name)] = plain_extra(value)
        return extras

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return {"queries", "prompts", "labels"}
