"""Packs tokenised groups into micro-batches: no padding, and every shared prefix computed once.

A micro-batch is one row of tokens, the nodes of a prefix tree in depth-first order. Responses of a group
share their prompt, groups share a common system prompt, equal beginnings of responses are shared too. A token
attends to its ancestors only and its position is its depth, so the computation is that of separate sequences,
gradients included. The last token of a response predicts nothing and is left out.

A response of several segments is several sequences of one row: its mean NLL is over the trained tokens of all
of them, and is needed whole before its gradient.

Everything here is a pure function of groups and settings: the same log gives the same micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from asympo.common.records import ResponseSegment
from asympo.learner.model.prefix_tree import NO_TOKENS, IntArray, lay_out


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedResponse:
    """One response with a non-zero advantage, as it enters the loss."""

    token_ids: tuple[int, ...]
    """Exactly as sampled; at least one."""
    advantage: float
    trained_token_mask: tuple[bool, ...] | None = None
    """Which tokens count in the mean NLL; None is all."""
    segments: tuple[ResponseSegment, ...] = ()
    """Further sequences of the same response, each after a context of its own."""

    @property
    def num_input_tokens(self) -> int:
        """Row length that it needs beside its prompt, equal beginnings not deducted."""
        further = sum(len(each.context_ids) + len(each.token_ids) - 1 for each in self.segments)
        return len(self.token_ids) - 1 + further

    def longest_input(self, num_prompt_tokens: int) -> int:
        """Tokens of its longest sequence, the last one left out."""
        further = [len(each.context_ids) + len(each.token_ids) - 1 for each in self.segments]
        return max([num_prompt_tokens + len(self.token_ids) - 1, *further])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedGroup:
    """A prompt with those of its responses that enter the loss."""

    prompt_ids: tuple[int, ...]
    """At least one: the last one predicts each response's first token."""
    responses: tuple[TrainedResponse, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedBatch:
    """One micro-batch, in arrays of the host.

    Suffixes: `_T` input tokens in depth-first order, `_U` distinct tokens that predict a trained token,
    `_N` trained tokens ordered by the token that predicts them, `_R` responses.
    """

    token_ids_T: IntArray
    position_ids_T: IntArray
    """Depth in the tree."""
    subtree_end_T: IntArray
    """One past the last descendant: k is q or an ancestor of q exactly when k <= q < subtree_end[k]."""
    source_U: IntArray
    """Ascending indexes into T."""
    row_N: IntArray
    """Index into U, ascending. Responses that share a prefix share the row that predicts what follows it."""
    target_N: IntArray
    response_N: IntArray
    """Index into R."""
    num_trained_R: list[int]
    advantage_R: list[float]
    sequences_R: list[tuple[tuple[int, ...], tuple[int, ...]]]
    """Prompt and ids of each response, of its first segment, for whoever wants to look at one again."""
    num_sequences: int
    """More than responses where some have several segments."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_trained_tokens(self) -> int:
        return len(self.target_N)

    @property
    def num_pairs(self) -> int:
        """Of a token and one that it attends to."""
        return int(self.position_ids_T.sum()) + self.num_tokens


def pack(
    groups: Sequence[TrainedGroup],
    *,
    token_budget: int,
    share_prefixes: bool,
    alone_above: int | None = None,
) -> list[PackedBatch]:
    """Packs groups into rows of at most `token_budget` tokens: few rows, of similar size.

    A group larger than the budget is split between responses (the loss is per response, so this is exact); a
    single response larger than the budget gets a row of its own. A shared prompt longer than half the budget
    gets rows of up to twice its own length: each part computes the prompt again, and would do little else. A
    budget of 1 asks for the smallest rows there are: a row for each response, however long the prompt.
    Rows come out in log order of their first group; ties keep log order. Prefixes shared between groups make
    rows shorter than planned, never longer. Sequences of more than `alone_above` tokens follow, a row each.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}: give at least 1")
    groups, alone = _apart(groups, alone_above)
    parts: list[TrainedGroup] = []
    for group in groups:
        if group.responses:
            parts.extend(_split(group, token_budget=token_budget, share_prefixes=share_prefixes))
    sizes = [num_input_tokens(part, share_prefixes=share_prefixes) for part in parts]
    rows = [[parts[index] for index in row] for row in _fill(sizes, capacity=token_budget)]
    return [collate(row, share_prefixes=share_prefixes) for row in [*rows, *([part] for part in alone)]]


def _apart(
    groups: Sequence[TrainedGroup], alone_above: int | None
) -> tuple[Sequence[TrainedGroup], list[TrainedGroup]]:
    """Groups without their long sequences, and those as groups of one response.

    Raises ValueError for a long one in segments, which must be refused before this point: what is computed
    one sequence at a time has no mean NLL over several.
    """
    if alone_above is None:
        return groups, []
    packed, alone = [], []
    for group in groups:
        is_short = [r.longest_input(len(group.prompt_ids)) <= alone_above for r in group.responses]
        if any(r.segments for r, short in zip(group.responses, is_short, strict=True) if not short):
            raise ValueError("a response of several segments cannot be computed one sequence at a time")
        packed.append(replace(group, responses=tuple(compress(group.responses, is_short))))
        alone += [
            replace(group, responses=(response,))
            for response, short in zip(group.responses, is_short, strict=True)
            if not short
        ]
    return packed, alone


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
    response_tokens = sum(response.num_input_tokens for response in group.responses)
    copies = 1 if share_prefixes else len(group.responses)
    return copies * len(group.prompt_ids) + response_tokens


def _split(group: TrainedGroup, *, token_budget: int, share_prefixes: bool) -> list[TrainedGroup]:
    if share_prefixes and token_budget > 1:
        token_budget = max(token_budget, 2 * len(group.prompt_ids))
    if num_input_tokens(group, share_prefixes=share_prefixes) <= token_budget:
        return [group]
    prompt = len(group.prompt_ids)
    sizes = [response.num_input_tokens + (0 if share_prefixes else prompt) for response in group.responses]
    return [
        TrainedGroup(prompt_ids=group.prompt_ids, responses=tuple(group.responses[i] for i in part))
        for part in _fill(sizes, capacity=token_budget - (prompt if share_prefixes else 0))
    ]


def collate(groups: Sequence[TrainedGroup], *, share_prefixes: bool) -> PackedBatch:
    """Lays groups out in one row of tokens.

    Raises ValueError for an empty prompt or context, an empty response or a response without a trained token:
    they have no mean NLL and must be refused before this point.
    """
    inputs: list[IntArray] = []
    trained: list[IntArray] = []
    targets: list[IntArray] = []
    num_trained_R: list[int] = []
    for group in groups:
        prompt = np.array(group.prompt_ids, dtype=np.int64)
        for response in group.responses:
            first = len(trained)
            parts: tuple[TrainedResponse | ResponseSegment, ...] = (response, *response.segments)
            contexts = (prompt, *(np.array(each.context_ids, dtype=np.int64) for each in response.segments))
            for context, part in zip(contexts, parts, strict=True):
                if not len(context):
                    raise ValueError("a prompt without tokens predicts nothing")
                trained_at = _trained_tokens(part)
                answer = np.array(part.token_ids, dtype=np.int64)
                inputs.append(np.concatenate([context, answer[:-1]]))
                trained.append(len(context) - 1 + trained_at)
                targets.append(answer[trained_at])
            num_trained_R.append(sum(map(len, trained[first:])))
    order = lay_out(inputs, share_prefixes=share_prefixes)
    sources = [index_S[predicting] for index_S, predicting in zip(order.index_S, trained, strict=True)]
    source_N = np.concatenate([NO_TOKENS, *sources])
    response_N = np.repeat(np.arange(len(num_trained_R)), num_trained_R)
    by_source = np.argsort(source_N, kind="stable")
    source_U, row_N = np.unique(source_N[by_source], return_inverse=True)
    return PackedBatch(
        token_ids_T=order.token_ids_T,
        position_ids_T=order.position_ids_T,
        subtree_end_T=order.subtree_end_T,
        source_U=source_U,
        row_N=row_N,
        target_N=np.concatenate([NO_TOKENS, *targets])[by_source],
        response_N=response_N[by_source],
        num_trained_R=num_trained_R,
        advantage_R=[response.advantage for group in groups for response in group.responses],
        sequences_R=[(group.prompt_ids, each.token_ids) for group in groups for each in group.responses],
        num_sequences=len(inputs),
    )


def _trained_tokens(sequence: TrainedResponse | ResponseSegment) -> IntArray:
    """Ascending indexes of the tokens that count."""
    mask = sequence.trained_token_mask or (True,) * len(sequence.token_ids)
    if len(mask) != len(sequence.token_ids) or not any(mask):
        raise ValueError("a response without a trained token has no mean NLL")
    return np.flatnonzero(mask)
