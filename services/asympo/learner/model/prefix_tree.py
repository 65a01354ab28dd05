"""The prefix tree of a row: which tokens sequences have in common, laid out depth first.

An edge of the tree is a run of tokens that nothing branches from, so building and numbering cost a few calls
a sequence, however long it is. Legend: `_T` tokens of the row, `_S` tokens of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

NO_TOKENS: IntArray = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowOrder:
    """Where every token of every sequence is in the row."""

    token_ids_T: IntArray
    position_ids_T: IntArray
    """Depth in the tree."""
    subtree_end_T: IntArray
    """One past the last descendant: k is q or an ancestor of q exactly when k <= q < subtree_end[k]."""
    index_S: list[IntArray]
    """Of each sequence, its tokens' indexes into T."""


def lay_out(sequences: Sequence[IntArray], *, share_prefixes: bool) -> RowOrder:
    """One row of all sequences, none of them empty; branches come in the order of their first sequence."""
    if not share_prefixes:
        return _one_after_the_other(sequences)
    roots: dict[int, _Edge] = {}
    for sequence_S in sequences:
        _insert(roots, sequence_S)
    edges = _number(roots)
    lengths = [len(edge.token_ids) for edge in edges]
    token_ids_T = np.concatenate([NO_TOKENS, *(edge.token_ids for edge in edges)])
    return RowOrder(
        token_ids_T=token_ids_T,
        position_ids_T=np.arange(len(token_ids_T))
        - _repeat([edge.begin - edge.depth for edge in edges], lengths),
        subtree_end_T=_repeat([edge.subtree_end for edge in edges], lengths),
        index_S=[_indexes(roots, sequence_S) for sequence_S in sequences],
    )


def _one_after_the_other(sequences: Sequence[IntArray]) -> RowOrder:
    lengths = [len(sequence_S) for sequence_S in sequences]
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - lengths
    token_ids_T = np.concatenate([NO_TOKENS, *sequences])
    return RowOrder(
        token_ids_T=token_ids_T,
        position_ids_T=np.arange(len(token_ids_T)) - _repeat(begins, lengths),
        subtree_end_T=_repeat(ends, lengths),
        index_S=[np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)],
    )


def _repeat(values: Sequence[int] | IntArray, times: Sequence[int]) -> IntArray:
    return np.repeat(np.asarray(values, dtype=np.int64), times)


@dataclass(slots=True, eq=False)
class _Edge:
    token_ids: IntArray
    children: "dict[int, _Edge]" = field(default_factory=dict)
    """By first token, in order of insertion."""
    depth: int = 0
    """Of the first token."""
    begin: int = 0
    """Index of the first token into T."""
    subtree_end: int = 0


def _insert(edges: dict[int, _Edge], rest_S: IntArray) -> None:
    while len(rest_S):
        first = int(rest_S[0])
        edge = edges.get(first)
        if edge is None:
            edges[first] = _Edge(rest_S)
            return
        num_common = _num_common(edge.token_ids, rest_S)
        rest_S = rest_S[num_common:]
        if len(rest_S) and num_common < len(edge.token_ids):
            # The upper half takes the place of the whole, so the order of insertion stays.
            edge.token_ids, upper = edge.token_ids[num_common:], edge.token_ids[:num_common]
            edges[first] = edge = _Edge(upper, {int(edge.token_ids[0]): edge})
        edges = edge.children


def _num_common(left: IntArray, right: IntArray) -> int:
    """Length of the common beginning of two sequences."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


def _number(roots: dict[int, _Edge]) -> list[_Edge]:
    """Depth-first order without recursion: hostile responses can make a tree as deep as they are many."""
    ordered: list[_Edge] = []
    unfinished: list[_Edge] = []
    size = 0
    stack = [(edge, 0) for edge in reversed(roots.values())]
    while stack:
        edge, depth = stack.pop()
        while unfinished and unfinished[-1].depth >= depth:
            unfinished.pop().subtree_end = size
        edge.begin, edge.depth = size, depth
        size += len(edge.token_ids)
        ordered.append(edge)
        unfinished.append(edge)
        below = depth + len(edge.token_ids)
        stack.extend((child, below) for child in reversed(edge.children.values()))
    for edge in unfinished:
        edge.subtree_end = size
    return ordered


def _indexes(edges: dict[int, _Edge], sequence_S: IntArray) -> IntArray:
    parts = []
    position = 0
    while position < len(sequence_S):
        edge = edges[int(sequence_S[position])]
        length = min(len(edge.token_ids), len(sequence_S) - position)
        parts.append(np.arange(edge.begin, edge.begin + length))
        position += length
        edges = edge.children
    return np.concatenate(parts)
