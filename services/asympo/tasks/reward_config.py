"""Settings of one reward function; a task has none, one or several."""

import re
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

ConventionName = Literal["trl", "verl", "openrlhf", "plain", "task-prompt"]
BUILT_INS = ("exact", "regex", "math-verify", "reasoning-gym", "length", "format", "overlong", "code", "http")
"""Names that stand for a function of ours; `rewards/built_in.py` makes them."""

_PYTHON = re.compile(r"(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


class RewardConfig(BaseModel):
    """One function, and what its values count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str = Field(description="file.py:name, package.module:name, or a built-in")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z][\w.-]{0,63}$",
        description="its name in metrics and logs; none: the function's own name",
    )
    weight: float = Field(1.0, allow_inf_nan=False, description="factor for its values")
    timeout_seconds: float | None = Field(
        None,
        gt=0,
        description="time limit of one call; none: the generator's reward_timeout_seconds, for code at least "
        "what its row needs",
    )
    convention: ConventionName | None = Field(
        None, description="calling convention; none: recognised from its signature"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for it")

    @property
    def is_python(self) -> bool:
        """Whether it is somebody's own code, which a process loads only where its settings allow it."""
        return self.function not in BUILT_INS

    @property
    def title(self) -> str:
        """What it is called in metrics, logs and on the page."""
        return self.name or self.function.rpartition(":")[2]

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value is not None and value != {}}

    @model_validator(mode="after")
    def _function_is_named(self) -> Self:
        if self.function not in BUILT_INS and not _PYTHON.fullmatch(self.function):
            raise ValueError(
                f"function {self.function!r} is neither file.py:name, package.module:name, nor one of "
                f"{', '.join(BUILT_INS)}"
            )
        if self.convention is not None and not self.is_python:
            raise ValueError(f"{self.function} is built in and has no convention: leave it out")
        return self
