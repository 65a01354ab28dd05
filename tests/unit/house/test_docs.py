"""Every link, command, flag and file that a page names exists."""

import ast
import contextlib
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from asympo.cli import COMMANDS, main
from asympo.common.settings import iter_options
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import BrokerSection, GeneratorSection, RunSection, ViewSection

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("helm/asympo/*.md"))
    if page != ROOT / "docs/stability/report.md"  # written by the laboratory
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
RULES = set(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {
    "runs",
    "site",
    ".venv",
    ".cache",
    ".git",
}
SECTIONS = {
    "run": (RunSection, LearnerSettings),
    "learner": (LearnerSettings,),
    "generator": (GeneratorSection, GeneratorSettings),
    "broker": (BrokerSection,),
    "view": (ViewSection,),
}
"""What `asympo run` takes as `--SECTION.KEY`."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def code(page: Path) -> list[str]:
    """Every code span, and every command of a console block with its continuation lines joined."""
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    for language, block in _FENCE.findall(page.read_text()):
        lines = block.replace("\\\n", " ").splitlines()
        spans += [line.removeprefix("$ ") for line in lines if language != "console" or line.startswith("$ ")]
    return spans


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each simple command."""
    for span in code(page):
        for part in re.split(r" \| | && |; ", span):
            with contextlib.suppress(ValueError):  # a quote in prose is no command
                yield shlex.split(part, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub and the site make them of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_commands_have_rules(page: Path) -> None:
    for words in commands(page):
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in RULES, " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_asympo_commands_and_flags_exist(page: Path) -> None:
    for words in commands(page):
        command = own_words(words)
        if not command or not re.fullmatch(r"[a-z]+", command[0]):
            continue
        verb = command[1] if len(command) > 1 and re.fullmatch(r"[a-z]+", command[1]) else None
        known = flags_of(command[0], verb)
        for word in command[1:]:
            flag = word.partition("=")[0]
            if re.match(r"--[a-z]", flag):
                assert flag in known, f"asympo {' '.join(command)}"


def own_words(words: list[str]) -> list[str]:
    """What follows `asympo`: at the start, behind variables, or behind the `--` of another program."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if "asympo.learner" in words and "--" in words:
        return ["learner", *words[words.index("--") + 1 :]]
    if "--" in words and words[0] == "kubectl":
        words = words[words.index("--") + 1 :]
    return words[1:] if words and words[0] in ("asympo", ".venv/bin/asympo") else []


@cache
def flags_of(command: str, verb: str | None) -> frozenset[str]:
    """The flags that `--help` lists, and for a run the settings of its sections."""
    assert command in {each.name for each in COMMANDS}, f"there is no asympo {command}"
    shown, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        status = main([command, *([verb] if verb else []), "--help"])
    assert status == 0, errors.getvalue()
    flags = set(re.findall(r"(?<![\w.-])--[a-z][a-z0-9.-]*", shown.getvalue()))
    if command in ("run", "demo"):
        for section, models in SECTIONS.items():
            paths = [option.path for model in models for option in iter_options(model)]
            flags |= {f"--{section}.{'.'.join(path).replace('_', '-')}" for path in paths}
    return frozenset(flags)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_and_tests_exist(page: Path) -> None:
    for span in code(page):
        for word in re.findall(r"[\w./*<>{},:-]+", span):
            path, _, test = word.rstrip(".,:").partition("::")
            if not names_a_file(path):
                continue
            places = (ROOT, ROOT / "services/asympo", page.parent)
            found = [file for place in places for file in place.glob(path.rstrip("/"))]
            assert found, word
            if test:
                assert test in functions(found[0]), word


def names_a_file(path: str) -> bool:
    """Whether the word is a path of this repository, and complete: a reader has nothing to fill in."""
    first, _, rest = path.partition("/")
    is_complete = bool(first and rest) and not re.search(r"[<>{}]|//", path)
    return is_complete and (first in FOLDERS or path.endswith((".py", ".lua")))


@cache
def functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_checks_see_what_they_check() -> None:
    seen = [words for page in PAGES for words in commands(page)]
    assert sum(words[:1] == ["make"] for words in seen) > 10
    assert sum(bool(own_words(words)) for words in seen) > 30


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_settings_on_a_page_are_toml(page: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        tomllib.loads(block)


def test_commands_of_committed_reports_work_in_any_checkout() -> None:
    reports = sorted((ROOT / "docs").rglob("summary.json"))
    assert reports
    for report in reports:
        words = shlex.split(json.loads(report.read_text())["command"])
        assert not [word for word in words if word.startswith("/")], report
