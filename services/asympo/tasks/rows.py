"""What tasks made of somebody's rows share: scoring by the row's answer, and prompts that are left out."""

import dataclasses
import json
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from asympo.common.errors import BadSetting
from asympo.rewards import scoring
from asympo.tasks.base import SplitPrompts, TaskPrompt
from asympo.tasks.config import TaskConfig


class RowsTask(SplitPrompts):
    """Rows whose scoring the settings name."""

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        self._score: scoring.Score | None = None
        if config.pattern is not None:
            scoring.compile_pattern(config.pattern)

    def place_share(
        self, rows: Sequence[tuple[Hashable, dict[str, Any]]], *, fraction: float, seed: int
    ) -> None:
        """Holds a share of the questions out."""
        super().__init__(rows, fraction=fraction, seed=seed)

    def keep_trainable(self, left_out: Collection[int]) -> None:
        """Without the trainable prompts of these numbers; the others are numbered anew."""
        without = set(left_out)
        if without:
            self.renumber([prompt for prompt in self._train if prompt.index not in without])

    def renumber(self, prompts: Sequence[TaskPrompt]) -> None:
        """Makes these the trainable prompts, in this order."""
        self._train = [dataclasses.replace(prompt, index=index) for index, prompt in enumerate(prompts)]

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        name = self._config.scoring
        if name == "exact":
            self._score = scoring.exact_match
        elif name == "regex":
            assert self._config.pattern is not None
            self._score = scoring.regex_match(self._config.pattern)
        elif name == "math-verify":
            self._score = scoring.math_verify_match()
        elif allow_python:
            self._score = scoring.python_function(name)
        else:
            raise BadSetting(
                f"task.scoring {name} runs Python code, which this process was not told to allow"
            )

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        assert self._score is not None, "prepare_scoring comes first"
        return self._score(prompt, response_text)


def question_key(row: dict[str, Any]) -> str:
    """Equal for rows that ask the same."""
    return json.dumps([row.get("messages"), row.get("text")], sort_keys=True)
