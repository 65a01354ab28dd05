"""What makes up a file of a step where it is shared: the whole of it, or differences down to a whole one.

A difference lies where the file would, and says in its name what it is a difference to:

    model.safetensors.from-step-00000041-f0007-<start of the digest of that one>

Manifests are the same either way: they describe whole files, and only those reach an engine. So whatever
goes wrong with a difference shows as a file that does not match its digest.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from asympo.common.checkpoints.names import StepName, parse_name
from asympo.common.checkpoints.steps import StepManifest

_MAX_LINKS = 64
_DIGEST_CHARACTERS = 16
_FROM = re.compile(r"(?P<file>[^/]+)\.from-(?P<step>step-[0-9]+-f[0-9]+)-(?P<payload>[0-9a-f]{16})")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a step: what is read if it is the one that its manifest means."""

    name: StepName
    payload: str
    """How the digest of its manifest begins."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stored file on the way to a whole one."""

    of: Attempt
    stored: str
    """Its name: that of the file, or of a difference."""
    size: int
    """Bytes."""


FilesOf = Callable[[Attempt], Mapping[str, int]]
"""Bytes of what is stored of an attempt, by name; empty without one."""


def attempt_of(manifest: StepManifest) -> Attempt:
    """The one that the manifest means."""
    return Attempt(name=manifest.name, payload=manifest.digest[:_DIGEST_CHARACTERS])


def delta_name(file: str, *, parent: Attempt) -> str:
    """Of a difference."""
    return f"{file}.from-{parent.name}-{parent.payload}"


def file_of(stored: str) -> str:
    """The file that a stored one makes up, whole or as a difference."""
    match = _FROM.fullmatch(stored)
    return stored if match is None else match["file"]


def links_of(files_of: FilesOf, attempt: Attempt, file: str) -> list[Link] | None:
    """A whole file and the differences to apply to it, in this order; None where one is missing."""
    links: list[Link] = []
    while len(links) < _MAX_LINKS:
        sizes = files_of(attempt)
        if file in sizes:
            links.append(Link(of=attempt, stored=file, size=sizes[file]))
            return links[::-1]
        found = [stored for stored in sizes if stored.startswith(f"{file}.from-")]
        parent = _parent_of(found[0]) if len(found) == 1 else None
        if parent is None:
            return None
        links.append(Link(of=attempt, stored=found[0], size=sizes[found[0]]))
        attempt = parent
    return None


def is_needed(stored: Iterable[str], name: StepName) -> bool:
    """Whether one of the stored files is a difference to this step, which must stay then."""
    parents = map(_parent_of, stored)
    return any(parent is not None and parent.name == name for parent in parents)


def _parent_of(stored: str) -> Attempt | None:
    match = _FROM.fullmatch(stored)
    name = None if match is None else parse_name(match["step"])
    return None if match is None or name is None else Attempt(name=name, payload=match["payload"])
