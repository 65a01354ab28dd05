"""Numbered, sealed directories of one kind of one run: what every place that can hold them does."""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from asympo.common.checkpoints.manifest import FileEntry
from asympo.common.checkpoints.names import StepName
from asympo.common.errors import AsympoError, CorruptCheckpoint, Fenced

log = logging.getLogger(__name__)


Checksums = Mapping[str, str]
"""By name, of the bytes that files had when their digests were taken."""


class StepManifest(Protocol):
    """A manifest as far as every kind of step has it."""

    @property
    def name(self) -> StepName:
        """The step that it belongs to."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest."""

    @property
    def digest(self) -> str:
        """Its own digest."""


M = TypeVar("M", bound=StepManifest)
M_co = TypeVar("M_co", bound=StepManifest, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[M_co]):
    """What tells policies and training states apart."""

    directory: str
    """Name of their directory in that of the run."""
    noun: str
    """One of them, in messages."""
    allowed: re.Pattern[str]
    """Names that their files may have."""
    decode: Callable[..., M_co]
    """Reads a manifest: `decode(content, what=...)`."""
    passed_over: tuple[type[AsympoError], ...]
    """Errors of a manifest after which the next newest step is looked for."""
    weights: re.Pattern[str] | None = None
    """Files that may be shared as differences to the step before."""

    def open(self, content: bytes, *, name: StepName | None, what: str) -> M_co:
        """The manifest of the step `name`; CorruptCheckpoint, UnknownVersion naming `what`."""
        manifest = self.decode(content, what=what)
        if manifest.name != name:
            raise CorruptCheckpoint(f"the manifest of {what} is that of another, {manifest.name}")
        names = [entry.name for entry in manifest.files]
        if len(set(names)) != len(names) or not all(map(self.allowed.fullmatch, names)):
            raise CorruptCheckpoint(
                f"the manifest of {what} lists a file twice, or one that a {self.noun} may not have"
            )
        return manifest


def ignore(_: StepName) -> None:
    """Nobody wants to hear of it."""


def newest_first(
    kind: Kind[M],
    names: Sequence[StepName],
    read: Callable[[StepName], M],
    *,
    exclude: Collection[str],
    on_corrupt: Callable[[StepName], None],
) -> Iterator[M]:
    """What `read` makes of the names from the last one on, but of those that are passed over."""
    for name in reversed(names):
        if str(name) in exclude:
            continue
        try:
            yield read(name)
        except kind.passed_over as error:
            log.warning("%s passed over: %s", kind.noun, error)
            if isinstance(error, CorruptCheckpoint):
                on_corrupt(name)


class Steps(Protocol[M_co]):
    """The steps of one kind of one run. Safe in any thread; methods raise OSError when storage fails.

    One is written into a directory of `begin` and then sealed.
    """

    holds_copies: bool
    """Whether what lies at `path` are copies, of which those used longest ago are deleted."""

    @property
    def path(self) -> Path:
        """Where their directories lie on this machine: all of them, some without their weights, or copies."""

    @property
    def sent_bytes(self) -> int:
        """What the step that was sealed last takes where it is shared, the manifest aside."""

    def begin(self, name: StepName, *, is_whole: bool = False) -> Path:
        """A new directory to write a step into; a whole one needs no room beside the others."""

    def place(self, name: StepName) -> Path:
        """Where the step lies on this machine, whole, once it was verified."""

    def present(self) -> list[StepName]:
        """Visible steps, damaged ones included, sorted so that the last one wins."""

    def newest_first(
        self, *, exclude: Collection[str] = (), on_corrupt: Callable[[StepName], None] = ignore
    ) -> Iterator[M_co]:
        """Manifests of the steps that have all they list; others are passed over with a warning.

        `on_corrupt` hears of those that are damaged, not of those that only a newer version can read.
        """

    def manifest(self, name: StepName) -> M_co:
        """The manifest of a step; CorruptCheckpoint when it is gone or damaged."""

    def complete(self, name: StepName) -> M_co:
        """The manifest of a step that has all it lists, by names and sizes; CorruptCheckpoint."""

    def bring(self, name: StepName) -> Path:
        """The directory of a step, copied to this machine if it is not here; no digest is checked again."""

    def verify(self, name: StepName) -> M_co:
        """The manifest once every byte of the directory here was checked; CorruptCheckpoint."""

    def seal(self, temporary: Path, *, manifest: bytes, checksums: Checksums) -> M_co:
        """Make a finished temporary directory visible, durably; returns the manifest that is visible.

        Files without a checksum are shared whole next time. Raises FileExistsError when there is another step
        of the name, which is never overwritten.
        """

    def highest_fence(self) -> int | None:
        """The highest fence in any name, damaged and unfinished ones included, or None without any."""

    def sealed_fence(self) -> int | None:
        """The highest fence of what can be read: only that shows that there is another learner."""

    def take_over(self, fence: int) -> None:
        """From now on nothing more of older fences becomes visible. Raises Fenced."""

    def sweep(self, *, fence: int) -> list[str]:
        """Delete what dead writers left behind; only for the holder of `fence`. Returns the names."""

    def delete(self, name: StepName) -> bool:
        """Delete a step, which vanishes before its files do; False, with a warning, if it resists."""

    def retain(self, name: StepName) -> None:
        """Mark a step to be kept for good: deleting asks `retained` first."""

    def retained(self) -> set[str]:
        """Names of the steps that are kept for good."""


def refuse_if_fenced(where: object, *, fence: int, highest: int | None) -> None:
    """Raises Fenced when `where` holds something of a higher fence than the caller's."""
    if highest is not None and highest > fence:
        raise Fenced(
            f"{where} belongs to fence {highest} and this learner has fence {fence}:"
            " another learner owns the run, or an earlier run of the same name left that there"
        )
