"""`f(response_text, **columns) -> float`, and `f(prompt, response_text) -> float` with a TaskPrompt."""

from collections.abc import Sequence
from typing import Any

from asympo.rewards.conventions.base import Asked, FunctionOutcome, Notes, outcome_of


class Plain:
    """The response comes first; the row's columns follow by name."""

    takes_group = False
    wants_token_ids = False

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (asked.texts[0],), dict(asked.columns)

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        return [outcome_of(result, may_be_none=True)]

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return {*columns, "answer"}


class OfTaskPrompt:
    """Called with the TaskPrompt and the response."""

    takes_group = False
    wants_token_ids = False

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (asked.prompt, asked.texts[0]), {}

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        return [outcome_of(result)]

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return set()
