"""The tests of a row in one of two shapes: Python that runs after a program, or what it reads and writes."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("tests", "test_list")
"""Where the tests of a row may be."""
SHAPES = (
    'give Python code or a list of it, {"inputs": […], "outputs": […]}, or a list of '
    '{"input": …, "output": …}'
)
_CALLED = ("functional", "function_call")
"""What data sets call a test that calls a function."""
_DEFINITIONS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Import, ast.ImportFrom, ast.Pass),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What a program is given to read, and what it has to write."""

    given: str
    right: str


def read_tests(columns: Mapping[str, Any], row: int) -> list[str] | list[Case]:
    """Raises ValueError for what is neither shape, or would pass or fail whatever the program does."""
    tests = _tests_of(columns)
    if not tests:
        raise ValueError(f"row {row} has no tests")
    where = f"the tests of row {row}"
    if isinstance(tests, str | list) and not _are_cases(tests):
        return _code(tests, where)
    if isinstance(tests, dict):
        if tests.get("fn_name"):
            raise ValueError(f"{where} call the function {tests['fn_name']}: write each as an assert")
        inputs, outputs = tests.get("inputs") or [], tests.get("outputs") or []
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise ValueError(f"{where} are {_short(tests)}: {SHAPES}")
        if not inputs or len(inputs) != len(outputs):
            raise ValueError(
                f"{where} have {len(inputs)} inputs and {len(outputs)} outputs: give one for each"
            )
        pairs = list(zip(inputs, outputs, strict=True))
    elif _are_cases(tests):
        pairs = [_pair(each, where) for each in tests]
    else:
        raise ValueError(f"{where} are {_short(tests)}: {SHAPES}")
    return [Case(given=_text(given, where), right=_text(right, where)) for given, right in pairs]


def num_starts(columns: Mapping[str, Any]) -> int:
    """How many interpreters a program needs for its tests."""
    tests = _tests_of(columns)
    cases = tests.get("inputs") if isinstance(tests, dict) else tests if _are_cases(tests) else None
    return len(cases) if isinstance(cases, list) else 1


def _tests_of(columns: Mapping[str, Any]) -> Any:
    """Also a list or table that the data set keeps as JSON text."""
    tests = next((columns[name] for name in COLUMNS if columns.get(name)), None)
    if isinstance(tests, str) and tests.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(tests)
        except (ValueError, RecursionError):
            return tests
    return tests


def _are_cases(tests: Any) -> bool:
    return isinstance(tests, list) and bool(tests) and all(isinstance(each, dict) for each in tests)


def _pair(case: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    if case.get("fn_name") or case.get("testtype") in _CALLED or case.get("type") in _CALLED:
        raise ValueError(f"{where} call a function: write each as an assert")
    if "input" not in case or "output" not in case:
        raise ValueError(f"{where} hold {_short(case)}, which lacks input or output: {SHAPES}")
    return case["input"], case["output"]


def _text(value: Any, where: str) -> str:
    """A text, its lines, or a number."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} hold {_short(value)}: give what the program reads or writes as a text")
    return str(value)


def _code(tests: str | Sequence[Any], where: str) -> list[str]:
    texts = [tests] if isinstance(tests, str) else list(tests)
    bodies = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where} hold {_short(text)}, which is no text: {SHAPES}")
        body = _statements(text)
        if body and all(_is_value(statement) for statement in body):
            raise ValueError(f"{where} hold {_short(text)}, which passes for every program: {SHAPES}")
        bodies.append(body)
    if all(body is not None and all(map(_checks_nothing, body)) for body in bodies):
        raise ValueError(f"{where} define {_short(texts[0])} and call nothing: end them with what checks")
    return texts


def _statements(text: str) -> list[ast.stmt] | None:
    """None for what is no Python: it fails for every program, and the response says why."""
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_value(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _checks_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return _is_value(ast.Expr(statement.value))
    return isinstance(statement, _DEFINITIONS) or _is_value(statement)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
