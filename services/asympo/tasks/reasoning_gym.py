"""Any data set of the reasoning-gym library by name: it generates the questions and scores the answers."""

import difflib
import importlib
from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import SplitPrompts, TaskPrompt, as_prompt_parts
from asympo.tasks.config import TaskConfig

DEFAULT_SYSTEM_PROMPT = "Answer the question. Put only the final answer between <answer> and </answer>."


class ReasoningGymTask(SplitPrompts):
    """Generated entries; equal questions are asked once, so that none is both trained and held out."""

    name = "reasoning-gym"

    def __init__(self, config: TaskConfig) -> None:
        self._library = _import_library()
        self._dataset = _create_dataset(self._library, config)
        system_prompt = DEFAULT_SYSTEM_PROMPT if config.system_prompt is None else config.system_prompt
        self._entries: dict[int, dict[str, Any]] = _distinct_entries(self._dataset, config.size)
        rows = []
        for row, entry in self._entries.items():
            question = entry["question"]
            parts = as_prompt_parts(question, system_prompt=system_prompt, config=config)
            # Some data sets have several right answers and give none.
            rows.append((question, {"answer": str(entry.get("answer") or ""), "row": row, **parts}))
        super().__init__(rows, fraction=config.held_out_fraction, seed=config.seed)
        self.digest = self.digest_with(config.model_dump(mode="json"))

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        """Nothing to load: the library came with the prompts."""

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        """The data set's own score of what stands in the last answer tags; of the whole without any."""
        extract = importlib.import_module("reasoning_gym.utils").extract_answer
        answer = extract(response_text)
        given = response_text.strip() if answer is None else answer
        return float(self._dataset.score_answer(given, self._entries[prompt.row]))


def _import_library() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise BadSetting(
            "the reasoning-gym task needs the reasoning-gym library: pip install 'asympo[tasks]' "
            f"(it builds a C extension); the import says: {error}"
        ) from error


def _create_dataset(library: Any, config: TaskConfig) -> Any:
    names = sorted(importlib.import_module("reasoning_gym.factory").DATASETS)
    if config.dataset not in names:
        near = difflib.get_close_matches(str(config.dataset), names, n=1) or names[:1]
        raise BadSetting(
            f"task.dataset {config.dataset} is not among reasoning-gym's {len(names)}; nearest: {near[0]}"
        )
    try:
        return library.create_dataset(
            config.dataset, **({"seed": config.seed, "size": config.size} | config.dataset_options)
        )
    except (
        TypeError,
        ValueError,
        AssertionError,
    ) as error:  # how the library's config classes refuse an option
        raise BadSetting(f"task.dataset_options do not fit data set {config.dataset}: {error}") from error


def _distinct_entries(dataset: Any, size: int) -> dict[int, dict[str, Any]]:
    """Entry number to entry, the first of those with equal questions."""
    entries: dict[int, dict[str, Any]] = {}
    seen: set[str] = set()
    for row in range(size):
        entry = dataset[row]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            entries[row] = entry
    return entries
