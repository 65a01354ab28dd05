"""Every promise of docs/guarantees.md names a test; tests/unit/house/test_docs.py sees that it exists."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/guarantees.md"


def test_every_guarantee_names_a_test() -> None:
    table = PAGE.read_text().split("| event | promise | test |")[1].split("\n\n")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")]
    assert len(rows) >= 20
    for row in rows:
        assert re.search(r"`tests/[^`]+`", row), row
