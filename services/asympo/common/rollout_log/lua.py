"""Loads the Lua scripts: one file a script, with ``--!include name`` lines replaced by shared pieces.

Scripts whose first line says ``flags=allow-oom`` free memory, or are needed to free it, and run when the
broker is over its memory limit. It refuses all others then before they have written anything.
"""

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

_INCLUDE = "--!include "


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One script, ready to be run by digest."""

    name: str
    """File name without ending."""
    source: str
    """Text with includes in place."""
    sha1: str
    """What the broker knows it by."""


@functools.cache
def load_script(name: str) -> Script:
    """Reads ``scripts/<name>.lua``."""
    source = "".join(_lines(name))
    return Script(
        name=name, source=source, sha1=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    )


def script_names() -> list[str]:
    """Every script that can be run, includes left out."""
    files = (file.name for file in resources.files(__package__).joinpath("scripts").iterdir())
    return sorted(name[:-4] for name in files if name.endswith(".lua") and not name.startswith("include_"))


def _lines(name: str) -> list[str]:
    text = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(_INCLUDE):
            lines.extend(_lines("include_" + line[len(_INCLUDE) :].strip()))
        else:
            lines.append(line)
    return lines
