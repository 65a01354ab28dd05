"""What every convention works on: the responses to one prompt, and what became of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from asympo.common.errors import BadSetting
from asympo.common.records import MAX_ABS_FUNCTION_VALUE, MAX_ABS_REWARD
from asympo.rewards.progress import RunProgress
from asympo.tasks.base import Message, TaskPrompt, own_prompt

FailureKind = Literal["raised", "timed_out", "died", "not_finite", "wrong_result", "does_not_apply", "closed"]
"""A closed set, for metric labels."""
MAX_REASON_CHARS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Responses to one prompt that one call of a function is about."""

    prompt: TaskPrompt
    """What was asked, with the columns of its row."""
    texts: tuple[str, ...]
    """The responses, each with the beginning that the prompt gave it."""
    token_ids: tuple[tuple[int, ...], ...] = ()
    """Their token ids; empty where nobody knows them."""
    progress: RunProgress = field(default_factory=RunProgress)
    """How far the run was."""

    @property
    def columns(self) -> Mapping[str, Any]:
        """The row's; `answer` is among them even where the row calls it otherwise, or has none there."""
        columns = {"answer": self.prompt.answer, **self.prompt.columns}
        is_hidden = columns["answer"] is None and self.prompt.answer
        return columns | {"answer": self.prompt.answer} if is_hidden else columns

    def first_of(self, *names: str) -> Any:
        """The first of these columns that says something."""
        columns = self.columns
        return next((value for name in names if (value := columns.get(name)) is not None), None)

    @property
    def messages(self) -> list[Message]:
        """The conversation as far as the response begins."""
        messages = list(self.prompt.messages or ())
        return messages[:-1] if self.prompt.is_prefilled else messages

    @property
    def is_conversation(self) -> bool:
        """Whether the row itself asks with messages."""
        own = own_prompt(self.prompt.columns)
        return not isinstance(own, str) if own is not None else self.prompt.messages is not None

    @property
    def prompt_text(self) -> str:
        """The prompt as text, whatever it is."""
        own = own_prompt(self.prompt.columns)
        if isinstance(own, str):
            return own
        if self.prompt.text is not None:
            return self.prompt.text
        return "\n".join(str(message.get("content") or "") for message in self.messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionOutcome:
    """What one function says of one response."""

    value: float | None = None
    """None: it does not apply, or failed."""
    kind: FailureKind | None = None
    """Why it failed; None when it did not."""
    reason: str = ""
    """One sentence for people."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What else the function said of the response; numbers are drawn, the rest is shown with it."""


def failed(kind: FailureKind, reason: str) -> FunctionOutcome:
    """A response that has no value, and why."""
    return FunctionOutcome(kind=kind, reason=reason[:MAX_REASON_CHARS])


def outcome_of(
    value: Any, *, may_be_none: bool = False, extras: dict[str, Any] | None = None
) -> FunctionOutcome:
    """A returned value as a number: bools and numpy scalars are; texts, lists and NaN are not."""
    if value is None and may_be_none:
        return FunctionOutcome(extras=extras or {})
    shape = getattr(value, "shape", ())
    if value is None or isinstance(value, str | bytes) or tuple(shape) != ():
        return failed("wrong_result", f"scoring returned {_short(value)}, which is not a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return failed("wrong_result", f"scoring returned {_short(value)}, which is not a number")
    if not math.isfinite(number) or abs(number) > MAX_ABS_REWARD:
        return failed("not_finite", f"reward is {number}, not a finite number of at most {MAX_ABS_REWARD:g}")
    return FunctionOutcome(value=number, extras=extras or {})


def outcomes_of_list(values: Any, asked: Asked, *, may_be_none: bool = False) -> list[FunctionOutcome]:
    """One value for each response; a list of another length says nothing about any of them."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        reason = f"scoring returned {_short(values)}, not a list of {len(asked.texts)} numbers"
        return [failed("wrong_result", reason)] * len(asked.texts)
    if len(values) != len(asked.texts):
        reason = f"scoring returned {len(values)} values for {len(asked.texts)} responses"
        return [failed("wrong_result", reason)] * len(asked.texts)
    return [outcome_of(value, may_be_none=may_be_none) for value in values]


def plain_extra(value: Any) -> Any:
    """A value as a record can hold it: numbers stay numbers, the rest and those too large become text."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) or getattr(value, "shape", None) == ():
        number = float(value)
        return number if abs(number) <= MAX_ABS_FUNCTION_VALUE else str(value)
    return _short(value, limit=2000)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Convention(Protocol):
    """One way of calling."""

    takes_group: bool
    """Whether one call is about all responses to a prompt."""
    wants_token_ids: bool
    """Whether it passes the token ids of the responses on."""

    def arguments(self, asked: Asked, notes: "Notes") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments; what the function does not take is left out by the caller."""

    def read(self, result: Any, asked: Asked, notes: "Notes") -> list[FunctionOutcome]:
        """What the returned value says of each response."""

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        """Names of keyword arguments there are for a row with these columns; None: it takes none."""


@dataclass(kw_only=True)
class Notes:
    """What a function wrote down beside its values."""

    extras: dict[str, list[Any]] = field(default_factory=dict)
    """Name to one value for each response."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers about the whole call."""

    def log_extra(self, name: str, values: Any) -> None:
        """As TRL's `log_extra(column, values)`: one value for each response."""
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        self.extras[str(name)] = [plain_extra(value) for value in values]

    def log_metric(self, name: str, value: Any) -> None:
        """As TRL's `log_metric(name, value)`: one number for the call."""
        number = float(value)
        if not abs(number) <= MAX_ABS_FUNCTION_VALUE:
            raise BadSetting(
                f"log_metric({name!r}, {value!r}) needs a finite number of at most {MAX_ABS_FUNCTION_VALUE:g}"
            )
        self.metrics[str(name)] = number
