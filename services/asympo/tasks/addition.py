"""Addition of two numbers from 1 to 20: small enough to be learnt in minutes on two cores."""

from asympo.rewards.numeric import last_integer
from asympo.tasks.base import SplitPrompts, TaskPrompt, as_prompt_parts
from asympo.tasks.config import TaskConfig

LARGEST_NUMBER = 20
DEFAULT_SYSTEM_PROMPT = "Answer with only the number."


class AdditionTask(SplitPrompts):
    """Every ordered pair is a prompt; both orders of a pair are trained, or both held out."""

    name = "addition"

    def __init__(self, config: TaskConfig) -> None:
        system_prompt = DEFAULT_SYSTEM_PROMPT if config.system_prompt is None else config.system_prompt
        numbers = range(1, LARGEST_NUMBER + 1)
        rows = []
        for row, (a, b) in enumerate((a, b) for a in numbers for b in numbers):
            question = f"What is {a} + {b}? Write the result in digits."
            parts = as_prompt_parts(question, system_prompt=system_prompt, config=config)
            rows.append(((min(a, b), max(a, b)), {"answer": str(a + b), "row": row, **parts}))
        super().__init__(rows, fraction=config.held_out_fraction, seed=config.seed)
        self.digest = self.digest_with({"name": self.name, "num_held_out": len(self.held_out())})

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        """Nothing to load."""

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        """1 if the last integer of the response is the sum, else 0."""
        return float(last_integer(response_text) == int(prompt.answer))
