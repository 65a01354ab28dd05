"""Files, functions, constructors and folders stay small; exceptions are named, with their reason."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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


def is_excepted(path: Path) -> bool:
    return str(path.relative_to(ROOT)) in EXCEPTIONS


def too_large(path: Path) -> Iterator[str]:
    """What of a file is."""
    if (num_lines := path.read_text().count("\n")) > MAX_FILE_LINES:
        yield f"{path} has {num_lines} lines"
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{path}:{node.lineno} {node.name} has {length} lines"
        num_parameters = len(node.args.args) + len(node.args.kwonlyargs) - 1
        if node.name == "__init__" and num_parameters > MAX_CONSTRUCTOR_PARAMETERS:
            yield f"{path}:{node.lineno} the constructor has {num_parameters} parameters"


def test_files_functions_and_constructors_are_small() -> None:
    assert len(SOURCES) > 500
    assert [what for path in SOURCES if not is_excepted(path) for what in too_large(path)] == []


def test_folders_hold_few_files() -> None:
    folders = {path.parent for folder in ("services", "tests") for path in (ROOT / folder).rglob("*.*")}
    for folder in sorted(folders - {GENERATED}):
        files = [path for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
        if "__pycache__" not in folder.parts and "egg-info" not in folder.name and not is_excepted(folder):
            assert len(files) <= MAX_FILES_IN_A_FOLDER, f"{folder.relative_to(ROOT)} holds {len(files)} files"


def test_every_exception_is_needed() -> None:
    for name in EXCEPTIONS:
        assert (ROOT / name).exists(), name
