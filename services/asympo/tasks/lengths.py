"""Prompts that leave no room for a response, and what a chat template changes about them."""

from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import Task, TaskPrompt
from asympo.tasks.render import render_prompt

_MAX_COMPARED = 64


def too_long(task: Task, tokenizer: Any, *, max_prompt_tokens: int) -> list[tuple[int, int]]:
    """(number, tokens) of the trainable prompts that are longer, in order."""
    found = []
    for index in range(len(task)):
        prompt = task.prompt(index)
        # A token is at least a byte, so most prompts are known to fit without being encoded.
        if _num_bytes(prompt) + _FRAME_BYTES <= max_prompt_tokens:
            continue
        num_tokens = len(render_prompt(prompt, tokenizer))
        if num_tokens > max_prompt_tokens:
            found.append((index, num_tokens))
    return found


_FRAME_BYTES = 4096
"""More than what a chat template puts around a conversation without tools."""


def _num_bytes(prompt: TaskPrompt) -> int:
    if prompt.text is not None:
        return len(prompt.text.encode())
    return len(str([prompt.messages, prompt.tools]).encode())


def changes(task: Task, tokenizer: Any) -> list[str]:
    """What the model does not see as it stands in the rows: a sentence for each kind, with an example."""
    found: dict[str, str] = {}
    for index in range(min(len(task), _MAX_COMPARED)):
        prompt = task.prompt(index)
        try:
            seen = tokenizer.decode(render_prompt(prompt, tokenizer))
        except BadSetting:
            continue
        for kind, sentence in _changes_of(prompt, seen):
            found.setdefault(kind, sentence)
    return list(found.values())


def _changes_of(prompt: TaskPrompt, seen: str) -> list[tuple[str, str]]:
    where = f"of prompt {prompt.index} (row {prompt.row})"
    if prompt.text is not None:
        is_same = seen.endswith(prompt.text)
        return [] if is_same else [("text", f"the tokenizer changes the text {where}")]
    found = []
    for message in prompt.messages or ():
        content, role = message.get("content"), message["role"]
        parts = content if isinstance(content, list) else [{"text": content}]
        for text in (str(part["text"]) for part in parts if part.get("text")):
            if text in seen:
                continue
            if text.strip() in seen:
                found.append(
                    ("space", f"the chat template strips white space around the {role} message {where}")
                )
            else:
                sentence = (
                    f"the chat template or the tokenizer changes or leaves out the {role} message {where}"
                )
                found.append((role, sentence))
    names = [str(tool.get("function", tool).get("name", "")) for tool in prompt.tools or ()]
    if any(name not in seen for name in names):
        found.append(("tools", f"the chat template leaves out tools {where}"))
    return found
