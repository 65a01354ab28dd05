"""Files, functions, constructors and folders stay small; exceptions are named, with their reason."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_PARAMETERS = 10
MAX_FILES_IN_A_FOLDER = 20
GENERATED = ROOT / "services" / "asympo" / "v1"
EXCEPTIONS: dict[str, str] = {
    "tests/compat/v0.1/scripts": "the scripts of a release as it was shipped",
}
"""Paths that may be larger, each with its reason."""

SOURCES = [
    path
    for folder in ("services", "deploy", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if GENERATED not in path.parents
]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def is_excepted(path: Path) -> bool:
    return str(path.relative_to(ROOT)) in EXCEPTIONS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_its_functions_are_small(path: Path) -> None:
    if is_excepted(path):
        return
    assert path.read_text().count("\n") <= MAX_FILE_LINES
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"
        if function.name == "__init__":
            num_parameters = len(function.args.args) + len(function.args.kwonlyargs) - 1
            assert num_parameters <= MAX_CONSTRUCTOR_PARAMETERS, f"line {function.lineno}: {num_parameters}"


def test_folders_hold_few_files() -> None:
    folders = {path.parent for folder in ("services", "tests") for path in (ROOT / folder).rglob("*.*")}
    for folder in sorted(folders - {GENERATED}):
        files = [path for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
        if "__pycache__" not in folder.parts and "egg-info" not in folder.name and not is_excepted(folder):
            assert len(files) <= MAX_FILES_IN_A_FOLDER, f"{folder.relative_to(ROOT)} holds {len(files)} files"


def test_every_exception_is_needed() -> None:
    for name in EXCEPTIONS:
        assert (ROOT / name).exists(), name
