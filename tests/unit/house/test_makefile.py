"""Every target that the Makefile declares has a rule, and a sentence in `make help`."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
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
