"""How torch.distributed.checkpoint stores the training state: safetensors files and JSON, no pickle.

Every rank streams its own shards into one file, straight from the tensors' memory; digests are computed while
writing. The coordinator makes the directory visible only when all ranks are done.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import SavePlan, SavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from asympo.common.checkpoints.directory import create_temporary
from asympo.common.checkpoints.manifest import FileEntry
from asympo.common.checkpoints.names import StepName
from asympo.common.checkpoints.steps import Steps
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.learner.state.hashed_file import HashedFile
from asympo.learner.state.manifest import StateChunk, StateManifest, StateTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What one rank reports about one shard it wrote."""

    chunk: StateChunk
    file: FileEntry


class StateWriter(StorageWriter):
    """Writes one training state; use once. The coordinator calls `make_manifest` when all is written."""

    def __init__(
        self,
        *,
        steps: Steps[StateManifest],
        name: StepName,
        extra_files: dict[str, bytes],
        make_manifest: Callable[[Sequence[FileEntry], Sequence[StateTensor]], bytes],
    ) -> None:
        self.temporary: Path | None = None
        self._steps = steps
        self._name = name
        self._extra_files = extra_files
        self._make_manifest = make_manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Part of the interface; there is nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Part of the interface; the coordinator acts in the two calls only it receives."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is; tensors of unknown types are refused before anything is written."""
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO or _tensor_data(item).properties.dtype not in _DTYPE_NAMES:
                raise BadSetting(f"{item.index.fqn} is of a type that a training state cannot hold")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the temporary directory and tell every rank its file in it."""
        self.temporary = create_temporary(self._steps.path, self._name)
        return [
            replace(plan, storage_data=str(self.temporary / f"rank-{rank:05d}.safetensors"))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's shards and flush them, copying at most one that is not in host memory already."""
        items = sorted(plan.items, key=lambda item: (-_dtype(item).itemsize, item.index.fqn))
        path = Path(plan.storage_data)
        entry, chunks = (
            _write_file(path, items, lambda item: planner.resolve_data(item)) if items else (None, [])
        )
        results = [
            WriteResult(
                index=item.index,
                size_in_bytes=_num_bytes(item),
                storage_data=_Written(chunk=chunk, file=entry),
            )
            for item, chunk in zip(items, chunks, strict=True)
            if entry is not None
        ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the small files and the manifest, and make the directory visible."""
        if self.temporary is None:
            raise RuntimeError("finish() before prepare_global_plan()")
        written: dict[str, list[StateChunk]] = {}
        files: dict[str, FileEntry] = {}
        for result in (result for rank in results for result in rank):
            shard: _Written = result.storage_data
            written.setdefault(result.index.fqn, []).append(shard.chunk)
            files[shard.file.name] = shard.file
        for name, content in self._extra_files.items():
            (self.temporary / name).write_bytes(content)
            files[name] = FileEntry(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        tensors = [
            _describe(name, stored, written[name]) for name, stored in metadata.state_dict_metadata.items()
        ]
        manifest = self._make_manifest(
            sorted(files.values(), key=lambda entry: entry.name),
            sorted(tensors, key=lambda tensor: tensor.name),
        )
        self._steps.seal(self.temporary, manifest=manifest, checksums={})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by name."""
        return False


class StateReader(StorageReader):
    """Reads a training state, already verified, into existing tensors, however they are sharded."""

    def __init__(self, *, path: Path, tensors: Sequence[StateTensor]) -> None:
        self._path = path
        self._tensors = tensors
        self._chunks = {
            (tensor.name, chunk.offsets): (chunk, DTYPES[tensor.dtype])
            for tensor in tensors
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Part of the interface; there is nothing to reset."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """The tensors of the manifest in the form the planner wants."""
        return Metadata(
            state_dict_metadata={
                tensor.name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=DTYPES[tensor.dtype]),
                    size=torch.Size(tensor.shape),
                    chunks=[
                        ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))
                        for chunk in tensor.chunks
                    ],
                )
                for tensor in self._tensors
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object
    ) -> None:
        """Part of the interface; there is nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors in place; whole shards in host memory take no buffer at all."""
        for item in plan.items:
            chunk, dtype = self._chunk(item.storage_index)
            target = planner.resolve_tensor(item).detach()
            is_whole = tuple(item.lengths) == chunk.sizes and target.dtype == dtype
            if is_whole and target.is_contiguous() and target.device.type == "cpu":
                _read_into(self._path / chunk.file, chunk.offset, target)
                # Torch does not see it, and what was computed from other values would be taken for theirs.
                torch.autograd.graph.increment_version(target)
            else:
                stored = torch.empty(chunk.sizes, dtype=dtype)
                _read_into(self._path / chunk.file, chunk.offset, stored)
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    stored = stored.narrow(dim, start, length)
                target.copy_(stored)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by name."""
        return False

    def _chunk(self, index: MetadataIndex) -> tuple[StateChunk, torch.dtype]:
        offsets = () if index.offset is None else tuple(index.offset)
        return self._chunks[(index.fqn, offsets)]


def dtype_name(tensor: Tensor) -> str:
    """The safetensors name of the tensor's type; BadSetting when it has none."""
    name = _DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise BadSetting(f"a training state cannot hold tensors of type {tensor.dtype}")
    return name


def _write_file(
    path: Path, items: Sequence[WriteItem], resolve: Callable[[WriteItem], object]
) -> tuple[FileEntry, list[StateChunk]]:
    header: dict[str, object] = {}
    position = 0
    for item in items:
        data = _tensor_data(item)
        end = position + _num_bytes(item)
        header[_shard_name(item)] = {
            "dtype": _DTYPE_NAMES[data.properties.dtype],
            "shape": list(data.chunk.sizes),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    chunks = []
    position = len(prefix)
    with HashedFile(path) as file:
        file.write(memoryview(prefix))
        for item in items:
            tensor = resolve(item)
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{item.index.fqn} is not a tensor")
            data = _tensor_data(item)
            chunks.append(
                StateChunk(
                    file=path.name,
                    offset=position,
                    offsets=tuple(data.chunk.offsets),
                    sizes=tuple(data.chunk.sizes),
                )
            )
            file.write(_bytes_of(tensor.detach().cpu().contiguous()))
            position += _num_bytes(item)
    return FileEntry(name=path.name, size=position, sha256=file.hexdigest()), chunks


def _read_into(path: Path, offset: int, tensor: Tensor) -> None:
    buffer = _bytes_of(tensor)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while buffer:
            num_read = file.readinto(buffer)
            if not num_read:
                raise CorruptCheckpoint(f"{path} is truncated")
            buffer = buffer[num_read:]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous host tensor, shared."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _describe(name: str, stored: object, chunks: Sequence[StateChunk]) -> StateTensor:
    if not isinstance(stored, TensorStorageMetadata):
        raise TypeError(f"{name} is not a tensor")
    return StateTensor(
        name=name,
        dtype=_DTYPE_NAMES[stored.properties.dtype],
        shape=tuple(stored.size),
        chunks=tuple(sorted(chunks, key=lambda chunk: chunk.offsets)),
    )


def _tensor_data(item: WriteItem):  # type: ignore[no-untyped-def]
    if item.tensor_data is None:
        raise TypeError(f"{item.index.fqn} is not a tensor")
    return item.tensor_data


def _dtype(item: WriteItem) -> torch.dtype:
    dtype: torch.dtype = _tensor_data(item).properties.dtype
    return dtype


def _num_bytes(item: WriteItem) -> int:
    sizes: torch.Size = _tensor_data(item).chunk.sizes
    return prod(sizes) * _dtype(item).itemsize


def _shard_name(item: WriteItem) -> str:
    data = _tensor_data(item)
    if data.chunk.sizes == data.size:
        return item.index.fqn
    return f"{item.index.fqn}@{','.join(str(offset) for offset in data.chunk.offsets)}"
