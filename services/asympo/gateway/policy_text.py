"""The run's task and the policy's own template: prompts as the policy is asked them."""

import threading
from typing import Any

from asympo.common.errors import BadModel, BadSetting
from asympo.common.rollout_log import RunConfig
from asympo.tasks import of_run
from asympo.tasks.base import Task, TaskPrompt
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer import load_tokenizer, open_tokenizer
from asympo.tasks.tokenizer_digest import tokenizer_digest


class PromptUnfit(BadSetting):
    """This one prompt cannot be rendered; others can."""


class PolicyText:
    """Loads tokenizer and task when they are first needed; safe to share between threads."""

    def __init__(self, *, config: RunConfig, model: str | None, task_path: str | None) -> None:
        self._config = config
        self._model = model or config.model
        self._task_path = task_path
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._task: Task | None = None

    @property
    def tokenizer(self) -> Any:
        """That of the run, its digest checked; raises BadModel and RunConfigMismatch."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._quick() or self._whole()
            return self._tokenizer

    def _quick(self) -> Any:
        """From the model's files alone, if that makes the run's ids: importing transformers takes 300 MiB."""
        try:
            tokenizer = open_tokenizer(self._model)
        except BadModel:
            return None
        return tokenizer if tokenizer_digest(tokenizer) == self._config.tokenizer_digest else None

    def _whole(self) -> Any:
        tokenizer = load_tokenizer(self._model)
        of_run.check_tokenizer_digest(self._config, tokenizer)
        return tokenizer

    @property
    def task(self) -> Task:
        """That of the run, its digest checked; raises BadSetting and RunConfigMismatch."""
        with self._lock:
            if self._task is None:
                settings = of_run.task_config_of(self._config, task_path=self._task_path)
                self._task = of_run.load_same_task(self._config, settings)
            return self._task

    def prompt(self, index: int) -> tuple[TaskPrompt, list[int], str]:
        """One of the task's prompts with its token ids and text; raises PromptUnfit as well."""
        prompt, tokenizer = self.task.prompt(index), self.tokenizer
        try:
            token_ids = render_prompt(prompt, tokenizer)
            return prompt, token_ids, tokenizer.decode(token_ids, skip_special_tokens=False)
        except Exception as error:
            # A template is somebody's own code: what it raises is about this prompt, not about the process.
            raise PromptUnfit(f"prompt {index} cannot be rendered: {error}") from error

    def messages(self, messages: list[dict[str, str]]) -> tuple[list[int], str]:
        """Token ids and text of a conversation that somebody brings along."""
        prompt = TaskPrompt(index=0, messages=tuple(messages), answer="")
        token_ids = render_prompt(prompt, self.tokenizer)
        return token_ids, self.tokenizer.decode(token_ids, skip_special_tokens=False)
