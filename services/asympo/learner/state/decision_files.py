"""Where a run's decisions lie: a sealed file beside its training states, in a directory or a bucket."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from asympo.common import errors
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.names import DECISION_FILES
from asympo.learner.state.decisions import Decisions, decode_decisions, encode_decisions

if TYPE_CHECKING:
    from asympo.common.checkpoints.bucket import Bucket

log = logging.getLogger(__name__)

_MAX_BYTES = 16 << 20
_TEMPORARY = ".tmp-decisions-"
_Rank = tuple[int, int]


class DecisionFiles:
    """In a directory. Each file holds the whole list, so the highest fence and then the longest list wins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def newest(self) -> Decisions | None:
        """The list that holds; None when there is none. Raises StorageUnavailable, UnknownVersion."""
        for rank in sorted(self._ranks(), reverse=True):
            try:
                with _reading():
                    content = self._read(_name(rank))
                return decode_decisions(content, what=self._where(rank))
            except errors.CorruptCheckpoint as error:
                log.warning("Decisions are passed over: %s", error)
        return None

    def highest_fence(self) -> int | None:
        """Of any file, damaged ones included."""
        return max((fence for fence, _ in self._ranks()), default=None)

    def seal(self, decisions: Decisions) -> None:
        """Makes the list durable, then deletes what it replaces. Raises PublishFailed, Fenced."""
        with directory.storage_errors_as_publish_failed("What the run has decided", self.path):
            there = self._ranks()
            if there and max(there)[0] > decisions.fence:
                raise errors.Fenced(
                    f"{self._where(max(there))} is of a higher fence than this learner's {decisions.fence}: "
                    "another learner owns the run"
                )
            self._write(_name(decisions.rank), encode_decisions(decisions))
            for rank in there:
                if rank < decisions.rank:
                    self._delete(_name(rank))

    def _ranks(self) -> list[_Rank]:
        with _reading():
            matches = map(DECISION_FILES.fullmatch, self._list())
        return [(int(match["fence"]), int(match["length"])) for match in matches if match]

    def _where(self, rank: _Rank) -> str:
        return str(self.path / _name(rank))

    def _list(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> bytes:
        with (self.path / name).open("rb") as file:
            return file.read(_MAX_BYTES)

    def _write(self, name: str, content: bytes) -> None:
        directory.make_durable_directory(self.path)
        for left in self.path.glob(f"{_TEMPORARY}*"):
            left.unlink(missing_ok=True)
        temporary = self.path / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)
        directory.flush_directory(self.path)

    def _delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


class SharedDecisionFiles(DecisionFiles):
    """In an object store."""

    def __init__(self, bucket: "Bucket", run: str) -> None:
        super().__init__(Path(run) / "train")
        self._bucket = bucket

    def _where(self, rank: _Rank) -> str:
        return f"{self._bucket}/{self.path / _name(rank)}"

    def _list(self) -> list[str]:
        prefix = f"{self.path}/"
        return [found.key.removeprefix(prefix) for found in self._bucket.find(f"{prefix}decisions-")]

    def _read(self, name: str) -> bytes:
        return self._bucket.read(f"{self.path}/{name}", max_bytes=_MAX_BYTES)

    def _write(self, name: str, content: bytes) -> None:
        key = f"{self.path}/{name}"
        if not self._bucket.create(key, content) and self._bucket.read(key, max_bytes=_MAX_BYTES) != content:
            # One fence, two contents: not a retry whose first answer was lost.
            raise errors.Fenced(f"{self._bucket}/{key} was written by another learner with the same fence")

    def _delete(self, name: str) -> None:
        self._bucket.delete([f"{self.path}/{name}"])


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.StorageUnavailable(
            f"What the run has decided cannot be read: {error.strerror or error}"
        ) from error


def _name(rank: _Rank) -> str:
    return f"decisions-f{rank[0]:04d}-n{rank[1]:04d}.json"
