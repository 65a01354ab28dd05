"""Packs tokenised groups into micro-batches: no padding, and every shared prefix computed once.

A micro-batch is one row of tokens, the nodes of a prefix tree in depth-first order. Responses of a group
share their prompt, groups share a common system prompt, equal beginnings of responses are shared too. A token
attends to its ancestors only and its position is its depth, so the computation is that of separate sequences,
gradients included. The last token of a response predicts nothing and is left out.

Everything here is a pure function of groups and settings: the same log gives the same micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedResponse:
    """One response with a non-zero advantage, as it enters the loss."""

    token_ids: tuple[int, ...]
    """Exactly as sampled; at least one."""
    advantage: float
    trained_token_mask: tuple[bool, ...] | None = None
    """Which tokens count in the mean NLL; None is all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedGroup:
    """A prompt with those of its responses that enter the loss."""

    prompt_ids: tuple[int, ...]
    """At least one: the last one predicts each response's first token."""
    responses: tuple[TrainedResponse, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One micro-batch, in plain lists.

    Suffixes: ``_T`` input tokens in depth-first order, ``_U`` distinct tokens that predict a trained token,
    ``_N`` trained tokens ordered by the token that predicts them, ``_R`` responses.
    """

    token_ids_T: list[int]
    position_ids_T: list[int]
    """Depth in the tree."""
    subtree_end_T: list[int]
    """One past the last descendant: k is q or an ancestor of q exactly when k <= q < subtree_end[k]."""
    source_U: list[int]
    """Ascending indexes into T."""
    row_N: list[int]
    """Index into U, ascending. Responses that share a prefix share the row that predicts what follows it."""
    target_N: list[int]
    response_N: list[int]
    """Index into R."""
    num_trained_R: list[int]
    advantage_R: list[float]
    sequences_R: list[tuple[tuple[int, ...], tuple[int, ...]]]
    """Prompt and response ids, for whoever wants to look at one again."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_trained_tokens(self) -> int:
        return len(self.target_N)


def pack(groups: Sequence[TrainedGroup], *, token_budget: int, share_prefixes: bool) -> list[PackedBatch]:
    """Packs groups into rows of at most ``token_budget`` tokens: few rows, and those of like size.

    A group larger than the budget is split between responses (the loss is per response, so this is exact); a
    single response larger than the budget gets a row of its own. A shared prompt longer than half the budget
    gets rows of up to twice its own length: each part computes the prompt again, and would do little else.
    Rows come out in log order of their first group; ties keep log order. Prefixes shared between groups make
    rows shorter than planned, never longer.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}: at least 1 is needed")
    parts: list[TrainedGroup] = []
    for group in groups:
        if group.responses:
            parts.extend(_split(group, token_budget=token_budget, share_prefixes=share_prefixes))
    sizes = [num_input_tokens(part, share_prefixes=share_prefixes) for part in parts]
    return [
        collate([parts[index] for index in row], share_prefixes=share_prefixes)
        for row in _fill(sizes, capacity=token_budget)
    ]


def _fill(sizes: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Distributes items over bins; indexes ascend within bins, and bins by their first item.

    As many bins as first fit by falling size needs. They are then levelled where that keeps all of them
    within the capacity, since the largest one decides the peak of memory. Larger items stand alone.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        chosen = next((b for b, left in enumerate(room) if sizes[index] <= left), None)
        if chosen is None:
            chosen = len(bins)
            bins.append([])
            room.append(capacity)
        bins[chosen].append(index)
        room[chosen] -= sizes[index]
    level: list[list[int]] = [[] for _ in bins]
    loads = [0] * len(bins)
    for index in order:
        chosen = min(range(len(bins)), key=lambda b: (loads[b], b))
        level[chosen].append(index)
        loads[chosen] += sizes[index]
    if all(load <= capacity or len(held) == 1 for load, held in zip(loads, level, strict=True)):
        bins = level
    return sorted(sorted(held) for held in bins)


def num_input_tokens(group: TrainedGroup, *, share_prefixes: bool) -> int:
    """Row length that a group alone needs, equal beginnings of its responses not deducted."""
    response_tokens = sum(len(response.token_ids) - 1 for response in group.responses)
    copies = 1 if share_prefixes else len(group.responses)
    return copies * len(group.prompt_ids) + response_tokens


def _split(group: TrainedGroup, *, token_budget: int, share_prefixes: bool) -> list[TrainedGroup]:
    if share_prefixes:
        token_budget = max(token_budget, 2 * len(group.prompt_ids))
    if num_input_tokens(group, share_prefixes=share_prefixes) <= token_budget:
        return [group]
    prompt = len(group.prompt_ids)
    sizes = [len(response.token_ids) - 1 + (0 if share_prefixes else prompt) for response in group.responses]
    return [
        TrainedGroup(prompt_ids=group.prompt_ids, responses=tuple(group.responses[i] for i in part))
        for part in _fill(sizes, capacity=token_budget - (prompt if share_prefixes else 0))
    ]


@dataclass(slots=True)
class _Node:
    token_id: int
    depth: int
    children: dict[int, "_Node"] = field(default_factory=dict)
    chains: list["_Node"] = field(default_factory=list)
    """Children in order of insertion."""
    index: int = -1

    def child(self, token_id: int, *, is_shared: bool) -> "_Node":
        found = self.children.get(token_id) if is_shared else None
        if found is None:
            found = _Node(token_id, self.depth + 1)
            self.children[token_id] = found
            self.chains.append(found)
        return found


def collate(groups: Sequence[TrainedGroup], *, share_prefixes: bool) -> PackedBatch:
    """Lays groups out in one row of tokens.

    Raises ValueError for an empty prompt, an empty response or a response without a trained token: they have
    no mean NLL and must be refused before this point.
    """
    root = _Node(-1, -1)
    trained: list[tuple[_Node, int, int]] = []
    num_trained: list[int] = []
    advantages: list[float] = []
    sequences: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for group in groups:
        if not group.prompt_ids:
            raise ValueError("a prompt without tokens predicts nothing")
        for response in group.responses:
            targets = _insert(root, group.prompt_ids, response, share_prefixes=share_prefixes)
            trained.extend((source, target, len(num_trained)) for source, target in targets)
            num_trained.append(len(targets))
            advantages.append(response.advantage)
            sequences.append((group.prompt_ids, response.token_ids))
    token_ids, positions, ends = _number(root)
    trained.sort(key=lambda item: item[0].index)
    source_U = sorted({source.index for source, _, _ in trained})
    row_of = {source: row for row, source in enumerate(source_U)}
    return PackedBatch(
        token_ids_T=token_ids,
        position_ids_T=positions,
        subtree_end_T=ends,
        source_U=source_U,
        row_N=[row_of[source.index] for source, _, _ in trained],
        target_N=[target for _, target, _ in trained],
        response_N=[response for _, _, response in trained],
        num_trained_R=num_trained,
        advantage_R=advantages,
        sequences_R=sequences,
    )


def _insert(
    root: _Node, prompt_ids: Sequence[int], response: TrainedResponse, *, share_prefixes: bool
) -> list[tuple[_Node, int]]:
    """Adds one sequence; returns (token that predicts it, token id) of each trained token."""
    mask = response.trained_token_mask or (True,) * len(response.token_ids)
    if len(mask) != len(response.token_ids) or not any(mask):
        raise ValueError("a response without a trained token has no mean NLL")
    node = root
    for token_id in prompt_ids:
        node = node.child(token_id, is_shared=share_prefixes)
    targets = []
    last = len(response.token_ids) - 1
    for index, (token_id, is_trained) in enumerate(zip(response.token_ids, mask, strict=True)):
        if is_trained:
            targets.append((node, token_id))
        if index < last:
            node = node.child(token_id, is_shared=share_prefixes)
    return targets


def _number(root: _Node) -> tuple[list[int], list[int], list[int]]:
    """Depth-first order without recursion (trees are as deep as sequences are long)."""
    token_ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    open_nodes: list[_Node] = []
    stack = list(reversed(root.chains))
    while stack:
        node = stack.pop()
        while open_nodes and open_nodes[-1].depth >= node.depth:
            ends[open_nodes.pop().index] = len(token_ids)
        node.index = len(token_ids)
        token_ids.append(node.token_id)
        positions.append(node.depth)
        ends.append(0)
        open_nodes.append(node)
        stack.extend(reversed(node.chains))
    for node in open_nodes:
        ends[node.index] = len(token_ids)
    return token_ids, positions, ends
