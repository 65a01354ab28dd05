"""Where a run's decisions lie: a sealed file beside its training states, in a directory or a bucket."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.files import Files
from asympo.common.checkpoints.names import DECISION_FILES, MAX_DECISION_BYTES
from asympo.common.checkpoints.opening import open_files
from asympo.common.errors import CorruptCheckpoint, Fenced, StorageUnavailable
from asympo.common.object_store import ObjectStoreOptions
from asympo.learner.state.decisions import Decisions, decode_decisions, encode_decisions

log = logging.getLogger(__name__)

_Rank = tuple[int, int]


class DecisionFiles:
    """Each file holds the whole list, so the highest fence and then the longest list wins."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def newest(self) -> Decisions | None:
        """The list that holds; None when there is none. Raises StorageUnavailable, UnknownVersion."""
        with _reading():
            return self._newest()

    def highest_fence(self) -> int | None:
        """Of any file, damaged ones included; raises StorageUnavailable."""
        with _reading():
            return max((fence for fence, _ in self._ranks()), default=None)

    def sealed_fence(self) -> int | None:
        """Of the newest list that can be read; raises OSError, because a save asks and is tried again."""
        newest = self._newest()
        return newest.fence if newest else None

    def seal(self, decisions: Decisions) -> None:
        """Makes the list durable, then deletes what it replaces. Raises PublishFailed, Fenced."""
        with directory.storage_errors_as_publish_failed("what the run has decided", self._files.path):
            there = self._ranks()
            newest = self._newest()
            if newest and newest.fence > decisions.fence:
                raise Fenced(
                    f"{self._where(newest.rank)} has a higher fence than this learner's {decisions.fence}: "
                    "another learner owns the run"
                )
            self._files.sweep(fence=decisions.fence)
            try:
                self._files.write(_name(decisions.rank), encode_decisions(decisions), fence=decisions.fence)
            except FileExistsError as error:
                # One fence, two contents: not a retry whose first answer was lost.
                raise Fenced(
                    f"{self._where(decisions.rank)} was written by another learner with the same fence"
                ) from error
            for rank in there:
                if rank < decisions.rank:
                    self._files.delete(_name(rank))

    def _newest(self) -> Decisions | None:
        for rank in sorted(self._ranks(), reverse=True):
            content = self._files.read(_name(rank), max_bytes=MAX_DECISION_BYTES)
            try:
                return decode_decisions(content, what=self._where(rank))
            except CorruptCheckpoint as error:
                log.warning("Decisions are passed over: %s", error)
        return None

    def _ranks(self) -> list[_Rank]:
        matches = map(DECISION_FILES.fullmatch, self._files.names("decisions-"))
        return [(int(match["fence"]), int(match["length"])) for match in matches if match]

    def _where(self, rank: _Rank) -> str:
        return f"{self._files}/{_name(rank)}"


def open_decisions(run_directory: Path, options: ObjectStoreOptions | None = None) -> DecisionFiles:
    """Those of one run, where the settings say they are; asks no store anything."""
    return DecisionFiles(open_files(run_directory / "train", options))


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise StorageUnavailable(
            f"what the run has decided cannot be read{where}: {error.strerror or error}"
        ) from error


def _name(rank: _Rank) -> str:
    return f"decisions-f{rank[0]:04d}-n{rank[1]:04d}.json"
