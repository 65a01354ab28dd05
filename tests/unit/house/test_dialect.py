"""One way to write what every file writes: loggers, quotes in docstrings, errors, imports."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.house.test_sizes import ROOT, SOURCES, tree

PACKAGE = ROOT / "services"
PRODUCT = [path for path in SOURCES if PACKAGE in path.parents]
FOREIGN_PATHS = {
    "services/asympo/rewards/scoring.py": "a task's own Python code lies where the process runs",
    "services/asympo/rewards/functions.py": "the same, and what a reward file imports lies beside it",
}
"""Files that change where Python looks for modules, each with its reason."""
ELSEWHERE = PACKAGE / "asympo" / "tasks" / "environments" / "player"
"""Runs in interpreters that have nothing of ours, as a package of another name: its imports are relative."""


def where(path: Path, node: ast.AST | int) -> str:
    return f"{path.relative_to(ROOT)}:{node if isinstance(node, int) else getattr(node, 'lineno', 1)}"


def nodes(paths: list[Path]) -> Iterator[tuple[Path, ast.AST]]:
    for path in paths:
        for node in ast.walk(tree(path)):
            yield path, node


def text_of(node: ast.AST) -> str | None:
    """A string as it is written, with {} for what an f-string fills in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_error_sentence(text: str) -> bool:
    """Begins small, unless with a name (vLLM, RANK, HTTP/2), and ends without a full stop."""
    first = text.partition(" ")[0]
    is_name = re.search(r"[A-Z0-9_{./]", first[1:]) is not None
    return not text.endswith(".") and (is_name or not first[:1].isupper())


def test_every_logger_is_called_log_and_named_after_its_module() -> None:
    wrong = [
        where(path, node)
        for path, node in nodes(PRODUCT)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.value).startswith("logging.getLogger(__name__)")
        and ast.unparse(node.targets[0]) != "log"
    ]
    assert not wrong, f"write `log = logging.getLogger(__name__)`: {wrong}"


def test_code_in_docstrings_stands_between_single_backticks() -> None:
    wrong = [
        where(path, number)
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"(?<!`)`{2}(?!`)", line) and path != Path(__file__)
    ]
    assert not wrong, f"write `name`, with one backtick on each side: {wrong}"


def test_errors_are_sentences_of_one_form() -> None:
    wrong = [
        f"{where(path, node)} {text}"
        for path, node in nodes(PRODUCT)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if (text := text_of(node.exc.args[0])) is not None and not is_error_sentence(text)
    ]
    assert not wrong, f"begin with a small letter and leave out the full stop: {wrong}"


def test_sentences_are_told_from_others() -> None:
    assert all(map(is_error_sentence, ("the run {} is gone", "vLLM died", "RANK is {}", "{} is damaged")))
    assert not any(map(is_error_sentence, ("The run is gone", "the run is gone.", "Tensor {} is twice")))


def test_names_are_imported_from_where_they_are_defined() -> None:
    wrong = []
    for path, node in nodes(PRODUCT):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (PACKAGE / Path(*(node.module or "").split("."))).with_suffix(".py")
        is_relative = node.level > (path.parent == ELSEWHERE)
        if is_relative or any(alias.name == "*" for alias in node.names):
            wrong.append(f"{where(path, node)}: relative, or everything")
        elif module in PRODUCT:
            # A room's own `__init__` may offer names; a module offers what it defines.
            missing = {alias.name for alias in node.names} - defined_in(module)
            wrong += [f"{where(path, node)}: {name} is not defined in {node.module}" for name in missing]
        elif node.module == "asympo.common" and "errors" in {alias.name for alias in node.names}:
            wrong.append(f"{where(path, node)}: import errors by name")
    assert not wrong, wrong


@functools.cache
def defined_in(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_nobody_changes_where_python_looks_for_modules() -> None:
    changed = {
        str(path.relative_to(ROOT))
        for path in (*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py")))
        if re.search(r"sys\.path(\[.*\] = |\.(insert|append|extend)\()", path.read_text())
        and path != Path(__file__)
    }
    assert changed == set(FOREIGN_PATHS), "run it with `python -m` from the root of the repository"
