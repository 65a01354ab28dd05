"""Loads the Lua scripts: one file a script, with `--!include name` lines replaced by shared pieces.

They lie in a folder for each caller: `generator`, `learner`, `producer`, `evaluator`, or `anyone`.

Scripts whose first line says `flags=allow-oom` free memory, or are needed to free it, and run when the
broker is over its memory limit. It refuses all others then before they have written anything.
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from asympo.common.rollout_log.keys import NOUNS

_CALLERS = ("generator", "learner", "producer", "evaluator", "anyone")
_INCLUDE = "--!include "
_KEYS = re.compile(r"^-- .*KEYS: ([a-z_]+(?:, [a-z_]+)*)\.", re.MULTILINE)
_READS = re.compile(r"\bbeside\(run, '([a-z_]+)'\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One script, ready to be run by digest."""

    name: str
    """File name without ending."""
    caller: str
    """Its folder."""
    source: str
    """Text with includes in place."""
    sha1: str
    """What the broker knows it by."""
    nouns: tuple[str, ...]
    """Its KEYS in order, as its head says; empty where each caller chooses other ones."""
    reads: tuple[str, ...]
    """Keys of the run that it reads beside them. Access rules take KEYS for written, so that what a caller
    must not write cannot be one of them."""


@functools.cache
def load_script(name: str) -> Script:
    """Reads `scripts/<caller>/<name>.lua`."""
    caller, file = _files()[name]
    source = "".join(_lines(file))
    head = _KEYS.search(source)
    nouns = tuple(head[1].split(", ")) if head else ()
    return Script(
        name=name,
        caller=caller,
        source=source,
        sha1=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        nouns=nouns if set(nouns) <= set(NOUNS) else (),
        reads=tuple(dict.fromkeys(_READS.findall(source))),
    )


def script_names() -> list[str]:
    """Every script that can be run."""
    return sorted(_files())


def _folder(name: str) -> Traversable:
    return resources.files(__package__).joinpath("scripts", name)


@functools.cache
def _files() -> dict[str, tuple[str, Traversable]]:
    return {
        file.name.removesuffix(".lua"): (caller, file)
        for caller in _CALLERS
        for file in _folder(caller).iterdir()
    }


def _lines(file: Traversable) -> list[str]:
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith(_INCLUDE):
            lines.extend(_lines(_folder("include") / f"{line[len(_INCLUDE) :].strip()}.lua"))
        else:
            lines.append(line)
    return lines
