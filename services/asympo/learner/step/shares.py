"""Which rank trains which responses: a pure function of entry numbers and token counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asympo.learner.model.batching import TrainedGroup, num_input_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Responses of one group for one rank."""

    sequence: int
    """The group's entry in the log."""
    responses: tuple[int, ...]
    """Ascending indexes into the responses of the trained group."""

    def of(self, group: TrainedGroup) -> TrainedGroup:
        """That part of the group."""
        return replace(group, responses=tuple(group.responses[index] for index in self.responses))


def share_out(
    groups: Sequence[tuple[int, TrainedGroup]], *, num_ranks: int, share_prefixes: bool
) -> list[tuple[Share, ...]]:
    """Shares by rank, balanced by input tokens: the largest first, each to the rank that has least.

    `groups`: entry number and responses that enter the loss. A group larger than a fair share is split
    between its responses, which is exact because the loss is per response. Ties go by entry number.
    """
    costs = [num_input_tokens(group, share_prefixes=share_prefixes) for _, group in groups]
    fair = -(-sum(costs) // num_ranks)
    items: list[tuple[int, int, tuple[int, ...]]] = []
    for (sequence, group), cost in zip(groups, costs, strict=True):
        for part in _parts(group, num_parts=-(-cost // max(1, fair))):
            held = Share(sequence=sequence, responses=part).of(group)
            items.append((num_input_tokens(held, share_prefixes=share_prefixes), sequence, part))
    shares: list[list[Share]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for cost, sequence, part in sorted(items, key=lambda item: (-item[0], item[1], item[2])):
        rank = min(range(num_ranks), key=lambda candidate: (loads[candidate], candidate))
        shares[rank].append(Share(sequence=sequence, responses=part))
        loads[rank] += cost
    return [tuple(sorted(held, key=lambda share: (share.sequence, share.responses))) for held in shares]


def _parts(group: TrainedGroup, *, num_parts: int) -> list[tuple[int, ...]]:
    """The responses in this many parts of similar length, none empty."""
    num_parts = max(1, min(num_parts, len(group.responses)))
    lengths = [response.num_input_tokens + 1 for response in group.responses]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        chosen = min(range(num_parts), key=lambda part: (loads[part], part))
        parts[chosen].append(index)
        loads[chosen] += lengths[index]
    return sorted(tuple(sorted(part)) for part in parts if part)
