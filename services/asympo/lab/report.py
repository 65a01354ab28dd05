"""One page about a study: tables, pictures, the command, versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.lab.analysis import best_row, is_plain
from asympo.lab.arms import find_arm
from asympo.lab.page import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    Table,
    table_markdown,
    to_html,
    to_markdown,
)
from asympo.lab.plots import draw_all
from asympo.lab.presets.plan import Preset
from asympo.lab.results import Results

MARKS = ("<!-- asympo lab: begin -->", "<!-- asympo lab: end -->")
"""A document that holds these two lines gets the headline table between them."""


def write_report(
    results: Results, summary: dict[str, Any], *, preset: Preset, directory: Path
) -> tuple[Path, Path]:
    """Markdown with pictures beside it, and one HTML file."""
    _, cells = results.grids[0]
    plain = [cell for cell in cells if (cell.spec.kind, cell.spec.optimizer) == ("fixed", "adamw")]
    pictures = draw_all(plain or cells, directory=directory / "plots")
    blocks = _blocks(results, summary, preset=preset, pictures=pictures)
    markdown, page = directory / "report.md", directory / "report.html"
    markdown.write_text(to_markdown(blocks, beside=directory))
    page.write_text(to_html(blocks, title=f"asympo lab stability, {preset.name}"))
    (directory / "headline.md").write_text(table_markdown(headline(summary)) + "\n")
    return markdown, page


def headline(summary: dict[str, Any]) -> Table:
    """One row for each arm: its best learning rate at every staleness, and how many runs collapsed there."""
    measured = summary["results"] or summary["confirmation"]
    # Grids that are all of another kind have nothing plain.
    rows = [row for row in measured if is_plain(row)] or measured
    ages = sorted({row["staleness"] for row in rows})
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = [f"`{arm}`{' *' if find_arm(arm).needs_behaviour else ''}"]
        for age in ages:
            best = best_row([row for row in rows if (row["arm"], row["staleness"]) == (arm, age)])
            line.append(_accuracy(best) + f" at {best['learning_rate']:g}" if best else "-")
        oldest = [row for row in rows if (row["arm"], row["staleness"]) == (arm, ages[-1])]
        failed, runs = sum(sum(row["collapsed"]) for row in oldest), sum(len(row["seeds"]) for row in oldest)
        table.append([*line, f"{failed} of {runs}"])
    header = ["arm", *(f"K = {age}, best learning rate" for age in ages), f"collapsed at K = {ages[-1]}"]
    return Table(header=header, rows=table)


def find_marks(path: Path) -> tuple[int, int]:
    """Where the two marks of a document begin; BadSetting when it lacks them."""
    text = path.read_text() if path.is_file() else ""
    begin, end = text.find(MARKS[0]), text.find(MARKS[1])
    if begin < 0 or end < begin:
        raise BadSetting(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]} to write between")
    return begin, end


def update_document(path: Path, table: Table) -> None:
    """Puts the table between the marks of a document; BadSetting when it has none."""
    text = path.read_text()
    begin, end = find_marks(path)
    head = text[: begin + len(MARKS[0])]
    path.write_text(f"{head}\n\n{table_markdown(table)}\n\n{text[end:]}")


def _blocks(
    results: Results, summary: dict[str, Any], *, preset: Preset, pictures: dict[str, Path]
) -> list[Block]:
    starts = ", ".join(f"{name} {value:.3f}" for name, value in summary["start_accuracy"].items())
    blocks: list[Block] = [
        Heading(text="Stability on stale data", level=1),
        Paragraph(
            text=f"Preset `{preset.name}`: {preset.summary}. Sampled held-out accuracy of the start: "
            f"{starts}. Collapsed means: {summary['collapse_rule']}. K is the age, in optimizer steps, of "
            "the policy that the responses were drawn from. Every number is the median over seeds, with the "
            "smallest and the largest in brackets. Arms with * read log-probs of the policy that drew the "
            "responses, which the product does not carry."
        ),
        *_mixture(summary["made_by"]),
        Table(header=headline(summary).header, rows=headline(summary).rows),
        *_moonshot(summary["moonshot"]),
        *_windows(summary["collapse_window"]),
        Picture(path=pictures["collapse"], text="collapse map"),
        Picture(path=pictures["products"], text="final accuracy over staleness times learning rate"),
        Picture(path=pictures["accuracy"], text="held-out accuracy over steps"),
        Picture(path=pictures["reward"], text="reward over steps"),
        Picture(path=pictures["imbalance"], text="imbalance ratio over steps"),
        *_tuning(summary["tuning"]),
    ]
    for grid, cells in results.grids:
        wanted = {(cell.spec.arm, cell.spec.constant, cell.spec.learning_rate) for cell in cells}
        tasks = {cell.spec.task for cell in cells}
        rows = [
            row
            for row in summary["confirmation" if grid.is_confirmation(preset.confirming_seeds) else "results"]
            if (row["arm"], row["constant"], row["learning_rate"]) in wanted
            and row["task"] in tasks
            and row["optimizer"] in grid.optimizers
            and row["compute_dtype"] in grid.compute_dtypes
            and row["kind"] in grid.kinds
            and row["staleness"] in grid.staleness
        ]
        blocks += [Heading(text=f"Grid {grid.name}"), Paragraph(text=grid.question), _full_table(rows)]
    return [*blocks, Heading(text="How to make this page again"), Code(text=provenance(summary))]


def _mixture(made_by: list[dict[str, Any]]) -> list[Block]:
    if len(made_by) < 2:
        return []
    return [
        Paragraph(
            text=f"**Cells of {len(made_by)} versions or devices are mixed here**; the last section lists "
            "them. A difference between rows may be one between those."
        )
    ]


def _moonshot(found: dict[str, Any] | None) -> list[Block]:
    if found is None:
        return []
    fresh, stale = found["best_synchronous"], found["best_current_policy_only"]
    again = found["best_synchronous_again"]
    if not found["has_passed"]:
        verdict = "It is **not** reached."
    elif not found["confirmed"] or again is None:
        verdict = "It passes on these seeds, and counts only once it has passed on fresh ones."
    else:
        shares = ", ".join(
            f"`{each['arm']}`, {each['constant']:g}, at {each['learning_rate']:g}: "
            f"{each['median_accuracy']:.3f}, a share of {each['share']:.2f}"
            for each in found["confirmed"]
        )
        verdict = (
            f"On fresh seeds the best synchronous setting, `{again['arm']}` at {again['learning_rate']:g}, "
            f"has {again['median_accuracy']:.3f}, and what had passed has: {shares}. "
        ) + ("It is reached." if found["is_reached"] else "So it is **not** reached.")
    return [
        Heading(text=f"Synchronous accuracy at K = {found['staleness']} without behaviour log-probs"),
        Paragraph(
            text=f"Best synchronous: `{fresh['arm']}` at {fresh['learning_rate']:g}, "
            f"{fresh['median_accuracy']:.3f}. Best at K = {found['staleness']} of what reads only the "
            f"current policy: `{stale['arm']}`, {stale['constant']:g}, at {stale['learning_rate']:g}, "
            f"{stale['median_accuracy']:.3f}. That is a share of {found['share']:.2f}, and "
            f"{found['needed']:g} was the aim. {verdict}"
        ),
    ]


def _windows(windows: dict[str, list[dict[str, Any]]]) -> list[Block]:
    rows = [
        [
            f"`{arm}`",
            "; ".join(
                f"K {each['staleness']}, lr {each['learning_rate']:g} ({each['collapsed']}/{each['seeds']})"
                for each in found
            )
            or "none",
        ]
        for arm, found in windows.items()
    ]
    return [
        Heading(text="Where more than half of the seeds collapsed"),
        Table(header=["arm", "window"], rows=rows),
    ]


def _tuning(table: dict[str, Any]) -> list[Block]:
    if not table:
        return []
    rows = [
        [
            f"`{arm}`",
            each["constant_name"],
            ", ".join(f"{value}: {mean:.3f}" for value, mean in each["candidates"].items()),
            f"{each['chosen']:g}",
            str(each["runs"]),
        ]
        for arm, each in table.items()
    ]
    header = ["arm", "constant", "mean final accuracy by candidate", "chosen", "runs"]
    return [Heading(text="Tuning, the same budget for every arm"), Table(header=header, rows=rows)]


def _full_table(rows: Sequence[dict[str, Any]]) -> Table:
    header = [
        *("arm", "constant", "K", "ages", "lr", "final accuracy", "seeds", "collapsed"),
        *("NLL ratio", "gradient norm", "entropy", "tokens", "KL to start"),
    ]
    return Table(header=header, rows=[_full_row(row) for row in rows])


def _full_row(row: dict[str, Any]) -> list[str]:
    extra = [row["optimizer"]] if row["optimizer"] != "adamw" else []
    extra += [row["compute_dtype"]] if row["compute_dtype"] != "float32" else []
    return [
        f"`{row['arm']}`",
        f"{row['constant']:g}",
        str(row["staleness"]),
        ", ".join([row["kind"], *extra]),
        f"{row['learning_rate']:g}",
        _accuracy(row),
        " ".join(f"{value:.2f}" for value in row["final_accuracy"]),
        f"{sum(row['collapsed'])} of {len(row['seeds'])}",
        *(_number(row[name]) for name in ("nll_ratio", "grad_norm", "entropy", "response_tokens")),
        _number(row["kl_to_start"]),
    ]


def provenance(summary: dict[str, Any]) -> str:
    """The command, what made the cells, what made the page of them."""
    lines = [summary["command"], ""]
    lines += [f"cells made by {_version(each['versions'])}: {each['cells']}" for each in summary["made_by"]]
    lines += [
        f"summarised by {_version(summary['versions'])}",
        f"seeds {' '.join(str(seed) for seed in summary['seeds'])}",
        f"wall {summary['wall_seconds']:.0f} s, {summary['cells_found']} cells were there before",
    ]
    return "\n".join(lines)


def _version(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) or "an unknown version"


def _accuracy(row: dict[str, Any]) -> str:
    values = row["final_accuracy"]
    return f"{row['median_accuracy']:.2f} ({min(values):.2f} to {max(values):.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
