"""`asympo checkpoint diff`: which tensors differ between two policies or models, and by how much."""

import math
from argparse import ArgumentParser, Namespace
from typing import Any

from asympo.common.checkpoints.delta import delta_size
from asympo.common.commands import add_json_flag, at_least_one, show, write_json, write_table
from asympo.ops.checkpoint.chosen import ChosenWeights, add_choice_flags, choose
from asympo.ops.checkpoint.compare import Comparison, TensorChange, compare, relative_norm

_DEFAULT_ROWS = 20


def add_flags(parser: ArgumentParser) -> None:
    for side in ("a", "b"):
        parser.add_argument(
            side, metavar=side.upper(), help="STEP, best or last of the run, or the directory of any model"
        )
    add_choice_flags(parser, needs_run=False)
    parser.add_argument(
        "--rows", type=at_least_one, default=_DEFAULT_ROWS, metavar="N", help="tensors in the table"
    )
    add_json_flag(parser)


def main(arguments: Namespace) -> int:
    """0 however much differs."""
    a, b = (choose(text, arguments) for text in (arguments.a, arguments.b))
    comparison = compare(a, b)
    if arguments.json:
        sides = {"a": str(a.path), "b": str(b.path)}
        write_json({**sides, **_described(comparison), "delta_ratio": _share_as_difference(a, b)})
        return 0
    moved = [tensor for tensor in comparison.tensors if tensor.changed]
    moved.sort(key=lambda tensor: -math.inf if tensor.relative_norm is None else -tensor.relative_norm)
    if moved:
        columns = ("tensor", "shape", "changed", "of", "largest change", "relative norm")
        rows = [_row(tensor) for tensor in moved[: arguments.rows]]
        left = f", {arguments.rows} of {len(moved)} that moved most" if len(moved) > arguments.rows else ""
        write_table(f"from {a.path} to {b.path}{left}", columns, rows)
    show(_sentence(comparison))
    shared = _share_as_difference(a, b)
    if shared is not None:
        show(f"shared as a difference, the second takes {shared:.2%} of its weights' bytes")
    return 0


def _share_as_difference(a: ChosenWeights, b: ChosenWeights) -> float | None:
    """Bytes of the difference over those of the second one's files; None where they have other files."""
    before, after = a.files, b.files
    sizes = {name: file.stat().st_size for name, file in after.items()}
    if sizes != {name: file.stat().st_size for name, file in before.items()}:
        return None
    total = 0
    for name, max_bytes in sizes.items():
        size = delta_size(before[name], after[name], max_bytes=max_bytes)
        if size is None:
            return None
        total += size
    return total / sum(sizes.values())


def _described(comparison: Comparison) -> dict[str, Any]:
    return {
        "is_equal": comparison.is_equal,
        **_totals(comparison.tensors),
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "values": tensor.values,
                "changed": tensor.changed,
                "max_abs": tensor.max_abs,
                "relative_norm": tensor.relative_norm,
            }
            for tensor in comparison.tensors
        ],
        "only_in_a": comparison.only_in_a,
        "only_in_b": comparison.only_in_b,
        "other_shape": comparison.other_shape,
    }


def _totals(tensors: tuple[TensorChange, ...]) -> dict[str, Any]:
    known = [tensor.max_abs for tensor in tensors if tensor.max_abs is not None]
    return {
        "values": sum(tensor.values for tensor in tensors),
        "changed": sum(tensor.changed for tensor in tensors),
        "max_abs": max(known) if len(known) == len(tensors) else None,
        "relative_norm": relative_norm(
            sum(tensor.squares for tensor in tensors), sum(tensor.base_squares for tensor in tensors)
        ),
    }


def _row(tensor: TensorChange) -> list[Any]:
    size = "x".join(map(str, tensor.shape)) or "1"
    share = f"{tensor.changed / tensor.values:.2%}"
    return [tensor.name, size, share, tensor.values, _short(tensor.max_abs), _short(tensor.relative_norm)]


def _sentence(comparison: Comparison) -> str:
    totals, tensors = _totals(comparison.tensors), comparison.tensors
    num_moved = sum(tensor.changed > 0 for tensor in tensors)
    lone = [
        f"{len(names)} {what} (such as {names[0]})"
        for names, what in (
            (comparison.only_in_a, "only in the first"),
            (comparison.only_in_b, "only in the second"),
            (comparison.other_shape, "with another shape"),
        )
        if names
    ]
    beside = f"; tensors not compared: {', '.join(lone)}" if lone else ""
    if not num_moved:
        return f"no value of {len(tensors)} tensors differs{beside}"
    return (
        f"{totals['changed']} of {totals['values']} values ({totals['changed'] / totals['values']:.3%}) in "
        f"{num_moved} of {len(tensors)} tensors differ; largest change {_short(totals['max_abs'])}, "
        f"relative norm {_short(totals['relative_norm'])}{beside}"
    )


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
