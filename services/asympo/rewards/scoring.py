"""How a response is compared with the right answer; each builder returns `score(prompt, response_text)`."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import TaskPrompt

Score = Callable[[TaskPrompt, str], float]

MATH_TIMEOUT_SECONDS = 3
"""Limit of math-verify's own alarm; an expression that takes longer counts as wrong."""


BY_ANSWER = ("exact", "regex", "math-verify")
"""Those that need an answer."""


def exact_match(prompt: TaskPrompt, response_text: str) -> float:
    """1 if the response is the answer, white space around it aside, with what the prompt began or without."""
    answer = _answer_of(prompt)
    return float(answer in (response_text.strip(), response_text.removeprefix(prompt.prefill).strip()))


def regex_match(pattern: str) -> Score:
    """Score by what the last match of `pattern` extracts: its first group, or all of it if it has none."""
    compiled = compile_pattern(pattern)
    group = 1 if compiled.groups else 0

    def score(prompt: TaskPrompt, response_text: str) -> float:
        answer = _answer_of(prompt)
        matches = [match.group(group) or "" for match in compiled.finditer(response_text)]
        return float(bool(matches) and matches[-1].strip() == answer)

    return score


def _answer_of(prompt: TaskPrompt) -> str:
    """Raises ValueError where there is none: a response that says nothing would be right."""
    answer = prompt.answer.strip()
    if not answer:
        raise ValueError(f"row {prompt.row} has no answer: set task.columns.answer to the column that has it")
    return answer


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Raises BadSetting when it is no regular expression."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise BadSetting(f"task.pattern {pattern!r} is not a regular expression: {error}") from error


def math_verify_match() -> Score:
    """Score by mathematical equality, decided by the math-verify library.

    Uses SIGALRM, so only in the main thread of a process.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise BadSetting(
            "scoring math-verify needs the math-verify library: pip install 'asympo[tasks]'"
        ) from error

    def score(prompt: TaskPrompt, response_text: str) -> float:
        is_marked = "$" in prompt.answer or "\\boxed" in prompt.answer
        answer = parse(
            prompt.answer if is_marked else f"${prompt.answer}$", parsing_timeout=MATH_TIMEOUT_SECONDS
        )
        if not answer:
            raise ValueError(
                f"math-verify finds no mathematics in answer {prompt.answer!r} of row {prompt.row}"
            )
        # Nothing tells a base model to stop: it answers, then invents a problem of its own and answers that.
        answered = response_text if prompt.text is None else up_to_first_box(response_text)
        given = parse(answered, parsing_timeout=MATH_TIMEOUT_SECONDS)
        return float(verify(answer, given, timeout_seconds=MATH_TIMEOUT_SECONDS))

    return score


def up_to_first_box(text: str) -> str:
    """The text as far as the end of the line with its first whole \\boxed{...}; all of it without one."""
    begin = text.find("\\boxed{")
    depth = 0
    for position in range(begin, len(text)) if begin >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if text[position] == "}" and depth == 0:
            return text[:position] + text[position:].partition("\n")[0]
    return text


def python_function(scoring: str) -> Score:
    """The user's own function, from `python:module:function`; called as `function(prompt, response_text)`.

    Modules are found on PYTHONPATH and in the working directory. Raises BadSetting.
    """
    _, module_name, function_name = scoring.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BadSetting(
            f"task.scoring {scoring}: module {module_name} does not load: {type(error).__name__}: {error}"
        ) from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise BadSetting(f"task.scoring {scoring}: module {module_name} has no function {function_name}")
    return function
