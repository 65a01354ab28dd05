"""What a task is: prompts, scoring, and prompts held out from training."""

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from asympo.common.jsonl import to_json
from asympo.tasks.config import TaskConfig

_MAX_COLUMNS_CHARS = 4000
KeyT = TypeVar("KeyT", bound=Hashable)
Message = dict[str, Any]
"""One chat message: `role`, `content` (a text or a list of parts), tool calls if there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPrompt:
    """One thing to ask, with what is needed to score responses to it."""

    index: int
    """Position among the trainable prompts, or among the held-out ones."""
    messages: tuple[Message, ...] | None = None
    """Chat messages for the model's template; None when `text` is asked as it is."""
    text: str | None = None
    """Plain text; None when `messages` are given."""
    answer: str
    """The right answer."""
    row: int = 0
    """Where it comes from: line of the file, entry of the data set."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Everything that the row holds, for reward functions and the sample browser."""
    tools: tuple[dict[str, Any], ...] | None = None
    """Tools that the chat template tells the model of."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template."""
    is_prefilled: bool = False
    """Whether the last message is the beginning of the response."""

    @property
    def prefill(self) -> str:
        """The beginning of the response that the prompt ends with; empty where it has none."""
        return str(self.messages[-1]["content"]) if self.is_prefilled and self.messages else ""

    @property
    def plain_messages(self) -> tuple[Message, ...] | None:
        """Messages that say all there is to the prompt; None for a text, with tools, or prefilled."""
        return None if self.is_prefilled or self.tools else self.messages


def own_prompt(columns: Mapping[str, Any]) -> Any:
    """What a row itself asks: a text, a list of messages, or None."""
    return columns.get("prompt") if columns.get("prompt") is not None else columns.get("messages")


def columns_of(task: "Task") -> list[str]:
    """Names of the columns that every trainable row has."""
    names = dict.fromkeys(task.prompt(0).columns)
    for index in range(1, len(task)):
        names = {name: None for name in names if name in task.prompt(index).columns}
    return list(names)


def columns_json(prompt: TaskPrompt) -> str:
    """The columns that are not the prompt itself as one JSON object for people, long values cut off."""
    shown = {name: value for name, value in prompt.columns.items() if name not in ("prompt", "messages")}
    if not shown:
        return ""
    text = to_json(shown)
    if len(text) <= _MAX_COLUMNS_CHARS:
        return text
    each = max(40, _MAX_COLUMNS_CHARS // len(shown))
    cut = {name: _cut(value, each) for name, value in list(shown.items())[: _MAX_COLUMNS_CHARS // 40]}
    return to_json(cut)


def _cut(value: Any, limit: int) -> Any:
    text = value if isinstance(value, str) else to_json(value)
    return value if len(text) <= limit else text[: limit - 1] + "…"


class Task(Protocol):
    """Prompts and their scoring. The same settings give the same task in every process."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 over prompts, answers and settings, where the files lie excepted."""

    def __len__(self) -> int:
        """Number of trainable prompts, at least one."""

    def prompt(self, index: int) -> TaskPrompt:
        """Trainable prompt; raises IndexError outside 0 to len - 1."""

    def held_out(self) -> Sequence[TaskPrompt]:
        """Prompts that are never trained on; neither is any other that asks the same."""

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        """Load what scoring needs; called once in the scoring process, before any time limit runs.

        Raises BadSetting, also when scoring is Python code of the user and `allow_python` is false.
        """

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        """Reward of one response. May raise or hang: the Scorer guards it."""


class SplitPrompts:
    """Prompts that are all known beforehand, some of them held out."""

    def __init__(
        self, rows: Sequence[tuple[Hashable, dict[str, Any]]], *, fraction: float, seed: int
    ) -> None:
        """`rows`: a key, the same for those that ask the same, and a TaskPrompt's arguments without index."""
        self.place(rows, held_out_keys([key for key, _ in rows], fraction=fraction, seed=seed))

    def place(self, rows: Sequence[tuple[Hashable, dict[str, Any]]], chosen: Collection[Hashable]) -> None:
        """Those whose key is among the chosen are held out, the others are trained."""
        self._train: list[TaskPrompt] = []
        self._held_out: list[TaskPrompt] = []
        for key, parts in rows:
            side = self._held_out if key in chosen else self._train
            side.append(TaskPrompt(index=len(side), **parts))

    def digest_with(self, settings: dict[str, Any], *, with_columns: bool = False) -> str:
        """SHA-256 in hexadecimal over what decides what is asked and how it is scored."""
        return content_digest(settings, [*self._train, *self._held_out], with_columns=with_columns)

    def __len__(self) -> int:
        return len(self._train)

    def prompt(self, index: int) -> TaskPrompt:
        """A trainable one; raises IndexError outside 0 to len - 1."""
        if index < 0:
            raise IndexError(index)
        return self._train[index]

    def held_out(self) -> Sequence[TaskPrompt]:
        """Those that are never trained on."""
        return self._held_out


def held_out_keys(keys: Sequence[KeyT], *, fraction: float, seed: int) -> frozenset[KeyT]:
    """The share of the distinct keys to hold out; depends on keys, fraction and seed, not on their order.

    Prompts that ask the same must share a key, so that they fall on the same side. At least one key is
    held out when `fraction` is positive and there are two, and at least one is left.
    """
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}/{key!r}".encode()).digest())
    if fraction <= 0 or len(distinct) < 2:
        return frozenset()
    num_held_out = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    return frozenset(distinct[:num_held_out])


def as_prompt_parts(question: str, *, system_prompt: str | None, config: TaskConfig) -> dict[str, Any]:
    """`messages` or `text` of a TaskPrompt: a chat, or plain text below the system prompt, above the cue."""
    if config.prompt_as == "text":
        return {"text": "\n\n".join(filter(None, (system_prompt, question, config.cue)))}
    system = ({"role": "system", "content": system_prompt},) if system_prompt else ()
    return {"messages": (*system, {"role": "user", "content": question})}


def content_digest(
    settings: dict[str, Any], prompts: Sequence[TaskPrompt], *, with_columns: bool = False
) -> str:
    """SHA-256 in hexadecimal over what decides what is asked and how it is scored."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for prompt in prompts:
        content: list[Any] = [prompt.messages, prompt.text, prompt.answer]
        # A task that has none of them keeps the digest it always had; tools count as they stand in the row.
        stored = prompt.columns.get("tools")
        tools = stored if prompt.tools and isinstance(stored, list) else prompt.tools
        rest = (prompt.columns if with_columns else None, tools, prompt.chat_template_kwargs)
        content += [value for value in (*rest, prompt.is_prefilled) if value]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()
