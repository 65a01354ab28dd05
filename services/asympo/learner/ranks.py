"""The ranks of one learner: backends and mesh, what the first rank tells the others, what they tell it."""

import json
import logging
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from asympo.learner.torchrun import Launch

log = logging.getLogger(__name__)

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_MAX_IDLE = timedelta(days=30)
"""How long the others may wait to be told something: a learner without groups waits for ever."""


class Ranks:
    """This process among the ranks. Only the main thread uses it, and every rank calls in the same order.

    Tensors travel through the device's own backend; what ranks tell each other is JSON in a group of its own
    on the CPU, where waiting costs nothing and a rank that dies is noticed at once by all.
    """

    def __init__(self, *, rank: int, num_ranks: int, mesh: DeviceMesh) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.mesh = mesh
        self.group = dist.new_group(backend="gloo", timeout=_MAX_IDLE)
        """For small collectives between processors."""
        self.are_listening = True
        """Whether the others are in `hear`, or will be: not while they do what they were told."""

    @classmethod
    def join(cls, launch: Launch, *, device_type: str) -> Self:
        """Meets the other ranks; blocks until all are there."""
        device = torch.device(device_type, launch.local_rank) if device_type == "cuda" else None
        if device is not None:
            torch.cuda.set_device(device)
        # torchrun keeps one store over all its restarts: gloo would find addresses of ranks that are dead.
        store, _, _ = next(iter(rendezvous("env://", launch.rank, launch.num_ranks)))
        dist.init_process_group(
            _BACKENDS[device_type],
            store=dist.PrefixStore(f"restart-{launch.num_restarts}", store),
            rank=launch.rank,
            world_size=launch.num_ranks,
            device_id=device,
        )
        mesh = init_device_mesh(device_type, (launch.num_ranks,), mesh_dim_names=("shard",))
        log.info("Rank %d of %d, %s", launch.rank, launch.num_ranks, _BACKENDS[device_type])
        return cls(rank=launch.rank, num_ranks=launch.num_ranks, mesh=mesh)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def tell(self, message: dict[str, Any]) -> None:
        """The first rank says what all do next; the others are in `hear`. `all_done` once they did it."""
        self.are_listening = False
        self._broadcast(message)

    def all_done(self) -> None:
        """What was told last is done on every rank."""
        self.are_listening = True

    def hear(self) -> dict[str, Any]:
        """What the first rank says next, however long it takes. Raises RuntimeError when it is gone."""
        return self._broadcast(None)

    def gather(self, document: Any) -> list[Any]:
        """What every rank hands in, by rank, on every rank."""
        own = _encode(document)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.num_ranks)]
        dist.all_gather(sizes, torch.tensor([len(own)]), group=self.group)
        longest = int(max(sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.num_ranks)]
        dist.all_gather(parts, padded, group=self.group)
        return [_decode(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]

    def close(self) -> None:
        """Leaves in good order: only when no rank waits for another."""
        dist.destroy_process_group()

    def _broadcast(self, message: dict[str, Any] | None) -> dict[str, Any]:
        content = _encode(message)
        size = torch.tensor([len(content)])
        dist.broadcast(size, src=0, group=self.group)
        if not self.is_first:
            content = torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(content, src=0, group=self.group)
        heard: dict[str, Any] = _decode(content)
        return heard


def _encode(document: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)


def _decode(content: torch.Tensor) -> Any:
    return json.loads(content.numpy().tobytes())
