"""`f(prompts, completions, completion_ids, **columns) -> list[float | None]`: all responses in one call."""

import copy
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from asympo.rewards.conventions.base import Asked, FunctionOutcome, Notes, outcomes_of_list
from asympo.rewards.progress import RunProgress

_NOT_COLUMNS = ("prompt", "completion", "completion_ids", "prompts", "completions")
_STAND_INS = ("trainer_state", "log_extra", "log_metric")


class Trl:
    """Conversations are lists of messages, other prompts and responses are texts."""

    takes_group = True
    wants_token_ids = True

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        prompt: Any = asked.prompt_text
        completions: list[Any] = list(asked.texts)
        if asked.is_conversation:
            prompt = asked.messages
            completions = [[{"role": "assistant", "content": text}] for text in asked.texts]
        columns = {name: value for name, value in asked.columns.items() if name not in _NOT_COLUMNS}
        return (), {
            **{name: _for_each(value, asked) for name, value in columns.items()},
            "prompts": _for_each(prompt, asked),
            "completions": completions,
            "completion_ids": [list(ids) for ids in asked.token_ids] or _for_each([], asked),
            "trainer_state": trainer_state(asked.progress),
            "log_extra": notes.log_extra,
            "log_metric": notes.log_metric,
        }

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        outcomes = outcomes_of_list(result, asked, may_be_none=True)
        # A number about the whole call is one about each of its responses.
        extras = [
            {
                **notes.metrics,
                **{name: values[place] for name, values in notes.extras.items() if place < len(values)},
            }
            for place in range(len(outcomes))
        ]
        return [
            dataclasses.replace(outcome, extras=extra) if extra else outcome
            for outcome, extra in zip(outcomes, extras, strict=True)
        ]

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return {*columns, "answer", "prompts", "completions", "completion_ids", *_STAND_INS}


def _for_each(value: Any, asked: Asked) -> list[Any]:
    """A copy for each response: what a function changes of the one is not another's."""
    return [copy.deepcopy(value) for _ in asked.texts]


def trainer_state(progress: RunProgress) -> Any:
    """What functions read of TRL's trainer, by its names; the step is that of the policy that answered."""
    return SimpleNamespace(
        global_step=progress.step,
        max_steps=progress.total_steps,
        epoch=float(progress.epoch),
        num_train_epochs=progress.num_epochs or 1,
        log_history=[],
        best_metric=None,
        is_local_process_zero=True,
        is_world_process_zero=True,
    )
