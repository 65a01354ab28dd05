"""From a task's prompt to the token ids that the policy is asked."""

from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import TaskPrompt


def render_prompt(task_prompt: TaskPrompt, tokenizer: Any) -> list[int]:
    """Token ids: messages through the chat template up to where the answer begins, text encoded as it is.

    Raises BadSetting when the tokenizer has no chat template or refuses the messages.
    """
    if task_prompt.messages is None:
        return list(tokenizer.encode(task_prompt.text))
    if not getattr(tokenizer, "chat_template", None):
        raise BadSetting(
            "the model has no chat template: set task.prompt_as to text, or choose an instruct model"
        )
    messages = [dict(message) for message in task_prompt.messages]
    try:
        return list(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
    except Exception as error:
        # Templates raise jinja2 errors of their own making, for example when they know no system role.
        if not type(error).__module__.startswith("jinja2"):
            raise
        raise BadSetting(f"the model's chat template refuses prompt {task_prompt.index}: {error}") from error
