"""The tests of a row in one of two shapes: Python that runs after a program, or what it reads and writes."""

import ast
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asympo.rewards.code_checks import Checks

COLUMNS = ("tests", "test_list")
"""Where the tests of a row may be."""
SHAPES = (
    'give Python code or a list of it, {"inputs": […], "outputs": […]}, or a list of '
    '{"input": …, "output": …}'
)
_CALLED = ("functional", "function_call")
"""What data sets call a test that calls a function."""
_PACKED = re.compile(r"e[AFJN][\w+/]{30,}={0,2}")
"""What zlib packed, as base64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What a program is given to read, and what it has to write."""

    given: str
    right: str


def read_tests(columns: Mapping[str, Any], row: int) -> list[tuple[str, ...]] | list[Case]:
    """Of code, each test is texts that run in turn, each compiled on its own.

    Raises ValueError for what is neither shape, or would pass or fail whatever the program does.
    """
    column, tests = _tests_of(columns)
    where = f"the tests of row {row}"
    if not tests:
        raise ValueError(f"row {row} has no tests")
    if isinstance(tests, str) and _PACKED.fullmatch(tests.strip()):
        raise ValueError(
            f"{where} are packed in column {column}, like LiveCodeBench's private_test_cases, and are not "
            "unpacked here, as pickle may run code: put the JSON text that is inside into the column"
        )
    if isinstance(tests, str | list) and not _are_cases(tests):
        return _code(tests, where)
    if isinstance(tests, dict):
        pairs = _pairs(tests, where)
    elif _are_cases(tests):
        pairs = [_pair(each, where) for each in tests]
    else:
        raise ValueError(f"{where} are {_short(tests)}: {SHAPES}")
    _refuse_calls(_decoded(columns.get("metadata")), where)
    return [Case(given=_text(given, where), right=_text(right, where)) for given, right in pairs]


def num_starts(columns: Mapping[str, Any]) -> int:
    """How many interpreters a program needs for its tests."""
    _, tests = _tests_of(columns)
    cases = _listed(tests, "input") if isinstance(tests, dict) else tests if _are_cases(tests) else None
    return len(cases) if isinstance(cases, list) else 1


def _tests_of(columns: Mapping[str, Any]) -> tuple[str, Any]:
    """The first column that has any, and what it holds."""
    found = ((name, _decoded(columns.get(name))) for name in COLUMNS)
    return next(((name, tests) for name, tests in found if tests), ("", None))


def _decoded(value: Any) -> Any:
    """Also a list or table that the data set keeps as JSON text, or a list of tables that are such texts."""
    if isinstance(value, list) and value and all(map(_is_json_table, value)):
        tables = [_decoded(each) for each in value]
        return tables if _are_cases(tables) else value
    if isinstance(value, str) and (value.lstrip()[:1] in ("{", "[") or value.strip() == "null"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_json_table(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")


def _are_cases(tests: Any) -> bool:
    return isinstance(tests, list) and bool(tests) and all(isinstance(each, dict) for each in tests)


def _listed(tests: Mapping[str, Any], name: str) -> Any:
    """The column of a table of tests, in the plural or, as CodeContests calls it, not."""
    return tests.get(f"{name}s") or tests.get(name) or []


def _pairs(tests: Mapping[str, Any], where: str) -> list[tuple[Any, Any]]:
    _refuse_calls(tests, where)
    inputs, outputs = _listed(tests, "input"), _listed(tests, "output")
    if (
        not {"input", "inputs"} & tests.keys()
        or not isinstance(inputs, list)
        or not isinstance(outputs, list)
    ):
        raise ValueError(f"{where} are {_short(tests)}: {SHAPES}")
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"{where} have {len(inputs)} inputs and {len(outputs)} outputs: give one for each")
    return list(zip(inputs, outputs, strict=True))


def _pair(case: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    _refuse_calls(case, where)
    _refuse_calls(case.get("metadata"), where)
    if "input" not in case or "output" not in case:
        raise ValueError(f"{where} hold {_short(case)}, which lacks input or output: {SHAPES}")
    return case["input"], case["output"]


def _refuse_calls(said: Any, where: str) -> None:
    """What tests say of themselves, or the row's `metadata`, as LiveCodeBench has it."""
    if not isinstance(said, dict):
        return
    name = said.get("fn_name") or said.get("func_name")
    if name or said.get("testtype") in _CALLED or said.get("type") in _CALLED:
        raise ValueError(
            f"{where} call {f'the function {name}' if name else 'a function'}: write each as an assert"
        )


def _text(value: Any, where: str) -> str:
    """A text, its lines, or a number."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} hold {_short(value)}: give what the program reads or writes as a text")
    return str(value)


def _code(tests: str | Sequence[Any], where: str) -> list[tuple[str, ...]]:
    """Each text that checks something, behind those before it that only prepare."""
    parsed = [_parsed(text, where) for text in ([tests] if isinstance(tests, str) else tests)]
    checks = Checks([statement for _, body in parsed for statement in body or ()])
    read, before = [], list[str]()
    for text, body in parsed:
        before.append(text)
        if any(map(checks.always_fails, body or ())):
            raise ValueError(
                f"{where} hold {_short(text)}, which always raises an error or exits, and so fails for every "
                "program, with exit code 0 too: write assert before what has to be true, or exit under an if"
            )
        idle = [each for each in body or () if not checks.has_check(each)]
        _refuse_idle(idle, text, where)
        if body is None or len(idle) < len(body):
            read.append(tuple(before))
            before = []
    if not read:
        raise ValueError(
            f"{where}, such as {_short(parsed[-1][0])}, assert nothing when they run: end them with an "
            "assert, or a call of what asserts, such as check(f)"
        )
    read[-1] += tuple(before)
    return read


def _parsed(text: Any, where: str) -> tuple[str, list[ast.stmt] | None]:
    """The text, without what indents all of it, and its statements, if they are not too deep to be read."""
    if not isinstance(text, str):
        raise ValueError(f"{where} hold {_short(text)}, which is no text: {SHAPES}")
    try:
        try:
            return text, ast.parse(text).body
        except IndentationError:
            text = textwrap.dedent(text)
            return text, ast.parse(text).body
    except (RecursionError, MemoryError):
        return text, None
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{where} hold {_short(text)}, which is no Python ({reason}): {SHAPES}") from error


def _refuse_idle(statements: Sequence[ast.stmt], text: str, where: str) -> None:
    """What stands alone, checks nothing and was meant to be a test."""
    for value in (statement.value for statement in statements if isinstance(statement, ast.Expr)):
        if isinstance(value, ast.Compare | ast.BoolOp) or (
            isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
        ):
            raise ValueError(
                f"{where} hold {_short(text)}, which only compares, and so passes for every program: write "
                "assert before it"
            )
        if _is_data(value):
            raise ValueError(f"{where} hold {_short(text)}, which passes for every program: {SHAPES}")


def _is_data(value: ast.expr) -> bool:
    """Whether it is a container of what may be tests, and not of calls."""
    if not isinstance(value, ast.List | ast.Set | ast.Tuple):
        return isinstance(value, ast.Dict)
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return all(isinstance(each, ast.Constant | ast.Dict | ast.Compare) for each in value.elts)
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
