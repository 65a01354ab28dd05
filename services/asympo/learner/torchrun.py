"""Which rank of a learner this process is, from what torchrun puts into the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from asympo.common.errors import BadSetting
from asympo.common.object_store import ObjectStoreOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One process among those of a learner; alone without torchrun."""

    rank: int = 0
    """0 leads: it owns the fence and the doors."""
    num_ranks: int = 1
    local_rank: int = 0
    """Position on this machine: which of its devices to use."""
    num_local_ranks: int = 1
    """Those on this machine."""
    num_restarts: int = 0
    """How often torchrun has restarted all ranks."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads what torchrun sets, absent values as those of one machine; raises BadSetting."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank, num_ranks, local_rank, num_restarts = (int(environment.get(name, "0")) for name in names)
            num_local_ranks = int(environment.get("LOCAL_WORLD_SIZE", num_ranks))
        except ValueError as error:
            raise BadSetting(f"{', '.join(names)} must be numbers, as torchrun sets them: {error}") from error
        if not 0 <= rank < num_ranks:
            raise BadSetting(f"RANK is {rank} and WORLD_SIZE is {num_ranks}: start all ranks with torchrun")
        return cls(
            rank=rank,
            num_ranks=num_ranks,
            local_rank=local_rank,
            num_local_ranks=num_local_ranks,
            num_restarts=num_restarts,
        )

    def check_storage(self, object_store: ObjectStoreOptions) -> None:
        """Raises BadSetting where ranks of several machines would need a disk in common and have none."""
        if object_store.is_given and not self.is_on_one_machine:
            raise BadSetting(
                f"object_store.url, and {self.num_local_ranks} of {self.num_ranks} ranks on this machine:"
                " training states in an object store need all ranks on one machine; share a directory instead"
            )

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all ranks see the same disk without sharing one over the network."""
        return self.num_local_ranks == self.num_ranks

    @property
    def is_alone(self) -> bool:
        return self.num_ranks == 1
