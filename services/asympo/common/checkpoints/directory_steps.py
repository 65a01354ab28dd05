"""Steps in a directory that all machines share: `<root>/<run>/<kind>/step-00000042-f0007/`."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Generic

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.names import MANIFEST_NAME, RETAINED, StepName
from asympo.common.checkpoints.steps import Kind, M
from asympo.common.checkpoints.verify import read_manifest, verify_step
from asympo.common.errors import CorruptCheckpoint, UnknownVersion
from asympo.common.names import check_run_name

_MAX_DAMAGED_FENCE = 10**6
"""What says that it is of a later one and cannot be read was made by nobody."""
log = logging.getLogger(__name__)


class DirectorySteps(Generic[M]):
    """Every step becomes visible by one rename."""

    def __init__(self, root: Path, run: str, kind: Kind[M]) -> None:
        self.path = Path(root) / check_run_name(run) / kind.directory
        self._kind = kind

    def __str__(self) -> str:
        return str(self.path)

    def present(self) -> list[StepName]:
        """Names of all directories."""
        return directory.step_names(self.path)

    def newest_first(self, *, exclude: Collection[str] = ()) -> Iterator[M]:
        """Steps whose files have the names and sizes that their manifests say."""
        for name in reversed(self.present()):
            if str(name) in exclude:
                continue
            try:
                yield verify_step(self.path / str(name), self._kind, with_digests=False)
            except self._kind.passed_over as error:
                log.warning("%s passed over: %s", self._kind.noun, error)

    def manifest(self, name: StepName) -> M:
        """As the directory has it; its files are not looked at."""
        return read_manifest(self.path / str(name), self._kind)

    def bring(self, name: StepName) -> Path:
        """Nothing to bring."""
        return self.path / str(name)

    def verify(self, name: StepName) -> M:
        """Reads every file."""
        return verify_step(self.path / str(name), self._kind)

    def seal(self, temporary: Path, *, manifest: bytes) -> M:
        """By renaming it."""
        final = directory.seal(temporary, manifest=manifest)
        return self._kind.open(manifest, name=directory.step_of(temporary), what=str(final))

    def highest_fence(self) -> int | None:
        """Of directories that a learner has sealed, however damaged: they get their names with a manifest."""
        read = self.sealed_fence() or 0
        limit = max(read, _MAX_DAMAGED_FENCE)
        sealed = [name for name in self.present() if (self.path / str(name) / MANIFEST_NAME).exists()]
        return max((name.fence for name in sealed if name.fence <= limit), default=None)

    def sealed_fence(self) -> int | None:
        """Of the newest directory whose manifest can be read."""
        for name in reversed(self.present()):
            try:
                self.manifest(name)
            except CorruptCheckpoint:
                continue
            except UnknownVersion:
                # Of a later release, and sealed.
                pass
            return name.fence
        return None

    def take_over(self, fence: int) -> None:
        """Nothing: names with a higher fence win."""

    def sweep(self, *, fence: int) -> list[str]:
        """Temporary directories."""
        return directory.sweep(self.path, fence=fence)

    def delete(self, name: StepName) -> bool:
        """By renaming it, then file by file."""
        return directory.try_to_delete_step(self.path / str(name))

    def retain(self, name: StepName) -> None:
        """An empty file beside the directory."""
        (self.path / f"{name}{RETAINED}").touch()
        directory.flush_directory(self.path)

    def retained(self) -> set[str]:
        """By the files beside the directories."""
        return {path.name.removesuffix(RETAINED) for path in self.path.glob(f"*{RETAINED}")}
