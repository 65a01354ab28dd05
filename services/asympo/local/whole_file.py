"""A small file that readers see as it was or as it is, never half of it."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Under another name, then renamed. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
