"""Addition of two numbers from 1 to 20: small enough to be learnt in minutes on two cores."""

from collections.abc import Sequence

from asympo.rewards.numeric import last_integer
from asympo.tasks.base import TaskPrompt, as_prompt_parts, content_digest, held_out_keys
from asympo.tasks.config import TaskConfig

LARGEST_NUMBER = 20
DEFAULT_SYSTEM_PROMPT = "Answer with only the number."


class AdditionTask:
    """Every ordered pair is a prompt; both orders of a pair are trained, or both held out."""

    name = "addition"

    def __init__(self, config: TaskConfig) -> None:
        system_prompt = DEFAULT_SYSTEM_PROMPT if config.system_prompt is None else config.system_prompt
        numbers = range(1, LARGEST_NUMBER + 1)
        unordered = [(a, b) for a in numbers for b in numbers if a <= b]
        chosen = held_out_keys(unordered, fraction=config.held_out_fraction, seed=config.seed)
        self._train: list[TaskPrompt] = []
        self._held_out: list[TaskPrompt] = []
        for row, (a, b) in enumerate((a, b) for a in numbers for b in numbers):
            side = self._held_out if (min(a, b), max(a, b)) in chosen else self._train
            parts = as_prompt_parts(
                f"What is {a} + {b}? Write the result in digits.",
                system_prompt=system_prompt,
                prompt_as=config.prompt_as,
            )
            side.append(TaskPrompt(index=len(side), answer=str(a + b), row=row, **parts))
        self.digest = content_digest(
            {"name": self.name, "num_held_out": len(self._held_out)}, [*self._train, *self._held_out]
        )

    def __len__(self) -> int:
        return len(self._train)

    def prompt(self, index: int) -> TaskPrompt:
        if index < 0:
            raise IndexError(index)
        return self._train[index]

    def held_out(self) -> Sequence[TaskPrompt]:
        return self._held_out

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        """Nothing to load."""

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        """1 if the last integer of the response is the sum, else 0."""
        return float(last_integer(response_text) == int(prompt.answer))
