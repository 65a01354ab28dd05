"""One evaluation: what is asked, how it is sampled, how often."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from asympo.common.errors import BadSetting
from asympo.common.settings import problem_of
from asympo.engines.base import SamplingSettings
from asympo.tasks.base import Task, TaskPrompt
from asympo.tasks.config import TaskConfig

_DECIDES_PROMPTS = ("name", "data", "path", "dataset")
_INHERITED = ("rewards", "scoring", "pattern", "prompt_as", "system_prompt", "cue", "chat_template_kwargs")
"""What prompts of another source take from the run's task where they say nothing themselves."""

_KEEPS_HELD_OUT = ("rewards", "scoring", "pattern", "chat_template_kwargs")
_PART_OF_THE_QUESTION = ("system_prompt", "prompt_as", "cue")
"""By which rows of the tasks `data` and `jsonl` are shared out."""


class EvalConfig(BaseModel):
    """`[[run.evals]]`; keys of `[run.task]` may stand beside these, and say what is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="held-out", pattern=r"^[A-Za-z0-9][\w.-]{0,63}$", description="name of the results"
    )
    task: dict[str, Any] = Field(
        default_factory=dict, description="keys of a task; none: the run's own held-out prompts"
    )
    samples: int = Field(default=1, ge=1, le=1024, description="responses to each prompt, k of mean@k")
    every: int = Field(default=1, ge=1, description="evaluate every Nth policy")
    max_prompts: int = Field(
        default=200, ge=1, description="largest number of prompts, the same ones each time"
    )
    temperature: float | None = Field(
        default=None, ge=0.0, le=10.0, description="none: greedy for one sample, otherwise as the run samples"
    )
    top_p: float | None = Field(default=None, gt=0.0, le=1.0, description="none: as the run samples")
    max_tokens: int | None = Field(default=None, ge=1, description="none: as the run samples")
    stop: tuple[str, ...] | None = Field(default=None, description="none: as the run samples")
    show_prompts: int = Field(
        default=4, ge=0, le=32, description="prompts whose answers people can read, the same ones each time"
    )
    right_at: float = Field(default=1.0, description="a response with this reward is right, for pass@k")

    @model_validator(mode="before")
    @classmethod
    def _task_keys_may_stand_beside(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        beside = {key: values[key] for key in values if key in TaskConfig.model_fields and key != "name"}
        rest = {key: value for key, value in values.items() if key not in beside}
        return {**rest, "task": {**rest.get("task", {}), **beside}} if beside else values

    @field_validator("task")
    @classmethod
    def _is_a_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        if _says_what_is_asked(values):
            TaskConfig(**values)
            return values
        changed = set(values) - {*_KEEPS_HELD_OUT, *_PART_OF_THE_QUESTION}
        for key in TaskConfig.model_fields:
            if key in changed:
                raise ValueError(
                    f"{key} may decide which prompts are held out, and others have been trained: leave it "
                    "out, or give the evaluation data of its own"
                )
        return values

    @property
    def asks_the_run(self) -> bool:
        """Whether it uses the run's held-out prompts rather than data of its own."""
        return not _says_what_is_asked(self.task)

    def task_config(self, of_run: TaskConfig) -> TaskConfig:
        """The task of this evaluation, for a run with this one. Raises BadSetting."""
        if not self.task:
            return of_run
        if not self.asks_the_run:
            inherited = of_run.model_dump(include=set(_INHERITED))
            if {"scoring", "pattern", "rewards"} & set(self.task):
                inherited = {
                    key: inherited[key] for key in inherited if key not in ("scoring", "pattern", "rewards")
                }
            values = {**inherited, "held_out_fraction": 0.0, **self.task}
        else:
            values = {**of_run.model_dump(), **self.task}
        try:
            config = TaskConfig(**values)
        except ValidationError as error:
            raise BadSetting(f"the evaluation {self.name}: {problem_of(error)}") from error
        if self.asks_the_run:
            self._check_same_are_held_out(config, of_run)
        return config

    def _check_same_are_held_out(self, config: TaskConfig, of_run: TaskConfig) -> None:
        is_named = of_run.held_out_data is not None or of_run.held_out_split is not None
        if of_run.name not in ("data", "jsonl") or is_named:
            return
        for key in _PART_OF_THE_QUESTION:
            if getattr(config, key) != getattr(of_run, key):
                raise BadSetting(
                    f"the evaluation {self.name} has another {key} than the run, which decides what its "
                    f"{of_run.name} task holds out, and other prompts have been trained: leave it out, or "
                    "give the evaluation data of its own"
                )

    def choose(self, task: Task) -> list[TaskPrompt]:
        """The prompts to ask: those of another source, or the run's held-out ones. Raises BadSetting."""
        prompts = list(task.held_out())
        if not prompts and not self.asks_the_run:
            prompts = [task.prompt(index) for index in range(len(task))]
        if not prompts:
            raise BadSetting(
                f"the evaluation {self.name} has no prompts: the run holds none out, so give it data of "
                "its own"
            )
        if len(prompts) <= self.max_prompts:
            return prompts
        step = len(prompts) / self.max_prompts
        return [prompts[int(number * step)] for number in range(self.max_prompts)]

    def sampling(self, of_run: SamplingSettings) -> SamplingSettings:
        """How it samples, in a run that samples so."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.samples == 1 else of_run.temperature
        return SamplingSettings(
            temperature=temperature,
            top_p=of_run.top_p if self.top_p is None else self.top_p,
            max_tokens=self.max_tokens or of_run.max_tokens,
            min_tokens=0 if self.max_tokens else of_run.min_tokens,
            stop=of_run.stop if self.stop is None else self.stop,
        )


def check_names(evals: tuple[EvalConfig, ...]) -> tuple[EvalConfig, ...]:
    """Raises ValueError when two evaluations have one name."""
    names = [each.name for each in evals]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two evaluations have the name {twice}: give each a name of its own")
    return evals


def _says_what_is_asked(task: dict[str, Any]) -> bool:
    return any(task.get(key) is not None for key in _DECIDES_PROMPTS)
