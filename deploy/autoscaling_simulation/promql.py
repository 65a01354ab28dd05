"""Evaluates the PromQL that the autoscaling rule uses; what it does not know it refuses.

promql_parser parses: a test gives the same series to promtool and compares.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import promql_parser

from deploy.autoscaling_simulation.series import Labels, SeriesStore

Vector = dict[Labels, float]

_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a),
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": math.fsum,
    "max": max,
    "min": min,
    "count": len,
    "avg": lambda values: math.fsum(values) / len(values),
}
_OVER_TIME: dict[str, Callable[[Sequence[float]], float]] = {
    "count_over_time": len,
    "avg_over_time": lambda values: math.fsum(values) / len(values),
    "max_over_time": max,
    "min_over_time": min,
}


class UnknownPromql(ValueError):
    """An expression uses something that this evaluator does not implement."""


class Expression:
    """One parsed expression."""

    def __init__(self, text: str) -> None:
        """Raises ValueError when Prometheus would refuse `text`."""
        self._tree = promql_parser.parse(text)

    def at(self, store: SeriesStore, time: float) -> Vector:
        """Its value as an instant vector; UnknownPromql when it is none or cannot be computed here."""
        value = _evaluate(self._tree, store, time)
        if not isinstance(value, dict):
            raise UnknownPromql("the expression is a number, not a vector")
        return value


def _evaluate(node: Any, store: SeriesStore, time: float) -> Vector | float:
    match type(node).__name__:
        case "NumberLiteral":
            return float(node.val)
        case "ParenExpr":
            return _evaluate(node.expr, store, time)
        case "VectorSelector":
            _require_plain(node)
            return {labels: v for labels, v in store.instant(node.name, time) if _matches(node, labels)}
        case "AggregateExpr":
            return _aggregate(node, store, time)
        case "Call":
            return _call(node, store, time)
        case "BinaryExpr":
            return _binary(node, store, time)
    raise UnknownPromql(f"{type(node).__name__} is not implemented")


def _require_plain(selector: Any) -> None:
    if selector.offset is not None or selector.at is not None or selector.name is None:
        raise UnknownPromql("selectors with offset or @, or without a name, are not implemented")


def _matches(selector: Any, labels: Labels) -> bool:
    found = dict(labels)
    for matcher in selector.matchers.matchers:
        if matcher.op not in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.NotEqual):
            raise UnknownPromql(f"matcher {matcher.op} is not implemented")
        is_equal = found.get(matcher.name, "") == matcher.value
        if is_equal is not (matcher.op == promql_parser.MatchOp.Equal):
            return False
    return True


def _vector(node: Any, store: SeriesStore, time: float) -> Vector:
    return _as_vector(_evaluate(node, store, time))


def _as_vector(value: Vector | float) -> Vector:
    if not isinstance(value, dict):
        raise UnknownPromql("a number where a vector is needed")
    return value


def _aggregate(node: Any, store: SeriesStore, time: float) -> Vector:
    if str(node.op) not in _AGGREGATIONS or node.param is not None:
        raise UnknownPromql(f"aggregation {node.op} is not implemented")
    if node.modifier is None or node.modifier.type != promql_parser.AggModifierType.By:
        raise UnknownPromql("only aggregations with by (...) are implemented")
    kept = set(node.modifier.labels)
    groups: dict[Labels, list[float]] = {}
    for labels, value in _vector(node.expr, store, time).items():
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in kept), []).append(value)
    return {labels: float(_AGGREGATIONS[str(node.op)](values)) for labels, values in groups.items()}


def _call(node: Any, store: SeriesStore, time: float) -> Vector:
    name, args = node.func.name, node.args
    if name == "rate" or name in _OVER_TIME:
        selector, seconds = args[0].vector_selector, args[0].range.total_seconds()
        _require_plain(selector)
        found: Vector = {}
        for labels, times, values in store.window(selector.name, time, seconds):
            if not _matches(selector, labels):
                continue
            if name != "rate":
                found[labels] = float(_OVER_TIME[name](values))
            elif len(values) > 1:
                found[labels] = _rate(times, values, start=time - seconds, end=time)
        return found
    vector = _vector(args[0], store, time)
    if name in ("ceil", "floor"):
        rounded = math.ceil if name == "ceil" else math.floor
        return {labels: float(rounded(v)) if math.isfinite(v) else v for labels, v in vector.items()}
    if name in ("clamp_min", "clamp_max"):
        limit = _evaluate(args[1], store, time)
        choose = max if name == "clamp_min" else min
        if isinstance(limit, float):
            return {labels: choose(value, limit) for labels, value in vector.items()}
    raise UnknownPromql(f"{name}() is not implemented")


def _rate(times: Sequence[float], values: Sequence[float], *, start: float, end: float) -> float:
    """Per second, with resets added and extrapolated to the window's ends as Prometheus does."""
    increase = values[-1] - values[0]
    increase += sum(before for before, after in itertools.pairwise(values) if after < before)
    sampled = times[-1] - times[0]
    between = sampled / (len(values) - 1)
    to_start, to_end = times[0] - start, end - times[-1]
    if increase > 0 and values[0] >= 0:
        to_start = min(to_start, sampled * values[0] / increase)
    reach = sampled
    for gap in (to_start, to_end):
        reach += gap if gap < between * 1.1 else between / 2
    return increase * reach / sampled / (end - start)


def _binary(node: Any, store: SeriesStore, time: float) -> Vector | float:
    symbol, modifier = str(node.op), node.modifier
    is_set = symbol in ("and", "or", "unless")
    left, right = (_evaluate(side, store, time) for side in (node.lhs, node.rhs))
    if modifier is not None and (modifier.matching is not None or modifier.return_bool):
        return _grouped(symbol, modifier, _as_vector(left), _as_vector(right))
    if is_set:
        if not isinstance(left, dict) or not isinstance(right, dict):
            raise UnknownPromql(f"{symbol} between numbers")
        return _set_operation(symbol, left, right)
    if isinstance(left, float) and isinstance(right, float):
        if symbol not in _ARITHMETIC:
            raise UnknownPromql(f"{symbol} between numbers")
        return _ARITHMETIC[symbol](left, right)
    pairs: Mapping[Labels, tuple[float, float]]
    if not isinstance(left, dict):
        number = left
        pairs = {labels: (number, value) for labels, value in _as_vector(right).items()}
    elif not isinstance(right, dict):
        pairs = {labels: (value, right) for labels, value in left.items()}
    else:
        pairs = {labels: (value, right[labels]) for labels, value in left.items() if labels in right}
    if symbol in _ARITHMETIC:
        return {labels: _ARITHMETIC[symbol](a, b) for labels, (a, b) in pairs.items()}
    if symbol in _COMPARISONS:
        # A comparison keeps the vector's own value, whichever side it is on.
        kept = 0 if isinstance(left, dict) else 1
        return {labels: pair[kept] for labels, pair in pairs.items() if _COMPARISONS[symbol](*pair)}
    raise UnknownPromql(f"{symbol} is not implemented")


def _grouped(symbol: str, modifier: Any, left: Vector, right: Vector) -> Vector:
    """`on (...) group_left ()`: many series on the left, one on the right for each choice of those labels."""
    matching = modifier.matching
    is_on = matching is not None and matching.type == promql_parser.LabelModifierType.Include
    is_left = modifier.card == promql_parser.VectorMatchCardinality.ManyToOne and not modifier.group_labels
    if modifier.return_bool or not is_on or not is_left or symbol not in _ARITHMETIC:
        raise UnknownPromql("ignoring, bool, and on without group_left () are not implemented")
    names = set(matching.labels)

    def key(labels: Labels) -> Labels:
        return frozenset(pair for pair in labels if pair[0] in names)

    one = {key(labels): value for labels, value in right.items()}
    found = {labels: (value, one[key(labels)]) for labels, value in left.items() if key(labels) in one}
    return {labels: _ARITHMETIC[symbol](a, b) for labels, (a, b) in found.items()}


def _set_operation(symbol: str, left: Vector, right: Vector) -> Vector:
    if symbol == "or":
        return {**right, **left}
    return {labels: value for labels, value in left.items() if (labels in right) == (symbol == "and")}
