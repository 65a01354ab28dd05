"""Which rank of a learner this process is, from what torchrun puts into the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from asympo.common.errors import BadSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One process among those of a learner; alone without torchrun."""

    rank: int = 0
    """0 leads: it owns the fence and the doors."""
    num_ranks: int = 1
    local_rank: int = 0
    """Position on this machine: which of its devices to use."""
    num_restarts: int = 0
    """How often torchrun has started all ranks anew."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and TORCHELASTIC_RESTART_COUNT; raises BadSetting."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank, num_ranks, local_rank, num_restarts = (int(environment.get(name, "0")) for name in names)
        except ValueError as error:
            raise BadSetting(f"{', '.join(names)} must be numbers, as torchrun sets them: {error}") from error
        if not 0 <= rank < num_ranks:
            raise BadSetting(f"RANK is {rank} and WORLD_SIZE is {num_ranks}: start all ranks with torchrun")
        return cls(rank=rank, num_ranks=num_ranks, local_rank=local_rank, num_restarts=num_restarts)

    @property
    def is_alone(self) -> bool:
        return self.num_ranks == 1
