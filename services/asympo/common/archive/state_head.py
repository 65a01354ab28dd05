"""A training state as far as readers of the archive look at it."""

from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter

from asympo.common.archive.rows import PartRef
from asympo.common.checkpoints.manifest import STATE_FORMAT, FileEntry, decode_sealed
from asympo.common.checkpoints.names import STATE_FILES, StepName
from asympo.common.checkpoints.steps import Kind
from asympo.common.errors import CorruptCheckpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class StateHead:
    """The part of its manifest."""

    __pydantic_config__ = ConfigDict(extra="ignore")
    step: int
    """Optimizer steps made."""
    fence: int
    """Fence of the learner that saved it."""
    sequence: int
    """Last log sequence number that was trained or passed over."""
    files: tuple[FileEntry, ...]
    """Every file but the manifest."""
    archive: PartRef | None = None
    """Newest part of the archive; None where none were ever retained."""
    digest: str
    """Of the whole manifest."""

    @property
    def name(self) -> StepName:
        """The directory that it belongs into."""
        return StepName(step=self.step, fence=self.fence, sequence=self.sequence)


_ADAPTER: TypeAdapter[StateHead] = TypeAdapter(StateHead)


def _decode(content: bytes, *, what: str) -> StateHead:
    return decode_sealed(content, _ADAPTER, layout=STATE_FORMAT, what=what)


STATE_HEADS = Kind(
    directory="train",
    noun="training state",
    allowed=STATE_FILES,
    decode=_decode,
    passed_over=(CorruptCheckpoint,),
)
