"""The reward `code`: a response's last program, run in the sandbox against the tests of its row."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from asympo.common.errors import BadSetting
from asympo.rewards.code_tests import COLUMNS, Case, num_starts, read_tests
from asympo.rewards.conventions.base import Asked
from asympo.rewards.sandbox.proof import prove_isolation
from asympo.rewards.sandbox.run import Limits, run_program

START_SECONDS = 0.5
"""To start an interpreter, as long as a busy machine may take for each of many."""
_FENCED = re.compile(r"```[^`\n]+```|```([^`\n]*)\n(.*?)(?:```|\Z)", re.DOTALL)
"""Something short within a line, or a block: what stands behind its opening fence, and its lines."""
_PYTHON = ("python", "python3", "py")


class CodeOptions(BaseModel):
    """Limits of all runs of one response together, and what some of the tests are worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(5.0, gt=0)
    memory_megabytes: int = Field(512, ge=64)
    output_bytes: int = Field(65536, ge=1)
    partial: bool = False


class CodeReward:
    """1 where every test passes, else 0; with `partial`, the share that passes."""

    def __init__(self, options: CodeOptions, columns: Sequence[str] | None) -> None:
        if columns is not None and not set(COLUMNS) & set(columns):
            raise BadSetting(
                f"reward code needs the tests of each row in a column tests or test_list, and the rows have "
                f"{', '.join(columns) or 'none'}: name it in task.columns"
            )
        self._options = options
        prove_isolation()

    def __call__(self, asked: Asked) -> dict[str, Any]:
        tests = read_tests(asked.columns, asked.prompt.row)
        source = last_program(asked.texts[0])
        if source is None:
            return {"reward": 0.0, "passed": 0, "error": "the response has no block of code"}
        cases = [test for test in tests if isinstance(test, Case)]
        asserts = [test for test in tests if isinstance(test, tuple)]
        failures = self._cases(source, cases) if cases else self._asserts(source, asserts)
        passed = sum(failure is None for failure in failures)
        share = passed / len(failures)
        first = next((failure for failure in failures if failure is not None), "")
        return {
            "reward": share if self._options.partial else float(share == 1.0),
            "passed": passed,
            "error": first,
        }

    def _asserts(self, source: str, tests: Sequence[Sequence[str]]) -> list[str | None]:
        """Of each test why it failed: texts of Python that run after the program, in its namespace."""
        texts = [text for test in tests for text in test]
        ended = run_program(source, limits=self._limits(self._options.seconds), tests=texts)
        if not ended.is_done:
            return [ended.reason] * len(tests)
        failures = iter(ended.failures)
        of_tests = [[next(failures) for _ in test] for test in tests]
        return [next((each for each in of_test if each is not None), None) for of_test in of_tests]

    def _cases(self, source: str, cases: Sequence[Case]) -> list[str | None]:
        """Of each case why it failed: what the program is given to read, and what it has to write.

        The time that it takes to start an interpreter is not the program's. Without `partial`, the first
        failure is the last.
        """
        remaining_seconds = self._options.seconds
        failures: list[str | None] = []
        for case in cases:
            ended = run_program(source, limits=self._limits(remaining_seconds), standard_input=case.given)
            remaining_seconds -= ended.seconds
            if remaining_seconds <= 0:
                late = f"the program took more than {self._options.seconds:g} s for all inputs together"
                return failures + [late] * (len(cases) - len(failures))
            wrote = _lines(ended.output) == _lines(case.right)
            failures.append(ended.reason or (None if wrote else f"wrote {ended.output.strip()[:100]!r}"))
            if failures[-1] is not None and not self._options.partial:
                break
        return failures

    def _limits(self, seconds: float) -> Limits:
        return Limits(
            seconds=seconds,
            memory_bytes=self._options.memory_megabytes * 2**20,
            output_bytes=self._options.output_bytes,
        )


def seconds_of_call(options: Mapping[str, Any], columns: Mapping[str, Any]) -> float:
    """How long a response to the row with these columns may take: its programs, and what starts them."""
    return CodeOptions(**options).seconds + START_SECONDS * num_starts(columns)


def last_program(text: str) -> str | None:
    """The last fenced block that is said to be Python, else the last of no named language, closed or not."""
    blocks = [
        (found[1].lower().split(), found[2]) for found in _FENCED.finditer(text) if found[2] is not None
    ]
    named = [source for words, source in blocks if words and words[0] in _PYTHON]
    unnamed = [source for words, source in blocks if not words]
    return next((sources[-1] for sources in (named, unnamed) if sources), None)


def _lines(text: str) -> list[str]:
    """White space at the ends of lines and of the whole says nothing."""
    return [line.rstrip() for line in text.strip().splitlines()]
