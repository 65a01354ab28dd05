"""The manifest of a training state: everything but the tensors, and where those lie."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from asympo.common.archive import PartRef
from asympo.common.checkpoints.manifest import STATE_FORMAT, FileEntry, decode_sealed, sealed_json
from asympo.common.checkpoints.names import StepName

_CHECKED = ConfigDict(extra="ignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateChunk:
    """A shard of a tensor."""

    __pydantic_config__ = _CHECKED
    file: str
    """File that holds it."""
    offset: int
    """First byte in the file."""
    offsets: tuple[int, ...]
    """Position of the shard in the tensor."""
    sizes: tuple[int, ...]
    """Dimensions of the shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateTensor:
    """One tensor of the training state."""

    __pydantic_config__ = _CHECKED
    name: str
    """`model.<parameter>`, `optimizer.<parameter>.<key>` or `rng.<rank>`."""
    dtype: str
    """safetensors type name."""
    shape: tuple[int, ...]
    """Dimensions of the whole tensor."""
    chunks: tuple[StateChunk, ...]
    """Its shards, which cover it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateManifest:
    """Written last into the directory of a training state."""

    __pydantic_config__ = _CHECKED
    schema_version: int = STATE_FORMAT.newest
    """Layout of this file."""
    step: int
    """Optimizer steps made."""
    fence: int
    """Fence of the learner that saved it."""
    sequence: int
    """Last log sequence number that was trained or passed over."""
    decisions: dict[str, Any]
    """Choices that change arithmetic, made once."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that the newest step was made with; empty from a release that did not keep them."""
    counters: dict[str, int | float]
    """Totals that metrics continue from."""
    run_id: str = ""
    """Of the run that it is of; empty from a release that did not say."""
    server_id: str = ""
    """Broker that the run was on, as process and history."""
    config_digest: str = ""
    """Of the run's settings."""
    archive: PartRef | None = None
    """Newest part of the archive of consumed groups; None where none were ever retained."""
    optimizer_groups: tuple[dict[str, Any], ...]
    """Parameter groups: hyperparameters, and the names of their parameters under `params`."""
    adapter_scale: float | None = None
    """What an adapter's product is multiplied with; None without one, or of a release that did not say."""
    torch_version: str
    """Build that wrote it; bit-identical continuation is promised for the same one only."""
    world_size: int
    """Ranks that wrote it; bit-identical continuation is promised for the same number only."""
    files: tuple[FileEntry, ...]
    """Every file but the manifest, sorted by name."""
    tensors: tuple[StateTensor, ...]
    """Every tensor, sorted by name."""
    digest: str = field(default="")
    """sha256 over the canonical form of everything above."""

    @property
    def name(self) -> StepName:
        """The directory that it belongs into."""
        return StepName(step=self.step, fence=self.fence, sequence=self.sequence)


_ADAPTER: TypeAdapter[StateManifest] = TypeAdapter(StateManifest)


def encode_state_manifest(manifest: StateManifest) -> bytes:
    """The manifest as file content, sealed with its digest."""
    return sealed_json(dataclasses.asdict(manifest))


def decode_state_manifest(content: bytes, *, what: str) -> StateManifest:
    """The manifest inside file content; see `decode_sealed`."""
    return decode_sealed(content, _ADAPTER, layout=STATE_FORMAT, what=what)
