"""From a task's prompt to the token ids that the policy is asked."""

from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import TaskPrompt
from asympo.tasks.encoding import TextRefused, break_up, encode_broken, encode_prompt, is_template_error


def render_prompt(task_prompt: TaskPrompt, tokenizer: Any) -> list[int]:
    """Token ids: messages through the chat template up to where the answer begins, text encoded as it is.

    Control tokens come from the template, or stand in a text prompt; in messages they are plain characters.
    Raises BadSetting when the tokenizer has no chat template, or refuses the messages or the text.
    """
    try:
        if task_prompt.messages is None:
            assert task_prompt.text is not None
            return encode_prompt(task_prompt.text, tokenizer, is_own=True)
        return _render_messages(task_prompt, tokenizer)
    except TextRefused as error:
        raise BadSetting(f"prompt {task_prompt.index} has no token ids: {error}") from error


def _render_messages(task_prompt: TaskPrompt, tokenizer: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise BadSetting(
            "the model has no chat template: set task.prompt_as to text, or choose an instruct model"
        )
    messages = [dict(message) for message in task_prompt.messages or ()]
    tools = list(task_prompt.tools) if task_prompt.tools else None
    broken = _broken([messages, tools], tokenizer)
    is_plain = broken == [messages, tools]
    options: dict[str, Any] = {**task_prompt.chat_template_kwargs, **({"tools": broken[1]} if tools else {})}
    options |= (
        {"continue_final_message": True} if task_prompt.is_prefilled else {"add_generation_prompt": True}
    )
    try:
        rendered = tokenizer.apply_chat_template(broken[0], tokenize=is_plain, return_dict=False, **options)
    except Exception as error:
        # Templates raise jinja2 errors of their own making, for example when they know no system role.
        if not is_template_error(error):
            raise
        raise BadSetting(f"the model's chat template refuses prompt {task_prompt.index}: {error}") from error
    return list(rendered) if is_plain else encode_broken(rendered, tokenizer)


def _broken(value: Any, tokenizer: Any) -> Any:
    """The structure with every text in it broken up where it is spelt like a control token."""
    if isinstance(value, str):
        return break_up(value, tokenizer)
    if isinstance(value, dict):
        return {key: _broken(each, tokenizer) for key, each in value.items()}
    return [_broken(each, tokenizer) for each in value] if isinstance(value, list) else value
