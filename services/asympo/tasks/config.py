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

_ONLY_FOR = {
    "path": "jsonl",
    "scoring": "jsonl",
    "pattern": "jsonl",
    "dataset": "reasoning-gym",
    "dataset_options": "reasoning-gym",
    "size": "reasoning-gym",
}


class TaskConfig(BaseModel):
    """Which task, and its options. Built in code or from the `[task]` table of a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["addition", "jsonl", "reasoning-gym"] = Field("addition", description="which task")
    path: OptionalPathOrName = Field(None, description="jsonl: file with one JSON object a line")
    scoring: str = Field(
        "exact",
        pattern=r"^(exact|regex|math-verify|python:[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="jsonl: exact, regex, math-verify, or python:module:function",
    )
    pattern: str | None = Field(
        None, description="jsonl with scoring regex: what extracts the answer; first group or whole match"
    )
    dataset: str | None = Field(None, description="reasoning-gym: name of the data set")
    dataset_options: dict[str, Any] = Field(
        default_factory=dict, description="reasoning-gym: options of the data set"
    )
    size: int = Field(1000, ge=1, description="reasoning-gym: entries to generate, held-out ones included")
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
        description="text: stands after the question and begins the answer, as in Solution:",
    )

    @model_serializer(mode="wrap")
    def _leave_out_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A task without a cue has the digest, and reads, as before there were any."""
        values: dict[str, Any] = handler(self)
        if self.cue is None:
            values.pop("cue", None)
        return values

    @model_validator(mode="after")
    def _options_belong_to_the_task(self) -> Self:
        for option, task in _ONLY_FOR.items():
            if self.name != task and getattr(self, option) != type(self).model_fields[option].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{option} belongs to the {task} task, but name is {self.name}")
        if self.name == "jsonl" and self.path is None:
            raise ValueError("the jsonl task needs path, a file with one JSON object a line")
        if self.name == "reasoning-gym" and self.dataset is None:
            raise ValueError("the reasoning-gym task needs dataset, the name of one of its data sets")
        if {"seed", "size"} & set(self.dataset_options):
            raise ValueError("seed and size are options of the task, not of dataset_options")
        if (self.scoring == "regex") != (self.pattern is not None):
            raise ValueError("scoring regex and pattern go together: give both or neither")
        if self.cue is not None and self.prompt_as != "text":
            raise ValueError("cue is for prompt_as text: a chat template has its own")
        return self
