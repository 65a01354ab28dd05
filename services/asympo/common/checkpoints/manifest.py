"""The manifest: what a checkpoint directory holds, down to each tensor, and what the model says with it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from asympo.common.checkpoints.names import MAX_MANIFEST_BYTES, StepName
from asympo.common.errors import CorruptCheckpoint
from asympo.common.foreign.documents import parse_object
from asympo.common.versions import Format

FORMAT = Format(name="schema_version", newest=1, oldest=1)
"""Of this file. What a reader may do without is added under the same number."""
STATE_FORMAT = Format(name="schema_version", newest=1, oldest=1)
"""Of the manifest of a training state, which the archive's readers look into as well."""

_CHECKED = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a checkpoint."""

    __pydantic_config__ = _CHECKED
    name: str
    """Plain name inside the directory."""
    size: int
    """Bytes."""
    sha256: str
    """Digest of the whole file, hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as stored in the safetensors files."""

    __pydantic_config__ = _CHECKED
    name: str
    """Name in the checkpoint, before any renaming or fusing by a loader."""
    dtype: str
    """safetensors type name, such as BF16."""
    shape: tuple[int, ...]
    """Dimensions."""
    sha256: str
    """Digest of the tensor's bytes in the file, hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSequence:
    """A fixed token sequence and what this policy makes of it."""

    __pydantic_config__ = _CHECKED
    token_ids: tuple[int, ...]
    """The whole sequence."""
    num_prompt_tokens: int
    """Leading tokens that only condition; the rest are scored."""
    mean_nll: float
    """Mean NLL of the scored tokens under this checkpoint's weights as published."""
    parent_mean_nll: float | None = None
    """Under the parent's weights: written by releases that judged a reload by it, and read by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Sequences that an engine must score as the learner does, once its weights are proved."""

    __pydantic_config__ = _CHECKED
    sequences: tuple[ProbeSequence, ...]
    """At least one, the same ones in every checkpoint of a run."""
    tolerance: float
    """For readers of the release before: the difference in mean NLL at which they refuse a policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BasePolicy:
    """What an adapter is added to."""

    __pydantic_config__ = _CHECKED
    name: str
    """Directory of a whole policy of the same run."""
    digest: str
    """Digest of its manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Written last into a checkpoint directory; what it does not list does not exist."""

    __pydantic_config__ = _CHECKED
    schema_version: int = FORMAT.newest
    """Layout of this file."""
    step: int
    """Optimizer step of the policy."""
    fence: int
    """Fence of the learner that published it."""
    kind: Literal["full", "delta", "adapter"] = "full"
    """Whether the files are complete, a difference to the parent, or an adapter for the base."""
    base: BasePolicy | None = None
    """Of an adapter alone."""
    parent: str | None = None
    """Manifest digest of the policy published before, when there is one."""
    files: tuple[FileEntry, ...]
    """Every file but the manifest, sorted by name."""
    tensors: tuple[TensorEntry, ...]
    """Every tensor of the safetensors files, of an adapter those merged into its base; sorted by name."""
    probe: Probe
    """What the model says with these weights."""
    digest: str = field(default="")
    """sha256 over the canonical form of everything above; what announcements carry."""

    @property
    def name(self) -> StepName:
        """The directory that it belongs into."""
        return StepName(step=self.step, fence=self.fence)

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.size for entry in self.files)


DocumentT = TypeVar("DocumentT")
_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def canonical_digest(document: Mapping[str, Any]) -> str:
    """sha256 of `document` without its `digest`, in one fixed JSON form."""
    body = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """`document` as JSON text with its own digest filled in."""
    sealed = {**document, "digest": canonical_digest(document)}
    return (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode()


def open_sealed_json(content: bytes, *, what: str) -> dict[str, Any]:
    """The document inside `content`; CorruptCheckpoint when its digest or form is wrong."""
    try:
        document = parse_object(content, max_bytes=MAX_MANIFEST_BYTES)
        digest = canonical_digest(document)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"the manifest of {what} cannot be read: {error}") from error
    if document.get("digest") != digest:
        raise CorruptCheckpoint(f"the manifest of {what} does not match its own digest")
    return document


def decode_sealed(content: bytes, adapter: TypeAdapter[DocumentT], *, layout: Format, what: str) -> DocumentT:
    """The document inside sealed file content, checked field by field; errors naming `what`.

    CorruptCheckpoint when anything is off, UnknownVersion when another release wrote it.
    """
    document = open_sealed_json(content, what=what)
    layout.check(document.get(layout.name), what=f"the manifest of {what}")
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptCheckpoint(f"the manifest of {what} is wrong at {where}: {first['msg']}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as file content; its digest is computed here, whatever the field holds."""
    document = dataclasses.asdict(manifest)
    if manifest.base is None:
        del document["base"]
    return sealed_json(document)


def decode_manifest(content: bytes, *, what: str) -> Manifest:
    """The manifest inside file content; see `decode_sealed`."""
    return decode_sealed(content, _ADAPTER, layout=FORMAT, what=what)
