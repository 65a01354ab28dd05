"""Every `make` command that a page shows, and every target that the Makefile declares, has a rule."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULES = set(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_declared_targets_have_rules() -> None:
    declared = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert declared is not None
    names = declared[1].replace("\\", " ").split()
    assert len(names) > 10
    assert [name for name in names if name not in RULES] == []


def test_help_has_a_sentence_for_every_target() -> None:
    described = re.findall(
        r"^([a-z0-9-]+):(?!=).*  ## [A-Z].{5,}$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert sorted(RULES - set(described)) == []


def test_pages_name_only_targets_that_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    shown = {
        (page.name, target)
        for page in pages
        for target in re.findall(r"(?:^\$ |`)make ([a-z0-9-]+)", page.read_text(), flags=re.MULTILINE)
    }
    assert len(shown) > 5
    assert sorted((page, target) for page, target in shown if target not in RULES) == []
