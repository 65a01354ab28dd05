"""A small file that readers see as it was or as it is, never half of it, also after a power cut."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Under another name, then renamed. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
