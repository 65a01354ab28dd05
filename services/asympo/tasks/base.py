"""What a task is: prompts, scoring, and prompts held out from training."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from asympo.tasks.config import TaskConfig

KeyT = TypeVar("KeyT", bound=Hashable)
Message = dict[str, str]
"""One chat message: `role` and `content`."""


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
        chosen = held_out_keys([key for key, _ in rows], fraction=fraction, seed=seed)
        self._train: list[TaskPrompt] = []
        self._held_out: list[TaskPrompt] = []
        for key, parts in rows:
            side = self._held_out if key in chosen else self._train
            side.append(TaskPrompt(index=len(side), **parts))

    def digest_with(self, settings: dict[str, Any]) -> str:
        """SHA-256 in hexadecimal over what decides what is asked and how it is scored."""
        return content_digest(settings, [*self._train, *self._held_out])

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


def content_digest(settings: dict[str, Any], prompts: Sequence[TaskPrompt]) -> str:
    """SHA-256 in hexadecimal over what decides what is asked and how it is scored."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for prompt in prompts:
        content = [prompt.messages, prompt.text, prompt.answer]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()
