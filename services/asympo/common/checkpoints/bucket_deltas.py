"""Which objects of a bucket make up a file of a step: the whole of it, or differences down to a whole one.

A difference lies where the file would, and says in its name what it is a difference to:

    step-00000042-f0007/<digest>/model.safetensors.from-step-00000041-f0007-<digest of that one>

Manifests are the same either way: they describe whole files, and only those reach a reader's disk. So
whatever goes wrong with a difference shows as a file that does not match its digest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from asympo.common.checkpoints.names import StepName, parse_name
from asympo.common.checkpoints.steps import StepManifest

_MAX_LINKS = 64
_DIGEST_CHARACTERS = 16
_FROM = re.compile(r"(?P<file>[^/]+)\.from-(?P<step>step-[0-9]+-f[0-9]+)-(?P<payload>[0-9a-f]{16})")

Objects = Mapping[StepName, Mapping[str, int]]
"""Bytes of each object of each step, by its key below the step."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a step: what is read if it is the one that its manifest means."""

    name: StepName
    payload: str
    """Directory of its files in the step's."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One object on the way to a file."""

    of: Attempt
    key: str
    """Below the step."""
    size: int
    """Bytes."""


def attempt_of(manifest: StepManifest) -> Attempt:
    """The one that the manifest means."""
    return Attempt(name=manifest.name, payload=manifest.digest[:_DIGEST_CHARACTERS])


def delta_key(attempt: Attempt, file: str, *, parent: Attempt) -> str:
    """Of a difference, below the step."""
    return f"{attempt.payload}/{file}.from-{parent.name}-{parent.payload}"


def links_of(objects: Objects, attempt: Attempt, file: str) -> list[Link] | None:
    """A whole file and the differences to apply to it, in this order; None where one is missing."""
    links: list[Link] = []
    while len(links) < _MAX_LINKS:
        sizes = objects.get(attempt.name, {})
        whole = f"{attempt.payload}/{file}"
        if whole in sizes:
            links.append(Link(of=attempt, key=whole, size=sizes[whole]))
            return links[::-1]
        found = [key for key in sizes if key.startswith(f"{whole}.from-")]
        parent = _parent_of(found[0]) if len(found) == 1 else None
        if parent is None:
            return None
        links.append(Link(of=attempt, key=found[0], size=sizes[found[0]]))
        attempt = parent
    return None


def is_needed(objects: Objects, name: StepName) -> bool:
    """Whether a step is a difference to this one, even one that is not visible yet: then it must stay."""
    parents = (_parent_of(key) for sizes in objects.values() for key in sizes)
    return any(parent is not None and parent.name == name for parent in parents)


def _parent_of(key: str) -> Attempt | None:
    match = _FROM.fullmatch(key.rpartition("/")[2])
    name = None if match is None else parse_name(match["step"])
    return None if match is None or name is None else Attempt(name=name, payload=match["payload"])
