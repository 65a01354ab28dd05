"""Settings of a task; part of the run config, so that every process asks and scores the same."""

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from asympo.common.paths import OptionalPathOrName
from asympo.tasks.reward_config import RewardConfig

ENVIRONMENTS = ("verifiers", "trl-environment")
"""Tasks whose episodes are played elsewhere, through sessions."""
_ONLY_FOR = {
    "path": ("jsonl", *ENVIRONMENTS),
    "scoring": ("jsonl", "data"),
    "pattern": ("jsonl", "data"),
    "dataset": ("reasoning-gym",),
    "dataset_options": ("reasoning-gym",),
    "size": ("reasoning-gym",),
    **dict.fromkeys(("environment", "environment_args"), ENVIRONMENTS),
    "environment_rows": ("trl-environment",),
    **dict.fromkeys(
        ("data", "subset", "split", "revision", "held_out_data", "held_out_split", "columns"), ("data",)
    ),
    **dict.fromkeys(
        ("prompt_template", "prefill", "chat_template_kwargs", "weight_column", "too_long"), ("data",)
    ),
}
_NEW_SINCE_RUNS_EXIST = (
    *("cue", "rewards", "data", "subset", "split", "revision", "held_out_data", "held_out_split", "columns"),
    *("prompt_template", "prefill", "chat_template_kwargs", "weight_column", "left_out", "too_long"),
    *("order", "environment", "environment_args", "environment_rows"),
)
"""Left out where they say nothing, so that a run created before they existed reads as it did."""


class TaskConfig(BaseModel):
    """Which task, and its options. Built in code or from the `[task]` table of a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["addition", "jsonl", "data", "reasoning-gym", "verifiers", "trl-environment"] = Field(
        "addition", description="which task; if data is given, it is data"
    )
    rewards: tuple[RewardConfig, ...] = Field(
        (), description="functions whose weighted sum is the reward; none: the task's own scoring"
    )
    path: OptionalPathOrName = Field(
        None, description="jsonl: file with one JSON object a line; verifiers: the environment's rows"
    )
    data: OptionalPathOrName = Field(
        None,
        description="JSONL, CSV, Parquet, a folder written by save_to_disk, or owner/name on the Hugging "
        "Face hub",
    )
    subset: str | None = Field(None, description="data: subset (configuration) of a data set on the hub")
    split: str = Field("train", description="data: split of a data set that has several")
    revision: str | None = Field(None, description="data: commit, tag or branch of a data set on the hub")
    held_out_data: OptionalPathOrName = Field(
        None, description="data: where held-out rows are, if not among the data"
    )
    held_out_split: str | None = Field(
        None, description="data: split that is held out; none: a share of split"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="data: name of a column to where it comes from: a column, a.b inside one, or a template",
    )
    prompt_template: str | None = Field(
        None, description="data: Jinja template of the prompt over the row's columns"
    )
    prefill: bool = Field(
        False, description="data: a last assistant message is the beginning of the response"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="data: arguments of the chat template, such as enable_thinking"
    )
    weight_column: str | None = Field(
        None,
        description="data: column that says how often a row is asked in an epoch, a whole number; none: once",
    )
    order: Literal["uniform", "by-success"] = Field(
        "uniform",
        description="uniform: every prompt in every epoch; by-success: those that are always or never right "
        "only in every second, fourth, then eighth",
    )
    too_long: Literal["leave-out", "refuse"] = Field(
        "leave-out",
        description="data: what happens to prompts longer than the model's context minus max_tokens",
    )
    left_out: tuple[int, ...] = Field(
        (), description="numbers of trainable prompts that are not asked; the learner fills this in"
    )
    scoring: str = Field(
        "exact",
        pattern=r"^(exact|regex|math-verify|python:[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="jsonl, data: exact, regex, math-verify, or python:module:function",
    )
    pattern: str | None = Field(
        None, description="with scoring regex: what extracts the answer; first group or whole match"
    )
    dataset: str | None = Field(None, description="reasoning-gym: name of the data set")
    dataset_options: dict[str, Any] = Field(
        default_factory=dict, description="reasoning-gym: options of the data set"
    )
    size: int = Field(1000, ge=1, description="reasoning-gym: entries to generate, held-out ones included")
    environment: str | None = Field(
        None, description="verifiers: name of an installed environment; trl-environment: module:factory"
    )
    environment_args: dict[str, Any] = Field(
        default_factory=dict,
        description="of load_environment, the [env] block of verifiers.v1, or the factory's",
    )
    environment_rows: OptionalPathOrName = Field(
        None, description="trl-environment: file with one JSON object a line, each given to reset"
    )
    held_out_fraction: float = Field(0.2, ge=0, lt=1, description="share of the prompts never trained on")
    seed: int = Field(0, ge=0, description="decides which prompts are held out, and what is generated")
    system_prompt: str | None = Field(
        None, description="system message; if not given, the task's own; if empty, none"
    )
    prompt_as: Literal["chat", "text"] = Field(
        "chat", description="chat: through the model's template; text: as it is, for base models"
    )
    cue: str | None = Field(
        None,
        min_length=1,
        description="text: stands after the question and begins the answer, such as Solution:",
    )

    @property
    def is_environment(self) -> bool:
        """Whether whole episodes are played and scored elsewhere, through sessions."""
        return self.name in ENVIRONMENTS

    @model_serializer(mode="wrap")
    def _leave_out_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in _NEW_SINCE_RUNS_EXIST:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                values.pop(name, None)
        return values

    @model_validator(mode="before")
    @classmethod
    def _data_says_which_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("data") is not None and "name" not in values:
            return {**values, "name": "data"}
        return values

    @model_validator(mode="after")
    def _options_belong_to_the_task(self) -> Self:
        for option, tasks in _ONLY_FOR.items():
            if self.name not in tasks and getattr(self, option) != type(self).model_fields[
                option
            ].get_default(call_default_factory=True):
                raise ValueError(
                    f"{option} belongs to the {' and '.join(tasks)} task, but name is {self.name}"
                )
        if self.name == "jsonl" and self.path is None:
            raise ValueError("the jsonl task needs path, a file with one JSON object a line")
        if self.name == "data" and self.data is None:
            raise ValueError("the data task needs data, a file, a folder, or owner/name on the hub")
        if self.held_out_data is not None and self.held_out_split is not None:
            raise ValueError("held_out_data and held_out_split are two places for the same rows: give one")
        titles = [reward.title for reward in self.rewards]
        if len(set(titles)) < len(titles):
            twice = next(title for title in titles if titles.count(title) > 1)
            raise ValueError(f"two rewards have the name {twice}: give each a name of its own")
        if self.name == "reasoning-gym" and self.dataset is None:
            raise ValueError("the reasoning-gym task needs dataset, the name of one of its data sets")
        if self.is_environment and self.environment is None:
            raise ValueError(f"the {self.name} task needs environment, the name of one")
        if self.name == "trl-environment" and self.environment_rows is None and self.path is None:
            raise ValueError("the trl-environment task needs environment_rows, a file of JSON lines")
        if self.is_environment and self.rewards:
            raise ValueError("an environment has rewards of its own: leave rewards out")
        if {"seed", "size"} & set(self.dataset_options):
            raise ValueError("seed and size are options of the task, not of dataset_options")
        if (self.scoring == "regex") != (self.pattern is not None):
            raise ValueError("scoring regex and pattern go together: give both or neither")
        if self.cue is not None and self.prompt_as != "text":
            raise ValueError("cue needs prompt_as = text: a chat template has a cue of its own")
        return self
